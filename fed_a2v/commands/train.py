"""`fed-a2v train`: one run, or a Hydra sweep with -m. The words and their checks; `job.py` runs it."""

from __future__ import annotations

import os
import sys
from argparse import SUPPRESS, Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from fed_a2v.commands.parser import Parser, described, loading, plain_value
from fed_a2v.errors import ConfigError

USAGE = """\
fed-a2v train [KEY=VALUE ...]      train across sites on this machine, or a sweep with -m
  fed-a2v train experiment=quick
  fed-a2v train experiment=esc50_50x1 dataset.root=/data/ESC-50 --out runs/mine
  fed-a2v train -m generator=none,gaussian,vae seed=0,1,2
  fed-a2v train -m hydra/launcher=joblib hydra.launcher.n_jobs=2 seed=0,1,2,3
  fed-a2v train --config my_experiment.json seed=1
The same command again, with the same --out, resumes a stopped run.
"""
# The settings that a first user changes.
MAIN_KEYS = (
    *("dataset", "dataset.root", "partition", "partition.sites", "encoder", "adapters", "generator"),
    *("rounds", "seed", "device"),
)
# Hydra's own options: with a value, and without.
VALUED = ("--package", "--info", "--config-path", "--config-name", "--experimental-rerun")
SHORT = {"--package": "-p", "--info": "-i", "--config-path": "-cp", "--config-name": "-cn", "--run": "-r"}
FLAGS = ("--resolve", "--run", "--hydra-help", "--version")


def run(words: list[str]) -> None:
    """Check the words, for better error messages than Hydra's, and run Hydra."""
    if {"-sc", "--shell-completion"} & set(words):
        _call_hydra(words, "")
        return
    given = _parser(_main_settings() if {"-h", "--help"} & set(words) else "").parse(words)

    from fed_a2v.commands.guide_file import compose_with, read_guide, show_guide
    from fed_a2v.commands.runs import check_resumable
    from fed_a2v.commands.sweep_words import check_same, naming, samples_of, search_defaults
    from fed_a2v.config.compose import as_overrides
    from fed_a2v.config.requirements import check_requirements

    guide = read_guide(given.config)
    overrides = as_overrides([*given.overrides, *_output_folder(given)])
    sweep = given.multirun or "hydra.mode=MULTIRUN" in overrides
    try:
        samples = [compose_with(guide, sample) for sample in (samples_of(overrides) if sweep else [overrides])]
        for sample in samples:
            check_requirements(sample)
        if not sweep and (folder := _run_folder(overrides)):
            check_resumable(samples[0].as_dict(), folder)
        with loading(quiet=given.quiet or given.json):
            # Imported after the first checks: importing torch takes seconds.
            from fed_a2v.data.errors import PartitionError
            from fed_a2v.federation.server.step_factory import check_buildable
        for sample in samples:
            # In a sweep, a job with too few clips fails alone and the others run.
            with suppress(*([PartitionError] if sweep else [])):
                check_buildable(sample)
    except ConfigError as error:
        if any("=glob(" in word for word in overrides):
            raise ConfigError(f"{error}; glob(*,exclude=[OPTION]) excludes options") from error
        raise
    finally:
        if guide:
            show_guide(guide, Console(stderr=True))
    from_file = guide.overrides(overrides) if guide else []
    output = "quiet" if given.quiet else "json" if given.json else ""
    all_words = [*overrides, *search_defaults(overrides), *from_file]
    if sweep:
        all_words += naming(all_words)
        check_same(all_words, samples[0])
    # All overrides first: argparse does not accept them both before and after an option such as -m.
    _call_hydra([*all_words, *_of_hydra(given)], output)


def _parser(more: str) -> Parser:
    parser = Parser(USAGE, more)
    parser.add_argument("-m", "--multirun", action="store_true", help="a sweep: a run for each of KEY=A,B,...")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the run, or of the sweep")
    parser.add_argument("--quiet", action="store_true", help="print the result only, in one line")
    parser.add_argument("--json", action="store_true", help="print each round as a JSON object")
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="a JSON file in the guide's format"
    )
    # Read by `as_overrides` before.
    parser.add_argument("--config-dir", "-cd", metavar="FOLDER", help="folder with options of your own, as in conf/")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"), help="print the settings and end")
    for option in VALUED:
        parser.add_argument(option, *([SHORT[option]] if option in SHORT else []), help=SUPPRESS)
    for option in FLAGS:
        short = [SHORT[option]] if option in SHORT else []
        parser.add_argument(option, *short, action="store_true", help=SUPPRESS)
    return parser


def _of_hydra(given: Namespace) -> list[str]:
    """The given options of Hydra."""
    values = vars(given)
    words = [option for option in FLAGS if values[option.strip("-").replace("-", "_")]]
    for option in ("--cfg", *VALUED):
        if (value := values[option.strip("-").replace("-", "_")]) is not None:
            words += [option, value]
    return [*words, *(["--multirun"] if given.multirun else [])]


def _output_folder(given: Namespace) -> list[str]:
    """The override of Hydra's output folder that `--out` gives.

    Raises:
        ConfigError: options contradict each other.
    """
    if given.quiet and given.json:
        raise ConfigError("--quiet and --json contradict each other; keep one of them")
    if given.multirun and given.cfg:
        raise ConfigError("-m runs a sweep, and --cfg prints the settings of one run; keep one of them")
    keys = [word.lstrip("+").partition("=")[0] for word in given.overrides]
    used, unused = ("sweep", "run") if given.multirun else ("run", "sweep")
    if f"hydra.{unused}.dir" in keys and f"hydra.{used}.dir" not in keys:
        kind = "with -m, a sweep" if given.multirun else "without -m, a run"
        raise ConfigError(f"hydra.{unused}.dir: {kind} writes to hydra.{used}.dir; write --out FOLDER, for both")
    if given.out is None:
        return []
    if f"hydra.{used}.dir" in keys:
        raise ConfigError(f"--out={given.out} and hydra.{used}.dir name the same folder; keep one of them")
    path = str(given.out.expanduser()).replace("'", "\\'")
    return [f"hydra.{used}.dir='{path}'"]


def _run_folder(overrides: Sequence[str]) -> Path | None:
    """The folder that the overrides name for a run; None for the default."""
    named = [plain_value(word) for word in overrides if word.startswith("hydra.run.dir=")]
    return Path(named[-1]) if named else None


def _call_hydra(words: Sequence[str], output: str) -> None:
    """Run Hydra, which makes the folders and calls the job.

    Args:
        words: overrides and Hydra's own options.
        output: "quiet", "json" or "".
    """
    from hydra.errors import HydraException

    from fed_a2v.commands.job import job
    from fed_a2v.runs.output import OUTPUT_VARIABLE

    # The full error makes Hydra pass exceptions on unchanged, such as a folder that cannot be written.
    changes = {"HYDRA_FULL_ERROR": "1"} | ({OUTPUT_VARIABLE: output} if output else {})
    before = {name: os.environ.get(name) for name in changes}
    argv, sys.argv = sys.argv, ["fed-a2v train", *words]
    os.environ.update(changes)
    try:
        job()
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    finally:
        sys.argv = argv
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _main_settings() -> str:
    """The descriptions of `MAIN_KEYS`, for the help."""
    from fed_a2v.config.schema import Settings
    from fed_a2v.config.tree import options, sections

    def description(key: str) -> str:
        model: Any = Settings
        *path, name = key.split(".")
        for part in path:
            model = model.model_fields[part].annotation
        return str(model.model_fields[name].description)

    values = {"experiment=": f"Several settings at once. Options: {', '.join(options('experiment'))}"}
    for key in MAIN_KEYS:
        if key in sections():
            about = str(Settings.model_fields[key].annotation.__doc__).splitlines()[0].rstrip(".")
            values[f"{key}="] = f"{about}. Options: {', '.join(options(key))}"
        else:
            about = description(key)
            values[f"{key}="] = about[0].upper() + about[1:]
    return (
        f"main settings:\n{described(values)}\n\n`fed-a2v config` prints all settings with their values, and\n"
        "docs/settings.md describes them. Further options: --hydra-help\n"
    )
