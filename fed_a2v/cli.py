"""The `fed-a2v` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from rich.console import Console

from fed_a2v import __version__
from fed_a2v.config import ConfigError, compose_settings, conf_dir, settings_from

USAGE = """\
fed-a2v train [KEY=VALUE ...]      train across sites on this machine; -m runs a sweep over comma-separated values
fed-a2v compare [KEY=VALUE ...]    the same experiment beside plain FedAvg, prototypes only and pooled training
fed-a2v synth FOLDER               write the built-in sounds as WAV files, to listen to

Examples:
  fed-a2v train
  fed-a2v train experiment=esc50_50x1 dataset.root=/data/ESC-50
  fed-a2v train experiment=esc50_50x1 dataset=embeddings dataset.path=embeddings.npz generator=gaussian
  fed-a2v train -m generator=none,gaussian,vae seed=0,1,2
  fed-a2v train hydra.run.dir=runs/mine rounds=20      # once more goes on where it stopped
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; errors that a user can mend end in one line and exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(stderr=True)
    commands = {"train": _train, "compare": _compare, "synth": _synth}
    if not words or words[0] in ("-h", "--help", "help"):
        Console().print(USAGE, end="", highlight=False, markup=False)
        return
    if words[0] == "--version":
        Console().print(__version__, highlight=False)
        return
    if words[0] not in commands:
        console.print(f"fed-a2v: no command {words[0]!r}; choose from {', '.join(commands)}", markup=False)
        sys.exit(2)
    try:
        commands[words[0]](words[1:])
    except _mendable() as error:
        console.print(f"fed-a2v: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


def _train(words: list[str]) -> None:
    """Hand over to Hydra, after a look at the overrides that gives better messages than Hydra's own."""
    overrides = [word for word in words if not word.startswith("-")]
    if any(word in ("-h", "--help") for word in words):
        Console().print(USAGE, end="", highlight=False, markup=False)
    else:
        sweep = {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(words)
        for sample in _samples(overrides) if sweep else [overrides]:
            compose_settings(sample)
    argv, sys.argv = sys.argv, ["fed-a2v train", *words]
    try:
        _job()
    finally:
        sys.argv = argv


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def _job(config: DictConfig) -> float | None:
    """One run in Hydra's output folder; its value, for sweepers, is the final accuracy."""
    from fed_a2v.federation.engine import run_in_process
    from fed_a2v.runs.files import read_jsonl
    from fed_a2v.runs.table import rounds_table

    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        results = run_in_process(settings_from(config), folder)
    except _mendable() as error:
        # Hydra would print a traceback; a single run ends here, a sweep goes on with its next job.
        Console(stderr=True).print(f"fed-a2v: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        if HydraConfig.get().mode == hydra.types.RunMode.RUN:
            sys.exit(2)
        raise
    console = Console()
    console.print(rounds_table(read_jsonl(folder / "metrics.jsonl")).rich())
    console.print(f"Results: {folder}", markup=False, highlight=False, soft_wrap=True)
    accuracy = results["accuracy"]
    return None if accuracy is None else float(accuracy)


def _compare(words: list[str]) -> None:
    parser = argparse.ArgumentParser("fed-a2v compare", description="An experiment beside its yardsticks.")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="folder for the runs; default outputs/compare/DATE_TIME")
    parser.add_argument("--with", dest="yardsticks", default="FedAvg,prototypes,pooled", help="default: %(default)s")
    given = parser.parse_args(words)

    from fed_a2v.compare import YARDSTICKS, compare
    from fed_a2v.runs.table import comparison_table, rounds_table

    yardsticks = [name for name in given.yardsticks.split(",") if name]
    if unknown := [name for name in yardsticks if name not in YARDSTICKS]:
        raise ConfigError(f"--with={unknown[0]}: choose from {', '.join(YARDSTICKS)}")
    folder = (given.out or Path("outputs/compare") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}").absolute()
    rows = compare(given.overrides, folder, yardsticks)
    label = list(rows)[-1]
    console = Console()
    console.print(rounds_table(rows[label], f"{label}, round by round").rich())
    console.print(comparison_table(rows, "Accuracy after each round, same seed and same optimiser steps").rich())
    final = {name: run[-1].get("accuracy") for name, run in rows.items()}
    console.print(
        "Final accuracy: " + ", ".join(f"{name} {value:.3f}" for name, value in final.items() if value is not None)
    )
    console.print(f"Results: {folder}", markup=False, highlight=False, soft_wrap=True)


def _synth(words: list[str]) -> None:
    parser = argparse.ArgumentParser("fed-a2v synth", description="Write the built-in sounds in ESC-50's layout.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips-per-class", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    given = parser.parse_args(words)

    from fed_a2v.data.synth import write_wavs

    write_wavs(given.folder, seed=given.seed, clips_per_class=given.clips_per_class)
    Console().print(
        f"Wrote {10 * given.clips_per_class} clips to {given.folder / 'audio'}", markup=False, highlight=False
    )


def _samples(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides with each sweep's first value, and with its last: enough to find a wrong key or option."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    chosen: list[list[str]] = [[], []]
    for override in parsed:
        if override.key_or_group.startswith("hydra"):
            continue
        lines = [str(override.input_line)]
        if override.is_sweep_override():
            lines = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        for sample, line in zip(chosen, (lines[0], lines[-1]), strict=True):
            sample.append(line)
    return chosen


def _mendable() -> tuple[type[Exception], ...]:
    """Errors whose message tells the user what to do."""
    from fed_a2v.data.errors import DataError
    from fed_a2v.encoders.npz import ArrayFileError
    from fed_a2v.encoders.text import TargetsError
    from fed_a2v.federation.strategy import FederationError
    from fed_a2v.runs.checkpoint import CheckpointError

    return (ConfigError, DataError, ArrayFileError, TargetsError, FederationError, CheckpointError, OSError)
