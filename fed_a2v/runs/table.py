"""Tables for people: the rounds of one run, variants side by side, the jobs of a sweep."""

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

from fed_a2v.runs.files import write_text

Rows = Sequence[Mapping[str, Any]]


# The figures of a sweep that fit on a page.
SHOWN_FIGURES = ("accuracy", "accuracy_at_5", "accuracy_before", "loss", "seconds")


@dataclass(frozen=True)
class TextTable:
    """A table of strings, to be shown in a terminal or written as Markdown or CSV."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def rich(self) -> Table:
        """The table for a rich console, figures to the right."""
        table = Table(title=self.title or None, title_justify="left")
        for index, name in enumerate(self.header):
            figures = all(re.match(r"[\d.+-]", row[index]) for row in self.rows)
            table.add_column(name, justify="right" if figures else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """The table in Markdown, without its title."""
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)

    def csv(self) -> str:
        """The table as comma-separated values."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.rows])
        return text.getvalue()


def rounds_table(rows: Rows, title: str = "") -> TextTable:
    """One run by round: accuracies, losses, traffic in MB (10^6 bytes) and seconds; "-" where none is."""
    return TextTable(
        title,
        (
            "round",
            "accuracy before",
            "after server step",
            "generator loss",
            "fine-tuning loss",
            "MB up",
            "MB down",
            "seconds",
        ),
        tuple(
            (
                str(row["round"]),
                _figure(row.get("accuracy_before"), 3),
                _figure(row.get("accuracy"), 3),
                _figure(row.get("server/generator_loss"), 4),
                _figure(row.get("server/adapter_finetuning_loss"), 4),
                _figure(row.get("bytes_up"), 2, scale=1e-6),
                _figure(row.get("bytes_down"), 2, scale=1e-6),
                _figure(seconds(row), 1),
            )
            for row in rows
        ),
    )


def comparison_table(variants: Mapping[str, Rows], title: str = "", key: str = "accuracy") -> TextTable:
    """A metric by round, a column for each variant.

    Args:
        variants: the rows of each run by label, e.g. "FedAvg only", "prototypes only", "vae", "pooled".
        title: the table's title.
        key: the metric.
    """
    values = {label: {int(row["round"]): row.get(key) for row in rows} for label, rows in variants.items()}
    numbers = sorted({number for column in values.values() for number in column})
    return TextTable(
        title,
        ("round", *variants),
        tuple((str(number), *(_figure(column.get(number), 3) for column in values.values())) for number in numbers),
    )


def summary_table(folder: Path, expected: int | None = None) -> TextTable:
    """The jobs of a Hydra sweep: what was overridden and what came out; also written beside them.

    Args:
        folder: the sweep's folder, with a folder per job in it; `summary.csv` (every figure in full) and
            `summary.md` (`SHOWN_FIGURES`) are written there.
        expected: number of jobs, where known; those that never began are then listed as missing.

    Returns:
        A row per job in numeric order, with the overrides that differ between jobs and the final figures.
        The status is "done", "failed" (no readable `results.json`) or "missing" (a gap in the numbers).

    Raises:
        FileNotFoundError: the folder holds no jobs.
    """
    jobs = {path.name: path for path in folder.iterdir() if path.is_dir() and _is_job(path)}
    if not jobs:
        raise FileNotFoundError(f"no jobs in {folder}: no folder in it has a .hydra/overrides.yaml")
    numbers = [int(name) for name in jobs if name.isdigit()]
    count = max(max(numbers, default=-1) + 1, expected or 0)
    names = sorted({*jobs, *(str(number) for number in range(count))}, key=_natural)

    overrides = {name: _overrides(jobs[name]) if name in jobs else {} for name in names}
    results = {name: _results(jobs[name]) if name in jobs else None for name in names}
    status = {
        name: "missing" if name not in jobs else "done" if results[name] is not None else "failed" for name in names
    }
    settings = _differing([overrides[name] for name in names if name in jobs])
    every = dict.fromkeys(key for name in names for key in results[name] or {} if key not in settings)

    def table(digits: int | None, figures: Sequence[str]) -> TextTable:
        return TextTable(
            f"Sweep in {folder}",
            ("job", "status", *settings, *figures),
            tuple(
                (
                    name,
                    status[name],
                    *(overrides[name].get(key, "-") for key in settings),
                    *(_figure((results[name] or {}).get(key), digits) for key in figures),
                )
                for name in names
            ),
        )

    shown = table(4, [key for key in SHOWN_FIGURES if key in every] or list(every))
    write_text(folder / "summary.csv", table(None, list(every)).csv())
    write_text(folder / "summary.md", shown.markdown())
    return shown


def seconds(row: Mapping[str, Any]) -> float:
    """Seconds that a round took: the sum of its phases."""
    return float(sum(value or 0.0 for key, value in row.items() if key.startswith("seconds/")))


def _figure(value: Any, digits: int | None, scale: float = 1.0) -> str:
    if value is None:
        return "-"
    if scale == 1.0 and (digits is None or isinstance(value, int)):
        return str(value)
    return f"{value * scale:.{digits}f}"


def _is_job(path: Path) -> bool:
    return path.name.isdigit() or (path / ".hydra" / "overrides.yaml").is_file()


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key by which 9 stands before 10, and numbers before words."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _overrides(job: Path) -> dict[str, str]:
    """A job's overrides by key."""
    path = job / ".hydra" / "overrides.yaml"
    words = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else []
    pairs = (str(word).lstrip("+~").partition("=") for word in words or [])
    return {key: value for key, _, value in pairs}


def _results(job: Path) -> dict[str, Any] | None:
    """The numbers in a job's `results.json`; None where it is missing or not whole."""
    try:
        results = json.loads((job / "results.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(results, dict):
        return None
    return {key: value for key, value in results.items() if isinstance(value, int | float)}


def _differing(overrides: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys whose values differ between jobs; all keys where none does."""
    keys = list(dict.fromkeys(key for job in overrides for key in job))
    return [key for key in keys if len({job.get(key) for job in overrides}) > 1] or keys
