"""The folder of pictures and its page."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile
from PIL import Image

from fed_a2v.core.adapters import AdapterOutput
from fed_a2v.encoders.pretrained import ModelError
from fed_a2v.images.gallery import (
    Column,
    GalleryError,
    Subject,
    draw_gallery,
    read_gallery,
    safe_name,
    text_column,
    write_sheet,
)
from fed_a2v.images.pipelines import load_image_model
from fed_a2v.load import load_run
from tests.refusals import refused

SUBJECTS = [
    Subject("dog.wav", "dog", np.linspace(-0.5, 0.5, 1600, dtype=np.float32), 16_000),
    Subject("<b>&.wav", None),
    Subject("rain, synthetic 1", "rain"),
]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory, trained, image_settings):
    """Three subjects drawn by the tiny Stable Diffusion: from the adapters, and from the true text prompts."""
    run = load_run(trained("sd"))
    folder = tmp_path_factory.mktemp("galleries") / "one"
    prompts = run.adapt(run.generator.sample("dog", 3))
    columns = [
        Column("sound", "From sound", range(3), prompts),
        text_column(SUBJECTS, run.targets),
    ]
    facts = {"run": "mine", "round": 1, "classes": run.classes}
    draw_gallery(folder, load_image_model(image_settings("sd")), SUBJECTS, columns, facts)
    return folder


def test_the_folder_holds_pictures_sounds_a_list_and_a_page(gallery):
    files = {str(path.relative_to(gallery)) for path in gallery.rglob("*") if path.is_file()}
    assert files == {
        *("index.html", "pictures.json", "audio/0000-dog-wav.wav"),
        *("sound/0000-dog-wav.png", "sound/0001-b-wav.png", "sound/0002-rain-synthetic-1.png"),
        *("text/0000-dog-wav.png", "text/0002-rain-synthetic-1.png"),
    }
    assert [path.name for path in gallery.parent.iterdir()] == ["one"], "a temporary folder is left"
    listed = read_gallery(gallery)
    assert listed["images"]["steps"] == 2
    assert listed["classes"] == ["dog", "rain", "sea_waves"]
    assert [subject["class"] for subject in listed["subjects"]] == ["dog", None, "rain"]
    waveform, rate = soundfile.read(gallery / "audio/0000-dog-wav.wav", dtype="float32")
    assert rate == 16_000
    np.testing.assert_allclose(waveform, SUBJECTS[0].waveform, atol=1e-4)


def test_both_columns_start_from_the_same_noise(tmp_path, trained, image_settings):
    """Given the same prompts, they hold the same pictures."""
    run = load_run(trained("sd"))
    targets = AdapterOutput(run.targets.clip[[0, 1]], None)
    subjects = [Subject("a", run.classes[0]), Subject("b", run.classes[1])]
    columns = [Column("sound", "", range(2), targets), text_column(subjects, run.targets)]
    model = load_image_model(image_settings("sd", "images.batch_size=1"))
    draw_gallery(tmp_path / "both", model, subjects, columns, {"run": "", "round": 1, "classes": run.classes})
    for name in ("0000-a.png", "0001-b.png"):
        assert (tmp_path / "both/sound" / name).read_bytes() == (tmp_path / "both/text" / name).read_bytes()
    first, second = (np.array(Image.open(tmp_path / "both/sound" / name)) for name in ("0000-a.png", "0001-b.png"))
    assert not np.array_equal(first, second)


def test_a_failed_generation_leaves_no_folder(tmp_path, trained, image_settings):
    run = load_run(trained("sd"))
    narrow = AdapterOutput(run.targets.clip[..., :100], None)
    with pytest.raises(ModelError):
        draw_gallery(
            tmp_path / "new",
            load_image_model(image_settings("sd")),
            [Subject(name, name) for name in run.classes],
            [Column("sound", "", range(3), narrow)],
            {"run": "", "round": 1, "classes": run.classes},
        )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_not_changed(gallery, image_settings):
    before = sorted(gallery.rglob("*"))
    with refused(FileExistsError, gallery):
        draw_gallery(gallery, load_image_model(image_settings("sd")), [], [], {})
    assert sorted(gallery.rglob("*")) == before


def test_a_missing_picture_is_named(gallery, tmp_path):
    copy = shutil.copytree(gallery, tmp_path / "copy")
    (copy / "text/0002-rain-synthetic-1.png").unlink()
    with refused(GalleryError, copy / "text/0002-rain-synthetic-1.png", "'rain, synthetic 1'"):
        read_gallery(copy)
    (copy / "pictures.json").write_text("{")
    with refused(GalleryError, copy / "pictures.json"):
        read_gallery(copy)
    with refused(GalleryError, tmp_path, "pictures.json", "fed-a2v generate"):
        read_gallery(tmp_path)


def test_the_page_describes_its_pictures_and_escapes_names(gallery):
    page = (gallery / "index.html").read_text()
    assert "<b>&.wav" not in page
    assert "&lt;b&gt;&amp;.wav" in page
    pictures = re.findall(r'<img src="([^"]+)"[^>]*\salt="([^"]+)"', page)
    assert len(pictures) == 5
    assert all((gallery / source).is_file() for source, _ in pictures)
    assert ("text/0002-rain-synthetic-1.png", "True text prompt: image of rain, synthetic 1 (rain)") in pictures
    assert re.search(r'<audio controls[^>]*src="audio/0000-dog-wav.wav"\s+aria-label="Sound of dog.wav"', page)
    assert "http" not in page.replace("http-equiv", ""), "nothing comes from a network"


def test_the_page_shows_an_evaluation_where_there_is_one(gallery, tmp_path):
    copy = shutil.copytree(gallery, tmp_path / "copy")
    figure = {"value": 0.5, "interval": [0.25, 0.75]}
    column = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "clip_score"), figure) | {"pictures": 2}
    judged = {"clip": "some/clip", "classes": ["dog", "rain", "sea_waves"], "columns": {"sound": column}}
    (copy / "evaluation.json").write_text(json.dumps(judged))
    write_sheet(copy)
    page = (copy / "index.html").read_text()
    assert "some/clip chooses among 3 class names" in page
    assert re.search(r"0\.250 to\s+0\.750", page)


def test_untrusted_names_become_safe_file_names():
    assert safe_name("site-000") == "site-000"
    assert re.fullmatch(r"x-[0-9a-f]{8}", safe_name("../../x"))
    assert safe_name("a/b") != safe_name("a-b") != safe_name("A-b")
    assert len(safe_name("x" * 10_000_000)) < 60
    assert re.fullmatch(r"sound-[0-9a-f]{8}", safe_name("€"))
