"""`fed-a2v generate`: pictures of what a run's adapters make of sounds."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from rich.console import Console

from fed_a2v.config.compose import ConfigError, checked_settings, compose_settings
from fed_a2v.storage.plain_text import say

if TYPE_CHECKING:
    from fed_a2v.config.schema import ImageSettings
    from fed_a2v.images.subjects import Subjects
    from fed_a2v.load import LoadedRun

USAGE = """\
fed-a2v generate RUN [AUDIO ...]   pictures of sounds, beside those of the true text prompt, on a page to look at
  fed-a2v generate outputs/mine dog.wav rain=storm.wav images.steps=20 images.model=FOLDER
  fed-a2v generate outputs/mine --classes dog,rain --synthetic 4
  fed-a2v generate outputs/mine --test 2 --evaluate
"""


def run(words: list[str]) -> None:
    """Draw the pictures, judge them if asked to, and say where they are."""
    given = _parser().parse_intermixed_args(words)
    overrides = [word for word in given.audio if word.startswith("images.") and "=" in word]
    audio = [word for word in given.audio if word not in overrides]
    sources = bool(audio) or given.classes is not None or given.synthetic > 0 or given.test > 0

    from fed_a2v.images.gallery import read_gallery, write_sheet

    if (given.run / "pictures.json").is_file():
        if sources or not given.evaluate:
            raise ConfigError(f"{given.run} holds pictures: --evaluate judges them, a run's folder is needed for more")
        drawn = read_gallery(given.run)["images"]
        _show(_evaluate(given.run, _changed(drawn["name"], drawn, overrides)))
        write_sheet(given.run)
        folder = given.run
    else:
        if not sources:
            raise ConfigError("nothing to draw: name sound files, or --classes A,B or --synthetic N or --test N")
        folder = _draw(given, audio, overrides)
    say(Console(), f"Pictures: {folder / 'index.html'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fed-a2v generate",
        description="Pictures of what a run's adapters make of sounds, beside those of the true text prompt.",
        epilog="How they are drawn is set as in training: images.steps=20 images.seed=1 images.model=FOLDER ...",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder or a checkpoint in it")
    parser.add_argument(
        "audio", nargs="*", metavar="AUDIO", help="sound files; CLASS=FILE says what is to be heard in one"
    )
    parser.add_argument("--classes", metavar="A,B", help="classes to draw; alone: what the bank has of them")
    parser.add_argument("--synthetic", type=int, default=0, metavar="N", help="samples of the generator for each class")
    parser.add_argument("--test", type=int, default=0, metavar="N", help="test clips of each class, of the run's data")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: RUN/pictures/DATE_TIME")
    parser.add_argument("--trust-code", action="store_true", help="run the code that RUN names by its import paths")
    parser.add_argument("--evaluate", action="store_true", help="let CLIP judge the pictures, also those of a folder")
    return parser


def _draw(given: argparse.Namespace, audio: list[str], overrides: list[str]) -> Path:
    from rich.progress import Progress

    from fed_a2v.images.gallery import SOUND, Column, draw_gallery, text_column
    from fed_a2v.images.pipelines import load_image_model, warn_of_random_prompts
    from fed_a2v.load import load_run
    from fed_a2v.storage.files import free_folder

    loaded = load_run(given.run, trust_code=given.trust_code)
    settings = image_settings(loaded, overrides)
    chosen = _subjects(loaded, given, audio, settings.seed)
    model = load_image_model(settings)
    out = given.out and given.out.expanduser()
    out = out or free_folder(loaded.folder.path / "pictures" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
    warn_of_random_prompts(loaded.settings.targets)
    columns = [
        Column(SOUND, "From sound", range(len(chosen.subjects)), loaded.adapt(chosen.embeddings)),
        text_column(chosen.subjects, loaded.targets),
    ]
    facts = {"run": loaded.folder.path.name, "round": loaded.round, "classes": loaded.classes}
    judged: list[dict[str, Any]] = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("Drawing", total=sum(len(column.rows) for column in columns))
        draw_gallery(
            out,
            model,
            chosen.subjects,
            columns,
            facts,
            lambda folder: judged.append(_evaluate(folder, settings)) if given.evaluate else None,
            lambda count: progress.advance(task, count),
        )
    for evaluation in judged:
        _show(evaluation)
    return Path(out)


def image_settings(loaded: LoadedRun, overrides: list[str]) -> ImageSettings:
    """How a run's pictures are drawn: as it did in training, else as `conf/images/` has it for its adapters.

    Raises:
        ConfigError: no image model takes the adapters' prompts, or an override is wrong.
    """
    kind = loaded.settings.adapters.image_model
    if kind is None:
        raise ConfigError(
            f"{loaded.folder.path.name} was trained with adapters={loaded.settings.adapters.name}, whose prompts no "
            "image model takes; train with adapters=sd (Stable Diffusion) or adapters=flux (FLUX)"
        )
    own = loaded.config["images"]
    return _changed(kind, None if own["name"] == "none" else own, overrides)


def _changed(kind: str, images: dict[str, Any] | None, overrides: list[str]) -> ImageSettings:
    """The image settings `images`, or those of `conf/images/`, with overrides."""
    config = compose_settings([f"adapters={kind}", f"images={kind}"]).model_dump(mode="json", by_alias=True)
    if images is not None:
        config["images"] = images
    # Only the overrides are the user's own: what stands in a folder may not refer to anything, such as `${oc.env:KEY}`.
    wanted = OmegaConf.to_container(OmegaConf.from_dotlist(overrides), resolve=True)
    assert isinstance(wanted, dict)
    return checked_settings(_merged(config, wanted)).images


def _merged(base: Mapping[Any, Any], changes: Mapping[Any, Any]) -> dict[str, Any]:
    """`base` with the values of `changes`, at any depth."""
    together = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            value = _merged(old, value)
        together[key] = value
    return together


def _subjects(loaded: LoadedRun, given: argparse.Namespace, audio: list[str], seed: int) -> Subjects:
    from fed_a2v.commands.subjects import class_list, from_files, synthetic, test_clips
    from fed_a2v.images.subjects import joined, of_classes

    names = loaded.classes
    if given.classes is not None:
        names = class_list(loaded, given.classes)
    parts = []
    if audio:
        parts.append(from_files(loaded, audio))
    if given.synthetic > 0:
        parts.append(synthetic(loaded, names, given.synthetic, seed))
    if given.test > 0:
        parts.append(test_clips(loaded, names, given.test))
    if given.classes is not None and not given.synthetic and not given.test:
        parts.append(of_classes(loaded.step, names))
    chosen = joined(parts)
    if not chosen.subjects:
        raise ConfigError(
            f"nothing to draw: the run holds no averages of {', '.join(names)}; name sound files, or --test N"
        )
    return chosen


def _evaluate(folder: Path, settings: ImageSettings) -> dict[str, Any]:
    from fed_a2v.images.evaluation import evaluate

    return evaluate(folder, settings)


def _show(evaluation: dict[str, Any]) -> None:
    from fed_a2v.images.sheet import FIGURES
    from fed_a2v.runs.table import TextTable

    def figure(found: dict[str, Any]) -> str:
        interval = found["interval"]
        return f"{found['value']:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")

    rows = tuple(
        (name, str(column["pictures"]), *(figure(column[key]) for key, _ in FIGURES))
        for name, column in evaluation["columns"].items()
    )
    title = f"What {evaluation['clip']} sees, among {len(evaluation['classes'])} classes; intervals of 95 %"
    Console().print(TextTable(title, ("from", "pictures", *(title for _, title in FIGURES)), rows).rich())
