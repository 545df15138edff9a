"""The job that Hydra runs for `fed-a2v train`: one run in its output folder."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from fed_a2v.commands.parser import loading
from fed_a2v.config.compose import conf_dir, settings_from
from fed_a2v.config.own_class import explained
from fed_a2v.config.schema import Settings
from fed_a2v.errors import Stopped, interrupted
from fed_a2v.runs.output import wanted_output
from fed_a2v.storage.plain_text import say


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def job(config: DictConfig) -> float | None:
    """One run in Hydra's output folder; returns the final accuracy for sweepers, on validation clips if any.

    Raises:
        Stopped: Ctrl-C ended the run.
    """
    # Imported here, since Hydra's completion and its other options need none of it.
    with loading(quiet=wanted_output() != "full"):
        from fed_a2v.callbacks.progress import result_line
        from fed_a2v.federation.simulation import run_in_process
        from fed_a2v.runs.exchange import exchange_lines
        from fed_a2v.runs.rounds import closing_lines
        from fed_a2v.runs.speed import speed_line
        from fed_a2v.runs.sweep import key_of, run_job
        from fed_a2v.runs.table import rounds_table
        from fed_a2v.storage.files import read_jsonl

    folder, output = Path(HydraConfig.get().runtime.output_dir), wanted_output()
    sweep = HydraConfig.get().mode == hydra.types.RunMode.MULTIRUN
    errors, title = _console(), _title()
    if title and output == "full":
        same = HydraConfig.get().job.config.override_dirname.exclude_keys
        overrides = " ".join(word for word in HydraConfig.get().overrides.task if key_of(word) not in same)
        say(errors, f"{title}: {overrides}", style="bold")

    alone = output == "full" and not title  # then the table and the paths are printed below

    def run(settings: Settings, folder: Path) -> dict[str, Any]:
        return run_in_process(settings, folder, errors, output=output, title=title, announce=not alone)

    try:
        settings = settings_from(config)
        results = run_job(settings, folder, run) if sweep else run(settings, folder)
    except (Exception, KeyboardInterrupt) as error:
        if interrupted(error):
            raise Stopped(Path(HydraConfig.get().sweep.dir).absolute() if sweep else folder) from error
        message = explained(error)
        if not sweep and message is None:
            raise
        # Hydra would print a traceback. A single run ends here; a sweep continues with its next job.
        say(Console(stderr=True), f"fed-a2v: {error if message is None else message}", style="red")
        if not sweep:
            sys.exit(2)
        if HydraConfig.get().runtime.choices["hydra/sweeper"] != "basic":
            raise  # a search must not use NaN as a result
        return math.nan
    console = Console()
    if alone:
        rows = read_jsonl(folder / "metrics.jsonl")
        console.print(rounds_table(rows).rich())
        exchanged = [f"{line}." for line in exchange_lines(config, rows)]
        speeds = [f"{line}."] if (line := speed_line(rows)) else []
        for line in [*closing_lines(rows, results), *exchanged, *speeds]:
            say(console, line, wrap=True)
        say(console, f"Results: {folder}")
        if (report := folder / "report.html").is_file():
            say(console, f"Report: {report}")
    elif output != "json":
        say(console, f"{title}: {result_line(results, folder)}" if title else result_line(results, folder))
    # A sweeper chooses settings, so it gets validation accuracy if there are validation clips.
    validation = results.get("accuracy_validation")
    accuracy = results["accuracy"] if validation is None else validation
    return None if accuracy is None else float(accuracy)


def _title() -> str:
    """Name of a sweep's job; "" for a single run."""
    hydra_config = HydraConfig.get()
    return f"Job {hydra_config.job.num}" if hydra_config.mode == hydra.types.RunMode.MULTIRUN else ""


def _console() -> Console:
    """Standard error; without a live view if several jobs of a sweep run in parallel."""
    hydra_config = HydraConfig.get()
    sweep = hydra_config.mode == hydra.types.RunMode.MULTIRUN
    parallel = sweep and not str(hydra_config.launcher.get("_target_", "")).endswith("BasicLauncher")
    return Console(stderr=True, force_terminal=False) if parallel else Console(stderr=True)
