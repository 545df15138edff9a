"""`fed-a2v generate`: images from the prompts that a run's adapters produce for sounds."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fed_a2v.commands.parser import Parser, loading
from fed_a2v.commands.runs import check_one_run
from fed_a2v.core.names import nearest
from fed_a2v.errors import ConfigError
from fed_a2v.storage.plain_text import say

if TYPE_CHECKING:
    from fed_a2v.config.sections.output import ImageSettings
    from fed_a2v.images.subjects import Subjects
    from fed_a2v.load import LoadedRun

USAGE = """\
fed-a2v generate RUN [AUDIO ...]   generate images of sounds, and of the true text prompts
  fed-a2v generate outputs/mine dog.wav rain=storm.wav images.steps=20
  fed-a2v generate outputs/mine --classes dog,rain --synthetic 4
  fed-a2v generate outputs/mine --test 2 --evaluate
"""


def run(words: list[str]) -> None:
    """Generate the images, score them with --evaluate, and print where they are."""
    given = _parser().parse(words)
    overrides = [word for word in given.audio if word.startswith("images.") and "=" in word]
    audio = [word for word in given.audio if word not in overrides]
    sources = bool(audio) or given.classes is not None or given.synthetic > 0 or given.test > 0
    check_one_run(given.run)
    if not sources and not (given.run / "pictures.json").is_file():
        raise ConfigError("nothing to generate: name sound files, --classes A,B, --synthetic N or --test N")
    _check_words(audio, overrides)
    with loading():
        from fed_a2v.images.gallery import read_gallery, write_sheet

    if (given.run / "pictures.json").is_file():
        if sources or not given.evaluate:
            raise ConfigError(f"{given.run} contains images: score them with --evaluate, or name the folder of a run")
        images = read_gallery(given.run)["images"]
        _show(_evaluate(given.run, _changed(images["name"], images, overrides)))
        write_sheet(given.run)
        folder = given.run
    else:
        folder = _draw(given, audio, overrides)
    say(Console(), f"Images: {folder / 'index.html'}")


def _check_words(audio: Sequence[str], overrides: Sequence[str]) -> None:
    """Check what the words alone show, before torch is imported.

    Raises:
        ConfigError: a sound file is missing, or a setting is not one of the image model.
    """
    from fed_a2v.config.tree import known_keys

    known = known_keys()
    for word in overrides:
        key = word.partition("=")[0]
        if key not in known:
            near = nearest(key, [name for name in known if name.startswith("images.")])
            raise ConfigError(f"unknown key {key} in {word!r}; did you mean {near}?")
    for word in audio:
        key, _, value = word.partition("=")
        ends = [word, *(word.split("=", count)[-1] for count in range(1, word.count("=") + 1))]
        if any(Path(end).expanduser().is_file() for end in ends):
            continue
        if value and key in known:
            raise ConfigError(f"{word!r}: the run has its settings; fed-a2v generate changes images.KEY=VALUE only")
        raise ConfigError(f"{ends[-1]}: no such sound file; write FILE, or CLASS=FILE to set the class of the sound")


def _parser() -> Parser:
    parser = Parser(USAGE, "The image model has settings as in training: images.seed=1 images.model=FOLDER\n")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder or a checkpoint in it")
    parser.add_argument(
        "audio", nargs="*", default=[], metavar="AUDIO", help="sound files; CLASS=FILE sets the class of a sound"
    )
    parser.add_argument("--classes", metavar="A,B", help="classes; alone: their prototypes in the bank")
    parser.add_argument("--synthetic", type=int, default=0, metavar="N", help="samples of the generator per class")
    parser.add_argument("--test", type=int, default=0, metavar="N", help="test clips of the run's data per class")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: RUN/pictures/DATE_TIME")
    parser.add_argument("--trust-code", action="store_true", help="import the classes that RUN names by import path")
    parser.add_argument("--evaluate", action="store_true", help="score the images with CLIP; RUN may be their folder")
    return parser


def _draw(given: argparse.Namespace, audio: list[str], overrides: list[str]) -> Path:
    from rich.progress import Progress

    from fed_a2v.images.gallery import SOUND, Column, draw_gallery, text_column
    from fed_a2v.images.pipelines import load_image_model, warn_of_random_prompts
    from fed_a2v.load import load_run

    loaded = load_run(given.run, trust_code=given.trust_code)
    settings = image_settings(loaded, overrides)
    chosen = _subjects(loaded, given, audio, settings.seed)
    model = load_image_model(settings)
    warn_of_random_prompts(loaded.settings.targets)
    columns = [
        Column(SOUND, "From sound", range(len(chosen.subjects)), loaded.adapt(chosen.embeddings)),
        text_column(chosen.subjects, loaded.targets),
    ]
    facts = {"run": loaded.folder.path.name, "round": loaded.round, "classes": loaded.classes}
    evaluations: list[dict[str, Any]] = []
    default = loaded.folder.path / "pictures" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    with (
        _free_folder(default) if given.out is None else nullcontext(given.out.expanduser()) as out,
        Progress(console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task("Generating", total=sum(len(column.rows) for column in columns))
        draw_gallery(
            out,
            model,
            chosen.subjects,
            columns,
            facts,
            lambda folder: evaluations.append(_evaluate(folder, settings)) if given.evaluate else None,
            lambda count: progress.advance(task, count),
        )
    for evaluation in evaluations:
        _show(evaluation)
    return Path(out)


@contextmanager
def _free_folder(path: Path) -> Iterator[Path]:
    """`free_folder`, which is removed if the block raises and has written nothing."""
    from fed_a2v.storage.files import free_folder

    folder = free_folder(path)
    try:
        yield folder
    except BaseException:
        with suppress(OSError):  # not empty
            folder.rmdir()
            folder.parent.rmdir()
        raise


def image_settings(loaded: LoadedRun, overrides: list[str]) -> ImageSettings:
    """Image settings of a run: its own, else those in `conf/images/` for its adapters, with overrides.

    Raises:
        ConfigError: no image model accepts the adapters' prompts, or an override is wrong.
    """
    kind = loaded.settings.adapters.image_model
    if kind is None:
        raise ConfigError(
            f"{loaded.folder.path.name} was trained with adapters={loaded.settings.adapters.name}, whose prompts no "
            "image model accepts; train with adapters=sd (Stable Diffusion) or adapters=flux (FLUX)"
        )
    own = loaded.config["images"]
    return _changed(kind, None if own["name"] == "none" else own, overrides)


def _changed(kind: str, images: dict[str, Any] | None, overrides: list[str]) -> ImageSettings:
    """The image settings `images`, by default those of `conf/images/`, with overrides."""
    from omegaconf import OmegaConf

    from fed_a2v.config.compose import checked_settings, compose_settings

    config = compose_settings([f"adapters={kind}", f"images={kind}"]).as_dict()
    if images is not None:
        config["images"] = images
    # Interpolations such as `${oc.env:KEY}` are resolved in the user's overrides only: a folder may be untrusted.
    changes = OmegaConf.to_container(OmegaConf.from_dotlist(overrides), resolve=True)
    assert isinstance(changes, dict)
    return checked_settings(_merged(config, changes)).images


def _merged(base: Mapping[Any, Any], changes: Mapping[Any, Any]) -> dict[str, Any]:
    """`base` with the values of `changes`, at any depth."""
    merged = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            value = _merged(old, value)
        merged[key] = value
    return merged


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
            f"nothing to generate: the run has no prototypes of {', '.join(names)}; name sound files, or --test N"
        )
    return chosen


def _evaluate(folder: Path, settings: ImageSettings) -> dict[str, Any]:
    from fed_a2v.images.evaluation import evaluate

    return evaluate(folder, settings)


def _show(evaluation: dict[str, Any]) -> None:
    from fed_a2v.images.sheet import FIGURES
    from fed_a2v.runs.table import TextTable

    def figure(estimate: dict[str, Any]) -> str:
        interval = estimate["interval"]
        return f"{estimate['value']:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")

    rows = tuple(
        (name, str(column["pictures"]), *(figure(column[key]) for key, _ in FIGURES))
        for name, column in evaluation["columns"].items()
    )
    title = f"{evaluation['clip']} among {len(evaluation['classes'])} classes, 95 % intervals"
    Console().print(TextTable(title, ("from", "images", *(title for _, title in FIGURES)), rows).rich())
