"""Reads several runs for comparisons: the settings in which they differ, their results, and the jobs of a sweep.

Used by the table and the plot of a sweep, the report and `compare_runs`.
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fed_a2v.config.tree import dotted_items
from fed_a2v.runs.folder import RunFolder
from fed_a2v.runs.intervals import finite_ends, mean_interval
from fed_a2v.runs.rounds import fully_evaluated
from fed_a2v.runs.table import TextTable, accuracy_cell, figure_cell
from fed_a2v.storage.files import numbers
from fed_a2v.storage.untrusted import UntrustedFileError

_QUOTED = re.compile(r"""^(['"])(.*)\1$""", re.DOTALL)
# Written by Hydra to the folder of each job.
OVERRIDES = ".hydra/overrides.yaml"
# Levels below a folder in which runs are looked for: a cross-validation has a folder for each fold and seed.
DEEPEST = 3
# The first columns of a table of runs.
FIRST_FIGURES = ("accuracy", "accuracy_low", "accuracy_high", "test_clips")
# In the folder of a job that failed: the reason in one line, and the traceback.
FAILURE = "failure.txt"
# The override that repeats a setting.
SEED = "seed"
# Note below `seeds_table`.
OVER_SEEDS = (
    "Mean ± standard deviation over the seeds, and the 95 % interval of the mean accuracy: it covers other seeds, not "
    "other clips."
)
# The figures of a sweep that fit on a page.
SHOWN_FIGURES = ("accuracy", "accuracy_at_5", "accuracy_before", "t5/accuracy", "loss", "privacy/epsilon", "seconds")


def differing(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys whose values differ between runs; a missing key counts as None."""
    keys = dict.fromkeys(key for run in runs for key in run)
    # As text, since lists cannot be in a set.
    return [key for key in keys if len({repr(run.get(key)) for run in runs}) > 1]


def find_runs(folder: Path) -> list[Path]:
    """The folders of runs, finished or not, in a folder: itself, or up to three levels below it, in natural order.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; choose the folder of a run, a comparison or a sweep")
    found: list[Path] = []
    for name, below, files in os.walk(folder):  # follows no links
        place = Path(name)
        is_run = "metrics.jsonl" in files or (place / OVERRIDES).is_file()
        if is_run:
            found.append(place)
        if is_run or len(place.relative_to(folder).parts) == DEEPEST:
            below.clear()
    return sorted(found, key=lambda path: natural(path.relative_to(folder).as_posix()))


def run_rows(folders: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """A row for each finished run: accuracy, the settings in which the runs differ, and the other results.

    Settings are under their dotted keys.

    Raises:
        FileNotFoundError: a run has not finished: it has no `results.json`.
    """
    settings = [dict(dotted_items(folder.read_config())) for folder in folders]
    results = [folder.read_results() for folder in folders]
    keys = differing(settings)
    first = [key for key in FIRST_FIGURES if any(key in row for row in results)]
    return [
        {key: row.get(key) for key in first} | {key: each.get(key) for key in keys} | row
        for each, row in zip(settings, results, strict=True)
    ]


def natural(text: str) -> list[tuple[bool, float, str]]:
    """Sort key: numbers by size and before words, also within words: 0.003, 0.02, 9, 10, seed=9, seed=10."""
    try:
        return [(False, float(text), text)]
    except ValueError:
        parts = [part for part in re.split(r"(\d+(?:\.\d+)?)", text) if part]
        return [(False, float(part), part) if part[0].isdecimal() else (True, 0.0, part) for part in parts]


def read_results(folder: Path) -> dict[str, Any] | None:
    """The content of a run's `results.json`; None if the file is missing or incomplete."""
    try:
        return RunFolder(folder).read_results()
    except (OSError, UntrustedFileError):
        return None


@dataclass(frozen=True)
class SweepJob:
    """A job of a sweep.

    Attributes:
        name: name of its folder.
        status: "done", "failed" (no readable `results.json`) or "missing" (a gap in the numbers).
        overrides: overrides by key.
        results: the numbers in `results.json`.
        reason: reason of a failure, in one line; "" if unknown.
    """

    name: str
    status: str
    overrides: Mapping[str, str]
    results: Mapping[str, Any]
    reason: str


def sweep_jobs(folder: Path) -> list[SweepJob]:
    """The jobs of a Hydra sweep, in the order of their numbers, or else of the overrides in which they differ.

    Args:
        folder: the sweep's folder, with a folder per job in it.

    Raises:
        FileNotFoundError: the folder has no jobs.
    """
    paths = {
        path.name: path
        for path in folder.iterdir()
        if path.is_dir() and (path.name.isdecimal() or (path / OVERRIDES).is_file())
    }
    if not paths:
        raise FileNotFoundError(f"no jobs in {folder}: no folder in it has a {OVERRIDES}")
    last = max((int(name) for name in paths if name.isdecimal()), default=-1)
    jobs = [_job(name, paths.get(name)) for name in sorted({*paths, *map(str, range(last + 1))}, key=natural)]
    if last < 0:
        # After a sweep was extended by another override, a job may be there under its old name, too.
        jobs = list({tuple(sorted(job.overrides.items())): job for job in jobs}.values())
        keys = differing([job.overrides for job in jobs])
        jobs.sort(key=lambda job: [natural(job.overrides.get(key, "")) for key in keys])
    return jobs


def _job(name: str, path: Path | None) -> SweepJob:
    if path is None:
        return SweepJob(name, "missing", {}, {}, "")
    failure = path / FAILURE
    words = OmegaConf.to_container(OmegaConf.load(path / OVERRIDES)) if (path / OVERRIDES).is_file() else []
    parted = (str(word).lstrip("+~").partition("=") for word in words or [])
    overrides = {key: _QUOTED.sub(r"\2", value) for key, _, value in parted}
    if (results := read_results(path)) is not None:
        return SweepJob(name, "done", overrides, numbers(results), "")
    reason = failure.read_text(encoding="utf-8").split("\n", 1)[0] if failure.is_file() else ""
    return SweepJob(name, "failed", overrides, {}, reason)


def summary_table(jobs: Sequence[SweepJob], title: str = "", full: bool = False) -> TextTable:
    """The jobs of a sweep: status, the overrides that differ between jobs, the final figures, and why jobs failed.

    Args:
        jobs: jobs, see `sweep_jobs`.
        title: the table's title.
        full: whether to show every figure with all its digits, instead of `SHOWN_FIGURES` with four.
    """
    started = [job.overrides for job in jobs if job.status != "missing"]
    settings = varied(jobs) or list(dict.fromkeys(key for overrides in started for key in overrides))
    every = list(dict.fromkeys(key for job in jobs for key in job.results if key not in settings))
    figures = every if full else [key for key in SHOWN_FIGURES if key in every] or every
    header = ("job", "status", *settings, *figures, *(["reason"] if any(job.reason for job in jobs) else []))

    def cell(row: Mapping[str, Any], key: str) -> str:
        if key == "accuracy" and not full:
            return accuracy_cell(row, 4)
        return figure_cell(row.get(key), None if full else 4)

    short = {key: distinct([job.overrides.get(key, "-") for job in jobs]) for key in settings if not full}

    def value(job: SweepJob, key: str) -> str | None:
        given = job.overrides.get(key)
        return given if given is None or full else short[key][given]

    rows = [
        {**job.results, **{key: value(job, key) for key in settings}}
        | {"job": job.name, "status": job.status, "reason": job.reason or None}
        for job in jobs
    ]
    return TextTable(title, header, tuple(tuple(cell(row, key) for key in header) for row in rows))


def varied(jobs: Sequence[SweepJob]) -> list[str]:
    """The overrides that differ between jobs."""
    return differing([job.overrides for job in jobs if job.status != "missing"])


def groups(jobs: Sequence[SweepJob]) -> dict[tuple[str, ...], list[SweepJob]]:
    """The jobs by the values of what varies but the seed, in the order of the jobs."""
    keys = [key for key in varied(jobs) if key != SEED]
    found: dict[tuple[str, ...], list[SweepJob]] = {}
    for job in jobs:
        if job.status != "missing":
            found.setdefault(tuple(job.overrides.get(key, "-") for key in keys), []).append(job)
    return found


def distinct(values: Sequence[str]) -> dict[str, str]:
    """Short forms: of paths without the folders, and the file, that all have, of numbers with many digits rounded."""
    several = sorted(set(values) - {"-"})
    same = {value: value for value in values}
    rounded = {value: f"{float(value):.4g}" for value in several if re.fullmatch(r"-?\d+\.\d{6,}(e-?\d+)?", value)}
    if len(set(rounded.values())) == len(rounded):
        same |= rounded
    if len(several) < 2 or not all(value.startswith(("/", "~/")) for value in several):
        return same
    parts = [value.split("/") for value in several]
    left, right = _equal(parts), _equal([part[::-1] for part in parts])
    right = min(right, min(map(len, parts)) - left - 1)
    kept = ["/".join(part[left : len(part) - max(0, right)]) or "/".join(part) for part in parts]
    return same | dict(zip(several, kept, strict=True))


def _equal(sequences: Sequence[Sequence[str]]) -> int:
    """Number of first items that all sequences have."""
    columns = enumerate(zip(*sequences, strict=False))
    return next((place for place, items in columns if len(set(items)) > 1), min(map(len, sequences)))


def accuracies(jobs: Sequence[SweepJob], figure: str = "accuracy") -> list[float]:
    """The accuracy of each job that is done and covers all sites: on fewer clips it is not comparable with others."""
    whole = [job.results for job in jobs if job.status == "done" and fully_evaluated(job.results)]
    return [float(results[figure]) for results in whole if results.get(figure) is not None]


def seeds_table(jobs: Sequence[SweepJob], title: str = "", full: bool = False) -> TextTable | None:
    """The settings of a sweep, with their seeds together; None if no seed varies.

    Args:
        jobs: jobs, see `sweep_jobs`.
        title: the table's title.
        full: whether to show the parts of each figure in columns of their own, with all digits.
    """
    if SEED not in varied(jobs):
        return None
    keys = [key for key in varied(jobs) if key != SEED]
    every = ("accuracy", "accuracy_before", "t5/accuracy") if full else ("accuracy", "t5/accuracy")  # 80 columns
    figures = [key for key in every if any(key in job.results for job in jobs)]
    short = {key: distinct([job.overrides.get(key, "-") for job in jobs]) for key in keys}
    rows = []
    for values, of_group in groups(jobs).items():
        found = accuracies(of_group)
        number = str(len(found)) if len(found) == len(of_group) else f"{len(found)} of {len(of_group)}"
        shown = [each if full else short[key][each] for key, each in zip(keys, values, strict=True)]
        cells = [*shown, str(len(found)) if full else number]
        for key in figures:
            each = accuracies(of_group, key)
            spread = statistics.stdev(each) if len(each) > 1 else None
            ends = mean_interval(each) if key == "accuracy" else None
            if full:
                cells += [figure_cell(value, None) for value in (statistics.fmean(each) if each else None, spread)]
                cells += [] if ends is None else [figure_cell(value, None) for value in finite_ends(ends)]
                continue
            cells.append(
                "-" if not each else f"{statistics.fmean(each):.3f}" + ("" if spread is None else f" ± {spread:.3f}")
            )
            if ends is not None:
                low, high = finite_ends(ends)
                cells.append("-" if low is None or high is None else f"{low:.3f} to {high:.3f}")
        rows.append(tuple(cells))
    header = [*keys, "seeds"]
    for key in figures:
        header += [key, f"{key}/deviation"] if full else [key]
        header += (["accuracy/low", "accuracy/high"] if full else ["95 %"]) if key == "accuracy" else []
    return TextTable(title, tuple(header), tuple(rows))
