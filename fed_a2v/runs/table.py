"""Text tables: the rounds of one run, several variants, the jobs of a sweep."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.table import Table
from rich.text import Text

from fed_a2v.runs.rounds import fully_evaluated
from fed_a2v.storage.files import write_text
from fed_a2v.storage.plain_text import csv_cell, markdown_cell, one_line

Rows = Sequence[Mapping[str, Any]]

# Files in the folder of a failed job: the reason in one line, and the traceback.
FAILURE = "failure.txt"
# The figures of a sweep that fit on a page.
SHOWN_FIGURES = ("accuracy", "accuracy_at_5", "accuracy_before", "t5/accuracy", "loss", "seconds")


@dataclass(frozen=True)
class TextTable:
    """A table of strings, to be shown in a terminal or written as Markdown or CSV."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def rich(self) -> Table:
        """The table for a rich console, with right-aligned figures."""
        table = Table(title=Text(one_line(self.title)) if self.title else None, title_justify="left")
        for index, name in enumerate(self.header):
            figures = all(re.match(r"[\d.+-]", row[index]) for row in self.rows)
            table.add_column(Text(one_line(name)), justify="right" if figures else "left")
        for row in self.rows:
            table.add_row(*(Text(one_line(cell)) for cell in row))
        return table

    def without(self, *names: str) -> TextTable:
        """The table without some of its columns."""
        kept = [index for index, name in enumerate(self.header) if name not in names]
        rows = tuple(tuple(row[index] for index in kept) for row in self.rows)
        return TextTable(self.title, tuple(self.header[index] for index in kept), rows)

    def markdown(self) -> str:
        """The table in Markdown, without its title."""
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        return "".join("| " + " | ".join(map(markdown_cell, line)) + " |\n" for line in lines)

    def csv(self) -> str:
        """The table as comma-separated values."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(map(csv_cell, row) for row in (self.header, *self.rows))
        return text.getvalue()


def rounds_table(rows: Rows, title: str = "") -> TextTable:
    """One run by round: accuracies, losses, traffic in MB (10^6 bytes) and seconds; "-" for a missing value.

    A column has the accuracy of T5 if the adapters have a T5 side. An asterisk marks rounds in which not all sites
    were evaluated; `closing_lines` gives the number of clips of such a figure.
    """
    has_t5 = any("t5/accuracy" in row for row in rows)
    header = ("round", "accuracy before", "after server step", *(["T5 accuracy"] if has_t5 else []))
    return TextTable(
        title,
        (*header, "generator loss", "fine-tuning loss", "MB up", "MB down", "seconds"),
        tuple(
            (
                str(row["round"]),
                _figure(row.get("accuracy_before"), 3),
                _figure(row.get("accuracy"), 3) + ("" if fully_evaluated(row) else "*"),
                *([_figure(row.get("t5/accuracy"), 3)] if has_t5 else []),
                _figure(row.get("server/generator_loss"), 4),
                _figure(row.get("server/adapter_finetuning_loss"), 4),
                _figure(row.get("bytes_up"), 2, scale=1e-6),
                _figure(row.get("bytes_down"), 2, scale=1e-6),
                _figure(seconds(row), 1),
            )
            for row in rows
        ),
    )


def comparison_table(variants: Mapping[str, Rows], title: str = "", figure: str = "accuracy") -> TextTable:
    """Accuracy by round, with one column per variant, and the optimiser steps of all rounds in the last rows.

    A cell also has the number of scored test clips if not all were scored.

    Args:
        variants: the rows of each run by label, e.g. "FedAvg only", "prototypes only", "vae", "pooled".
        title: the table's title.
        figure: metric in the cells, default the accuracy of the CLIP side.
    """
    values = {
        label: {int(row["round"]): accuracy_cell(row, 3, figure) for row in rows} for label, rows in variants.items()
    }
    numbers = sorted({number for column in values.values() for number in column})
    steps = {
        label: [_total(rows, f"{side}/optimiser_steps") for rows in variants.values()]
        for label, side in (("steps at a site", "site"), ("on the server", "server"))
    }
    return TextTable(
        title,
        ("round", *variants),
        (
            *((str(number), *(column.get(number, "-") for column in values.values())) for number in numbers),
            *((label, *cells) for label, cells in steps.items()),
        ),
    )


def summary_table(folder: Path, expected: int | None = None) -> TextTable:
    """The jobs of a Hydra sweep with their overrides and results; also written into the sweep's folder.

    Args:
        folder: the sweep's folder, with one folder per job; `summary.csv` (all figures) and
            `summary.md` (`SHOWN_FIGURES`) are written there.
        expected: number of jobs, if known; jobs that never started are then listed as missing.

    Returns:
        One row per job, in the order of their numbers or else of their overrides, with the overrides that differ
        between jobs, the final figures, and the reason of a failure.
        The status is "done", "failed" (no readable `results.json`) or "missing" (a gap in the numbers).

    Raises:
        FileNotFoundError: the folder has no jobs.
    """
    jobs = sweep_jobs(folder, expected)
    settings = _differing([job.overrides for job in jobs if job.status != "missing"])
    every = dict.fromkeys(key for job in jobs for key in job.results if key not in settings)
    reasons = ("reason",) if any(job.reason for job in jobs) else ()

    def table(digits: int | None, figures: Sequence[str]) -> TextTable:
        return TextTable(
            f"Sweep in {folder}",
            ("job", "status", *settings, *figures, *reasons),
            tuple(
                (
                    job.name,
                    job.status,
                    *(job.overrides.get(key, "-") for key in settings),
                    *(
                        accuracy_cell(job.results, digits)
                        if key == "accuracy" and digits
                        else _figure(job.results.get(key), digits)
                        for key in figures
                    ),
                    *(job.reason or "-" for _ in reasons),
                )
                for job in jobs
            ),
        )

    shown = table(4, [key for key in SHOWN_FIGURES if key in every] or list(every))
    write_text(folder / "summary.csv", table(None, list(every)).csv())
    write_text(folder / "summary.md", shown.markdown())
    return shown


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


def sweep_jobs(folder: Path, expected: int | None = None) -> list[SweepJob]:
    """The jobs in a sweep's folder, by name; see `summary_table`.

    Raises:
        FileNotFoundError: the folder has no jobs.
    """
    paths = {path.name: path for path in folder.iterdir() if path.is_dir() and _is_job(path)}
    if not paths:
        raise FileNotFoundError(
            f"no jobs in {folder}: no folder in it has a .hydra/overrides.yaml; choose the folder of a sweep"
        )
    numbers = [int(name) for name in paths if name.isdigit()]
    count = max(max(numbers, default=-1) + 1, expected or 0) if numbers else 0
    names = sorted({*paths, *(str(number) for number in range(count))}, key=_natural)
    jobs = [_job(name, paths.get(name)) for name in names]
    if not numbers:
        differing = _differing([job.overrides for job in jobs])
        jobs.sort(key=lambda job: [_natural(job.overrides.get(key, "")) for key in differing])
    return jobs


def _job(name: str, path: Path | None) -> SweepJob:
    if path is None:
        return SweepJob(name, "missing", {}, {}, "")
    results = _results(path)
    if results is not None:
        return SweepJob(name, "done", _overrides(path), results, "")
    failure = path / FAILURE
    reason = failure.read_text(encoding="utf-8").split("\n", 1)[0] if failure.is_file() else ""
    return SweepJob(name, "failed", _overrides(path), {}, reason)


def seconds(row: Mapping[str, Any]) -> float:
    """Seconds that a round took: the sum of its phases."""
    return float(sum(value or 0.0 for key, value in row.items() if key.startswith("seconds/")))


def accuracy_cell(row: Mapping[str, Any], digits: int, figure: str = "accuracy") -> str:
    """The accuracy of a row or of results; if not all test clips were scored, e.g. "1.000 on 48 of 80"."""
    shown, total = _figure(row.get(figure), digits), row.get("test_clips_total")
    if shown == "-" or fully_evaluated(row):
        return shown
    return f"{shown} on {row.get('test_clips')} of {'?' if total is None else total}"


def _total(rows: Rows, key: str) -> str:
    found = [row[key] for row in rows if key in row]
    return f"{sum(found):.0f}" if found else "-"


def _figure(value: Any, digits: int | None, scale: float = 1.0) -> str:
    if value is None:
        return "-"
    if scale == 1.0 and (digits is None or not isinstance(value, float)):
        return str(value)
    return f"{value * scale:.{digits}f}"


def _is_job(path: Path) -> bool:
    return path.name.isdigit() or (path / ".hydra" / "overrides.yaml").is_file()


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key: 9 before 10, and numbers before words."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _overrides(job: Path) -> dict[str, str]:
    """A job's overrides by key."""
    path = job / ".hydra" / "overrides.yaml"
    words = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else []
    pairs = (str(word).lstrip("+~").partition("=") for word in words or [])
    return {key: value for key, _, value in pairs}


def _results(job: Path) -> dict[str, Any] | None:
    """The numbers in a job's `results.json`; None if it is missing or incomplete."""
    try:
        results = json.loads((job / "results.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(results, dict):
        return None
    return {key: value for key, value in results.items() if isinstance(value, int | float)}


def _differing(overrides: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys whose values differ between jobs; all keys if none does."""
    keys = list(dict.fromkeys(key for job in overrides for key in job))
    return [key for key in keys if len({job.get(key) for job in overrides}) > 1] or keys
