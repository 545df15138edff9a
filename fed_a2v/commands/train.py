"""`fed-a2v train`: one run, or with -m a Hydra sweep."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from rich.console import Console

from fed_a2v.commands.errors import mendable
from fed_a2v.commands.guide_file import compose_with, show_guide, take_guide
from fed_a2v.config import ConfigError, conf_dir, settings_from

USAGE = """\
fed-a2v train [KEY=VALUE ...]      train across sites on this machine; -m runs a sweep over comma-separated values
  fed-a2v train
  fed-a2v train experiment=esc50_50x1 dataset.root=/data/ESC-50
  fed-a2v train experiment=esc50_50x1 dataset=embeddings dataset.path=embeddings.npz generator=gaussian
  fed-a2v train -m generator=none,gaussian,vae seed=0,1,2
  fed-a2v train hydra.run.dir=runs/mine rounds=20      # once more goes on where it stopped
  fed-a2v train --config my_experiment.json seed=1     # a file in the guide's format; what is typed wins
"""


def run(words: list[str]) -> None:
    """Hand over to Hydra, after a look at the overrides that gives better messages than Hydra's own."""
    words, guide = take_guide(words)
    if any(word in ("-h", "--help") for word in words):
        Console().print(USAGE, end="", highlight=False, markup=False, soft_wrap=True)
    elif not {"-sc", "--shell-completion"} & set(words):
        from fed_a2v.federation.build import check_buildable

        overrides = [word for word in words if not word.startswith("-")]
        sweep = {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(words)
        try:
            for sample in _samples(overrides) if sweep else [overrides]:
                check_buildable(compose_with(guide, sample))
        finally:
            if guide:
                show_guide(guide, Console(stderr=True))
        if guide:
            words = [*guide.overrides(overrides), *words]
    argv, sys.argv = sys.argv, ["fed-a2v train", *words]
    # Errors come out of Hydra as they are (a folder that it cannot write, for one), for `cli.py` to explain.
    full = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        _job()
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    finally:
        sys.argv = argv
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def _job(config: DictConfig) -> float | None:
    """One run in Hydra's output folder; its value, for sweepers, is the final accuracy."""
    from fed_a2v.federation.engine import run_in_process
    from fed_a2v.runs.files import read_jsonl
    from fed_a2v.runs.table import rounds_table

    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        results = run_in_process(settings_from(config), folder)
    except mendable() as error:
        # Hydra would print a traceback; a single run ends here, a sweep goes on with its next job.
        Console(stderr=True).print(f"fed-a2v: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        if HydraConfig.get().mode == hydra.types.RunMode.RUN:
            sys.exit(2)
        raise
    console = Console()
    console.print(rounds_table(read_jsonl(folder / "metrics.jsonl")).rich())
    console.print(f"Results: {folder}", markup=False, highlight=False, soft_wrap=True)
    if (report := folder / "report.html").is_file():
        console.print(f"Report: {report}", markup=False, highlight=False, soft_wrap=True)
    accuracy = results["accuracy"]
    return None if accuracy is None else float(accuracy)


def _samples(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides with each sweep's first value, and with its last: enough to find a wrong key or option."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    chosen: list[list[str]] = [[], []]
    for override in parsed:
        lines = [str(override.input_line)]
        if override.is_sweep_override():
            lines = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        for sample, line in zip(chosen, (lines[0], lines[-1]), strict=True):
            sample.append(line)
    return chosen
