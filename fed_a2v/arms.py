"""Runs of a comparison, one after the other or in several processes; the figures are the same.

Every run seeds its own random numbers and has its own folder, so a comparison that is stopped continues with the runs
that have not finished.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from fed_a2v.config.schema import Settings
from fed_a2v.errors import MENDABLE, UserError
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.pooled import pooled_rows
from fed_a2v.runs.output import Output
from fed_a2v.runs.table import accuracy_cell
from fed_a2v.storage.files import read_jsonl
from fed_a2v.storage.plain_text import say

Rows = list[dict[str, Any]]

# Memory for a process, in bytes: the libraries take half a GB, and adapters and clips a multiple of their size.
MEMORY = 2 * 10**9


class ArmError(UserError, RuntimeError):
    """A run in another process failed."""


@dataclass(frozen=True)
class Run:
    """A run of a comparison.

    Attributes:
        settings: its settings.
        folder: its folder; pooled training writes nothing.
        pooled: whether it is pooled training.
        steps: optimiser steps of pooled training in each round; None: see `pooled_rows`.
    """

    settings: Settings
    folder: Path
    pooled: bool = False
    steps: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """Its folder and that above, which has the fold and the seed."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    def rows(self, console: Console | None = None, output: Output = "full") -> Rows:
        """Run it, or read what it has left if it is finished, and return its round metrics."""
        if self.pooled:
            return pooled_rows(self.settings, self.steps)
        run_in_process(self.settings, self.folder, console, output=output)
        return read_jsonl(self.folder / "metrics.jsonl")


class RunProgress:
    """A line for each run that ends, with its number.

    Args:
        console: where the lines go.
        total: number of runs.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.done = console, total, 0

    def ended(self, run: Run, rows: Rows, seconds: float) -> None:
        """Print the line of a run."""
        self.done += 1
        last = rows[-1] if rows else {}
        say(
            self.console,
            f"{self.done}/{self.total} {run.name}: accuracy {accuracy_cell(last, 3)}, {seconds:.0f} s",
        )


def usual_jobs(settings: Settings, runs: int) -> int:
    """Number of processes for `runs` runs: one for `threads` cores, as far as there is memory; one on a GPU."""
    from joblib import cpu_count

    if settings.device != "cpu":
        return 1
    cores = cpu_count() // settings.threads
    return int(max(1, min(runs, cores, psutil.virtual_memory().available // MEMORY)))


def run_several(
    runs: Sequence[Run], jobs: int, console: Console | None = None, progress: RunProgress | None = None
) -> dict[Path, Rows]:
    """The round metrics of each run by its folder.

    Args:
        runs: runs with different folders.
        jobs: number of processes; with one, the runs follow each other in this process and show their rounds.
        console: console of the rounds.
        progress: prints a line for each run in another process.

    Raises:
        ArmError: a run in another process failed, or its process was killed; names the run.
    """
    if jobs < 2 or len(runs) < 2:
        return {run.folder: _alone(run, console, progress) for run in runs}
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    rows: dict[Path, Rows] = {}
    threads = max(run.settings.threads for run in runs)
    try:
        # Libraries such as OpenBLAS would start a thread for each core in each process.
        with parallel_config("loky", n_jobs=min(jobs, len(runs)), inner_max_num_threads=threads):
            ended = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs")(
                delayed(_in_worker)(number, run) for number, run in enumerate(runs)
            )
            for number, found, seconds in ended:
                rows[runs[number].folder] = found
                if progress is not None:
                    progress.ended(runs[number], found, seconds)
    except TerminatedWorkerError as error:
        waiting = [run.name for run in runs if run.folder not in rows]
        raise ArmError(
            f"a process was killed, perhaps for want of memory, with {len(waiting)} of {len(runs)} runs to go "
            f"({waiting[0]}, ...): the same command with --jobs 1 and --out FOLDER continues"
        ) from error
    finally:
        get_reusable_executor().shutdown(kill_workers=len(rows) < len(runs))
    return rows


def _alone(run: Run, console: Console | None, progress: RunProgress | None) -> Rows:
    """A run in this process; quiet if other runs of the comparison are in other processes."""
    began = time.monotonic()
    rows = run.rows(console, "full" if progress is None else "quiet")
    if progress is not None:
        progress.ended(run, rows, time.monotonic() - began)
    return rows


def _in_worker(number: int, run: Run) -> tuple[int, Rows, float]:
    """A run in another process: its number, its round metrics, and its seconds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C the first process decides
    began = time.monotonic()
    try:
        return number, run.rows(output="quiet"), time.monotonic() - began
    except MENDABLE as error:
        raise ArmError(f"{run.name}: {error}") from None
