"""The values of the page's components."""

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("gradio")

import gradio as gr

from fed_a2v import load_run
from fed_a2v.demo.explorer import Explorer
from fed_a2v.demo.page import _built_in_sounds, answers, make_page, problem_html, result_html, take_uploads_only
from fed_a2v.demo.server import temporary_files
from fed_a2v.encoders.pretrained import ModelError
from tests.demo.conftest import STRANGE


def test_a_sound_gives_text_and_two_figures(explorer, rain):
    ((result, _, waves, place),) = answers(explorer, str(rain))
    best = explorer.run.classify(rain)[0]
    assert f"{best.name}</p>" in result
    assert f"<td>{best.score:.2f}</td>" in result
    assert len(waves.data) == 2
    assert place.data[-1].name == "this sound"


def test_without_a_sound_the_map_alone_is_shown(explorer):
    ((_, _, waves, place),) = answers(explorer, None)
    assert waves is None
    assert "this sound" not in [trace.name for trace in place.data]


def test_a_bad_file_gives_one_line_without_its_folder(explorer, tmp_path):
    (tmp_path / "<b>.wav").write_text("no sound")
    ((result, _, waves, _),) = answers(explorer, str(tmp_path / "<b>.wav"))
    assert 'role="alert"' in result
    assert "&lt;b&gt;.wav" in result
    assert str(tmp_path) not in result
    assert waves is None


class Drawing:
    """An image model that draws a word, or fails."""

    settings = type("Settings", (), {"seed": 3})

    def __init__(self, problem=None):
        self.problem, self.drawn = problem, []

    def draw(self, prompts, seeds):
        if self.problem:
            raise self.problem
        self.drawn.append((prompts.clip.shape, seeds))
        return ["an image"]


def test_the_image_follows_the_answer(explorer, rain):
    drawing = Explorer(explorer.run, Drawing())
    first, second = answers(drawing, str(rain))
    assert first[-1] is None
    assert "demo-best" in first[0]
    assert second[-1] == "an image"
    ((shape, (seed,)),) = drawing.images.drawn
    assert shape == explorer.run.prompts(rain).clip.shape
    assert isinstance(seed, int)


def test_a_failed_image_leaves_the_answer(explorer, rain):
    _, second = answers(Explorer(explorer.run, Drawing(ModelError("width 768"))), str(rain))
    assert "demo-best" in second[0]
    assert "width 768" in second[0]
    assert second[-1] is None


def test_strange_names_are_text(strange_run, rain):
    explorer = Explorer(load_run(strange_run))
    result = result_html(explorer, explorer.answer(rain))
    assert "<img" not in result
    assert "&lt;img src=x onerror=alert(1)&gt;" in result
    assert "犬 &amp; co" in result
    assert set(explorer.run.classes) == set(STRANGE)


def test_built_in_sounds_are_for_runs_on_them(explorer, strange_run):
    with temporary_files() as files:
        offered = dict(_built_in_sounds(explorer))
        assert list(offered) == ["dog", "rain", "sea_waves"]
        assert all(Path(file).is_relative_to(files) for file in offered.values())
        assert explorer.answer(Path(offered["rain"])).seconds == 5
        assert not _built_in_sounds(Explorer(load_run(strange_run)))


def test_the_page_reports_nothing_to_gradio(explorer):
    with temporary_files():
        page = make_page(explorer)
    assert page.analytics_enabled is False
    assert page.title == "mine - fed_a2v"


@pytest.mark.parametrize("path", ["/etc/hostname", "https://example.org/a.wav", "http://127.0.0.1:1/a.wav"])
def test_an_input_takes_only_what_was_uploaded(path, rain):
    with temporary_files() as files:
        sound = gr.Audio(type="filepath")
        take_uploads_only(sound)
        own = Path(files) / "a.wav"
        own.write_bytes(rain.read_bytes())
        assert asyncio.run(sound.async_move_resource_to_block_cache(str(own))) == str(own)
        with pytest.raises(gr.Error):
            asyncio.run(sound.async_move_resource_to_block_cache(path))


def test_a_problem_is_one_line():
    assert "\n" not in problem_html(ValueError("a\nb"), Path("a.wav"))
