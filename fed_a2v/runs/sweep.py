"""Hydra sweep: folders of the jobs, skipping of finished jobs, and the summary at the end.

The folder of a job is named after the overrides that vary, so that a sweep that is started again skips finished jobs.
The others are in `sweep.yaml`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from fed_a2v.config.compose import to_yaml
from fed_a2v.config.schema import Settings
from fed_a2v.errors import MENDABLE
from fed_a2v.runs.checkpoint import same_results
from fed_a2v.runs.compare import FAILURE, OVER_SEEDS, read_results, seeds_table, summary_table, sweep_jobs
from fed_a2v.runs.folder import RunFolder
from fed_a2v.runs.lock import FolderInUseError, hold
from fed_a2v.runs.mlflow_store import URI, database
from fed_a2v.runs.output import wanted_output
from fed_a2v.runs.sweep_plot import plot_sweep
from fed_a2v.storage.files import free_folder, write_text
from fed_a2v.storage.plain_text import one_line, say
from fed_a2v.storage.untrusted import UntrustedFileError, read_yaml

log = logging.getLogger("fed_a2v")

# Bytes; longer folder names are shortened. File systems allow 255, some 143.
LONGEST_NAME = 120
# The overrides of a sweep: those of all jobs, and those that vary.
SWEEP = "sweep.yaml"


def job_folder(overrides: str) -> str:
    """Folder name of the job with these overrides, KEY=VALUE,KEY=VALUE,...

    Of the path of a folder it has the last part, of that of a file the last two.

    Names that are cut, or in which letters are replaced, end in a checksum, so that different jobs have different ones.
    """
    if not overrides:
        return "job"
    words = re.split(r",(?=[+~]*[\w@./-]+=)", overrides)
    name = ",".join(_as_name(*word.partition("=")) for word in words)
    if name == overrides and len(name.encode()) <= LONGEST_NAME:
        return name
    return f"{_cut(name, LONGEST_NAME - 9)}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"


def _as_name(key: str, sign: str, value: str) -> str:
    plain = value.strip("'\"")
    if "/" in plain and not plain.startswith(("[", "{")):
        above, last = f"/{plain.rstrip('/')}".split("/")[-2:]
        plain = f"{above}_{last}" if Path(last).suffix else last
    plain = re.sub(r"[^\w.,+-]+", "_", plain)
    key = re.sub(r"[^\w.+-]", "_", key)
    return f"{key}{sign}{plain if plain == value else plain.strip('_')}"


def _cut(text: str, most: int) -> str:
    return text.encode()[:most].decode(errors="ignore").rstrip("_,")


# Registered in every process that runs a job, including workers, since Hydra imports the callback below.
OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
# Runs that start in the same second get different folders; `use_cache` keeps the folder fixed within a run.
OmegaConf.register_new_resolver("free_folder", lambda path: str(free_folder(Path(path))), replace=True, use_cache=True)


def run_job(settings: Settings, folder: Path, run: Callable[[Settings, Path], dict[str, Any]]) -> dict[str, Any]:
    """Run a job of a sweep, unless its folder has the results of the same settings.

    Args:
        settings: settings of the job. Without a W&B group or an MLflow database, the job gets those of the sweep.
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
    if settings.tracking.mlflow and not (settings.tracking.mlflow_uri or os.environ.get(URI)):
        shared = {"mlflow_uri": database(folder.absolute().parent)}  # one database for all jobs
        settings = settings.model_copy(update={"tracking": settings.tracking.model_copy(update=shared)})
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


def key_of(word: str) -> str:
    """The key, or group, of an override."""
    return word.partition("=")[0].lstrip("+~")


def sweep_words(folder: Path) -> dict[str, list[str]] | None:
    """The overrides of the sweep in a folder: `same` in all jobs, and `varied`; None if no sweep has begun there.

    Raises:
        UntrustedFileError: the file is damaged.
    """
    path = folder / SWEEP
    if not path.is_file():
        return None
    found = read_yaml(path)
    return {kind: [str(word) for word in found.get(kind) or []] for kind in ("same", "varied")}


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

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the first job: writes the overrides of the sweep to its folder."""
        del kwargs
        same = set(config.hydra.job.config.override_dirname.exclude_keys)
        words = list(config.hydra.overrides.task)
        parts = {
            kind: [word for word in words if (key_of(word) in same) == (kind == "same")] for kind in ("same", "varied")
        }
        write_text(Path(config.hydra.sweep.dir).absolute() / SWEEP, to_yaml(parts))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra when all jobs are done."""
        del kwargs
        summarise(Path(config.hydra.sweep.dir).absolute())


def summarise(folder: Path) -> None:
    """Write `summary.csv`, `.md`, `.tex` and `.png` to a sweep's folder, with several seeds also `by_seed.csv`.

    The table on the console, in `summary.tex` and first in `summary.md` has a row for each setting, with its seeds
    together, or for each job if no seed varies.

    Raises:
        FileNotFoundError: the folder has no jobs.
        SystemExit: a job failed.
    """
    console = Console(stderr=wanted_output() == "json")  # with --json, standard output has only the rounds
    jobs = sweep_jobs(folder)
    table = summary_table(jobs, f"Sweep in {folder}")
    write_text(folder / "summary.csv", summary_table(jobs, full=True).csv())
    grouped = seeds_table(jobs, f"Sweep in {folder}")
    usual = ["job", "reason", *(["status"] if all(job.status == "done" for job in jobs) else [])]
    shown = table.without(*usual) if grouped is None else grouped
    if (figures := seeds_table(jobs, full=True)) is not None:
        write_text(folder / "by_seed.csv", figures.csv())
    text = table.markdown() if grouped is None else f"{grouped.markdown()}\n{OVER_SEEDS}\n\n{table.markdown()}"
    write_text(folder / "summary.md", text)
    said = "Accuracy after the last round." if grouped is None else f"Accuracy after the last round. {OVER_SEEDS}"
    write_text(folder / "summary.tex", shown.fitting().latex(said, "tab:sweep"))
    console.print(shown.fitting().rich())
    if grouped is not None:
        say(console, OVER_SEEDS, wrap=True)
    if best := best_of_search(folder):
        say(console, best)
    picture = plot_sweep(jobs, folder / "summary.png")
    if picture:
        say(console, f"Plot: {picture}")
    say(console, f"Summary: {folder / 'summary.md'}")
    if failed := [job for job in jobs if job.status == "failed"]:
        reasons = (f"  {job.name}: {job.reason or 'exited without an error message'}" for job in failed)
        say(Console(stderr=True), f"fed-a2v: {len(failed)} of {len(jobs)} jobs failed:", *reasons, style="red")
        sys.exit(1)


def best_of_search(folder: Path) -> str:
    """What Optuna has found, in one line; "" if the sweep was no search.

    Raises:
        UntrustedFileError: the file is damaged.
    """
    path = folder / "optimization_results.yaml"
    if not path.is_file():
        return ""
    found = read_yaml(path)
    parameters, value = found.get("best_params"), found.get("best_value")
    if not isinstance(parameters, dict) or not isinstance(value, float):  # several objectives
        return ""
    return f"Best found: {' '.join(f'{key}={each}' for key, each in parameters.items())} (accuracy {value:.4f})"


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
