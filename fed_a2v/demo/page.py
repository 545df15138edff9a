"""The page itself, made of Gradio's components.

Names of classes, sites and files are untrusted: they are escaped wherever they are shown.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import soundfile
from gradio.utils import get_upload_folder, is_in_or_equal

from fed_a2v.data.datasets.synth import RATE, TARGETS, synthesise
from fed_a2v.demo.explorer import Answer, Explorer, Neighbour
from fed_a2v.demo.figures import map_figure, sound_figure
from fed_a2v.errors import MENDABLE
from fed_a2v.report.styles import clean, colour

# Seconds after which an uploaded sound is deleted, and between two looks for such sounds.
KEEP, LOOK = 600, 60
# Number of a built-in clip that no run trains on.
UNHEARD = 1_000_000

CSS = """
:root { --demo-soft: #575e69; }
.dark { --demo-soft: #a5acb6; }
.gradio-container { max-width: 1240px !important; margin: 0 auto; }
.gradio-container h1 { font-size: 1.5rem; font-weight: 600; margin: .4rem 0 .1rem; }
.gradio-container .hide-container > .html-container { padding: 0; }
.demo-soft { color: var(--demo-soft); margin: .1rem 0 .4rem; }
.demo-best { font-size: 1.5rem; font-weight: 600; margin: 0 0 .6rem; overflow-wrap: anywhere; }
.demo-classes { width: 100%; border-collapse: collapse; margin: 0 0 .8rem; }
.demo-classes, .demo-classes :is(thead, tbody, tr, th, td) { border: 0 !important; }
.demo-classes caption { text-align: left; color: var(--demo-soft); margin-bottom: .2rem; }
.demo-classes th { text-align: left; font-weight: 400; padding: .15rem .6rem .15rem 0; overflow-wrap: anywhere; }
.demo-classes td { padding: .15rem 0; }
.demo-classes td:nth-child(2) { width: 45%; }
.demo-classes td:last-child { text-align: right; width: 3.4rem; font-variant-numeric: tabular-nums; }
.demo-bar { display: block; height: .7rem; border-radius: 3px; min-width: 1px; }
#built-in { gap: .4rem; align-items: center; }
#built-in > * { flex: 0 1 auto; width: auto; }
.demo-near { margin: .15rem 0; overflow-wrap: anywhere; }
.demo-bad { border-left: 4px solid #d0555b; padding: .5rem .8rem; margin: 0; overflow-wrap: anywhere; }
/* Plotly sets its colours in the elements, for one background only. */
.js-plotly-plot .main-svg { background: transparent !important; }
.js-plotly-plot .bglayer rect { fill: transparent !important; }
.js-plotly-plot .main-svg text:not(.hoverlayer *) { fill: var(--body-text-color) !important; }
.js-plotly-plot .gridlayer path { stroke: var(--border-color-primary) !important; }
.js-plotly-plot .legend .bg { fill: transparent !important; }
.js-plotly-plot .zerolinelayer path { stroke: var(--border-color-primary) !important; }
@media (hover: none), (max-width: 640px) { .js-plotly-plot .modebar { display: none; } }
"""


def make_page(explorer: Explorer) -> gr.Blocks:
    """The page about a run. Gradio's folder of files must be set before (`fed_a2v.demo.server`)."""
    run, draws = explorer.run, explorer.images is not None
    start = _empty(explorer)
    with gr.Blocks(
        title=f"{run.folder.path.name} - fed_a2v", analytics_enabled=False, delete_cache=(LOOK, KEEP)
    ) as page:
        gr.HTML(_header(explorer), padding=False)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                sound = gr.Audio(type="filepath", sources=["upload", "microphone"], label="Sound", buttons=[])
                take_uploads_only(sound)
                if built_in := _built_in_sounds(explorer):
                    with gr.Row(elem_id="built-in"):
                        gr.HTML('<span class="demo-soft">Built-in sounds:</span>', padding=False, min_width=0)
                        for name, file in built_in:
                            button = gr.Button(name, size="sm", min_width=0)
                            button.click(_giving(file), None, sound, show_progress="hidden", api_visibility="private")
            with gr.Column(scale=3, min_width=300):
                result = gr.HTML(start[0], padding=True, container=True, elem_id="result")
            with gr.Column(scale=2, min_width=300, visible=draws):
                picture = gr.Image(label="Image", type="pil", format="png", buttons=["fullscreen"])
        with gr.Row():
            with gr.Column(scale=2, min_width=300, visible=False) as left:
                waves = gr.Plot(label="Waveform and spectrogram", elem_id="waves")
            with gr.Column(scale=3, min_width=300, visible=explorer.map is not None):
                place = gr.Plot(start[3], label="Map of the embeddings", elem_id="map")
                if explorer.map is not None:
                    gr.HTML(_caption(explorer), padding=False)
        outputs = [result, left, waves, place, *([picture] if draws else [])]

        def changed(path: str | None) -> Iterator[tuple[Any, ...]]:
            yield from answers(explorer, path)

        sound.change(
            changed,
            sound,
            outputs,
            show_progress="minimal",
            trigger_mode="always_last",
            api_visibility="private",
        )
    assert isinstance(page, gr.Blocks)  # for mypy
    return page


def take_uploads_only(sound: gr.Audio) -> None:
    """Let an input take files in Gradio's own folder only; else it also downloads a URL that a request names."""
    move = sound.async_move_resource_to_block_cache

    async def moved(path: str | Path | None) -> str | None:
        if path is not None and not is_in_or_equal(path, sound.GRADIO_CACHE):
            raise gr.Error("the sound was not uploaded by this page; upload it", print_exception=False)
        return await move(path)

    sound.async_move_resource_to_block_cache = moved  # type: ignore[assignment, method-assign]


def answers(explorer: Explorer, path: str | None) -> Iterator[tuple[Any, ...]]:
    """Values of the components for a sound, then again with its image."""
    if path is None:
        yield _empty(explorer)
        return
    file = Path(path)
    try:
        answer = explorer.answer(file)
    except MENDABLE as error:
        yield (problem_html(error, file), *_empty(explorer)[1:])
        return
    result = result_html(explorer, answer)
    place = None if explorer.map is None else map_figure(explorer.map, answer)
    shown = (result, gr.Column(visible=True), sound_figure(answer.waveform, answer.rate), place)
    if explorer.images is None:
        yield shown
        return
    yield (*shown, None)
    same = [gr.skip()] * 3
    try:
        yield (gr.skip(), *same, explorer.picture(answer))
    except MENDABLE as error:
        yield (result + problem_html(error, file), *same, None)


def _empty(explorer: Explorer) -> tuple[Any, ...]:
    """Values of the components without a sound."""
    hint = '<p class="demo-soft">Drop a sound file, or record one.</p>'
    place = None if explorer.map is None else map_figure(explorer.map)
    return (hint, gr.Column(visible=False), None, place, *([None] if explorer.images is not None else []))


def _giving(value: str) -> Callable[[], str]:
    def give() -> str:
        return value

    return give


def _built_in_sounds(explorer: Explorer) -> list[tuple[str, str]]:
    """Class and file of a new built-in sound of each class, for a run on the built-in sounds; else empty."""
    if explorer.run.settings.dataset.name != "synth":
        return []
    folder = Path(tempfile.mkdtemp(dir=get_upload_folder()))
    found = []
    for name in (name for name in explorer.run.classes if name in TARGETS):
        file = folder / f"{name}.wav"
        soundfile.write(file, synthesise(name, UNHEARD, explorer.run.settings.seed), RATE, subtype="PCM_16")
        found.append((name, str(file)))
    return found


# Texts


def _header(explorer: Explorer) -> str:
    run = explorer.run
    facts = [f"{len(run.classes)} classes", f"after round {run.round}", f"encoder {run.settings.encoder.name}"]
    facts.append(f"the first {explorer.seconds:.4g} s of a sound are used")
    lines = f'<h1>{_text(run.folder.path.name)}</h1><p class="demo-soft">{_text(", ".join(facts))}</p>'
    if explorer.images is not None and run.settings.targets.name == "random":
        lines += '<p class="demo-soft">The class prompts are random vectors: images show nothing meaningful.</p>'
    return lines


def _caption(explorer: Explorer) -> str:
    assert explorer.map is not None
    shares_sums, parts = explorer.run.settings.shares_sums, []
    if not explorer.map.synthetic.all():
        means = "class means over the clips of all sites" if shares_sums else "the prototypes of the sites"
        parts.append(f"Full symbols: {means}.")
    if explorer.map.synthetic.any():
        parts.append("Open symbols: samples of the generator.")
    parts.append("The map shows two of many axes; similarities are computed along all.")
    return f'<p class="demo-soft">{" ".join(parts)}</p>'


def result_html(explorer: Explorer, answer: Answer) -> str:
    """The nearest classes with their scores, and the neighbours of a sound."""
    names = [] if explorer.map is None else [str(name) for name in explorer.map.classes]
    rows = "".join(
        f'<tr><th scope="row">{_text(name)}</th><td><span class="demo-bar" style="width:{max(0.0, score):.0%};'
        f'background:{colour(names.index(name) if name in names else 6)}"></span></td><td>{score:.2f}</td></tr>'
        for name, score in answer.classes
    )
    lines = [
        f'<p class="demo-best">{_text(answer.classes[0].name)}</p>',
        f'<table class="demo-classes"><caption>Nearest class prompts, by cosine</caption>{rows}</table>',
    ]
    if answer.synthetic is not None:
        lines.append(_near("Nearest synthetic sample", answer.synthetic))
    if answer.real is not None and explorer.run.settings.shares_sums:
        lines.append(_near("Nearest class mean", answer.real))
    elif answer.real is not None:
        lines.append(_near("Nearest prototype", answer.real, f" of {_text(answer.real.site)}"))
    if answer.seconds is not None and answer.seconds > explorer.seconds + 0.05:
        lines.append(f'<p class="demo-soft">Used: the first {explorer.seconds:.4g} of {answer.seconds:.4g} s.</p>')
    return f'<div aria-live="polite">{"".join(lines)}</div>'


def _near(what: str, neighbour: Neighbour, origin: str = "") -> str:
    name, similarity = _text(neighbour.name), neighbour.similarity
    return f'<p class="demo-near">{what}: <strong>{name}</strong>{origin}, similarity {similarity:.2f}</p>'


def problem_html(error: BaseException, file: Path) -> str:
    """An error in one line, with the name of the file instead of its path on this machine."""
    return f'<p class="demo-bad" role="alert">{_text(str(error).replace(str(file), file.name))}</p>'


def _text(text: str) -> str:
    return escape(clean(text))
