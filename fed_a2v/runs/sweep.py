"""Hydra sweep: folders of the jobs, skipping of finished jobs, and the summary at the end.

The folder of a job is named after its overrides, so that a sweep that is started again skips finished jobs.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from fed_a2v.config.schema import Settings
from fed_a2v.errors import MENDABLE
from fed_a2v.runs.checkpoint import same_results
from fed_a2v.runs.compare import FAILURE, read_results, summary_table, sweep_jobs
from fed_a2v.runs.folder import RunFolder
from fed_a2v.runs.lock import FolderInUseError, hold
from fed_a2v.runs.output import wanted_output
from fed_a2v.runs.sweep_plot import plot_sweep
from fed_a2v.storage.files import free_folder, write_text
from fed_a2v.storage.plain_text import one_line, say
from fed_a2v.storage.untrusted import UntrustedFileError

log = logging.getLogger("fed_a2v")

# Longer folder names are shortened.
LONGEST_NAME = 60


def job_folder(overrides: str) -> str:
    """Folder name of the job with these overrides, KEY=VALUE,KEY=VALUE,..."""
    if not overrides:
        return "job"
    name = re.sub(r"[^\w.,=+-]", "_", overrides)
    if name == overrides and len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"


# Registered in every process that runs a job, including workers, since Hydra imports the callback below.
OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
# Runs that start in the same second get different folders; `use_cache` keeps the folder fixed within a run.
OmegaConf.register_new_resolver("free_folder", lambda path: str(free_folder(Path(path))), replace=True, use_cache=True)


def run_job(settings: Settings, folder: Path, run: Callable[[Settings, Path], dict[str, Any]]) -> dict[str, Any]:
    """Run a job of a sweep, unless its folder has the results of the same settings.

    Args:
        settings: settings of the job. Without a W&B group, the job gets the group of the sweep.
        folder: folder of the job, in the folder of the sweep.
        run: function that runs an experiment in its folder and returns its results.

    Returns:
        The results.

    Raises:
        Exception: any exception of `run`; the reason is also written to the folder.
    """
    if settings.wandb.group is None:
        group = settings.wandb.model_copy(update={"group": folder.absolute().parent.name})
        settings = settings.model_copy(update={"wandb": group})
    (folder / FAILURE).unlink(missing_ok=True)
    same = _same_settings(folder, settings)
    if same and (done := read_results(folder)) is not None:
        log.info("Already finished: %s", folder)
        return done
    if not same:  # the folder is from other settings, such as older defaults: start again
        settings = settings.model_copy(update={"resume": "never"})
    try:
        return run(settings, folder)
    except FolderInUseError:  # the folder belongs to another process: write nothing to it
        raise
    except Exception as error:
        lines = [_reason(error), "", *traceback.format_exc().split("\n")]
        write_text(folder / FAILURE, "\n".join(map(one_line, lines)))
        raise


class SummaryCallback(Callback):
    """Hydra callback: writes a table and a plot of the jobs after a sweep; exit code 1 if a job failed."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before it writes the overrides of a run: refuses the folder of another run in progress."""
        del kwargs
        folder = Path(config.hydra.run.dir)
        try:
            if folder.is_dir():
                with hold(folder):
                    pass
        except FolderInUseError as error:
            say(Console(stderr=True), f"fed-a2v: {error}", style="red")
            sys.exit(2)
        except OSError:  # the run itself reports it
            pass

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra when all jobs are done."""
        del kwargs
        summarise(Path(config.hydra.sweep.dir).absolute())


def summarise(folder: Path) -> None:
    """Write `summary.csv`, `summary.md` and `summary.png` to a sweep's folder, and print the table.

    Raises:
        FileNotFoundError: the folder has no jobs.
        SystemExit: a job failed.
    """
    console = Console(stderr=wanted_output() == "json")  # with --json, standard output has only the rounds
    jobs = sweep_jobs(folder)
    table = summary_table(jobs, f"Sweep in {folder}")
    write_text(folder / "summary.csv", summary_table(jobs, full=True).csv())
    write_text(folder / "summary.md", table.markdown())
    console.print(table.without("job", "reason").rich())
    picture = plot_sweep(jobs, folder / "summary.png")
    if picture:
        say(console, f"Plot: {picture}")
    say(console, f"Summary: {folder / 'summary.md'}")
    if failed := [job for job in jobs if job.status == "failed"]:
        reasons = (f"  {job.name}: {job.reason or 'exited without an error message'}" for job in failed)
        say(Console(stderr=True), f"fed-a2v: {len(failed)} of {len(jobs)} jobs failed:", *reasons, style="red")
        sys.exit(1)


def _same_settings(folder: Path, settings: Settings) -> bool:
    """Whether the folder has a run with the same settings, as far as they affect its results."""
    try:
        return same_results(RunFolder(folder).read_config(), settings.as_dict())
    except FileNotFoundError:
        return True
    except (OSError, UntrustedFileError):
        return False


def _reason(error: Exception) -> str:
    """The error's message, after its type unless the user can fix it."""
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text if isinstance(error, MENDABLE) else f"{type(error).__name__}: {text}"
