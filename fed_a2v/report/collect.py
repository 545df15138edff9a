"""Reads the folders of runs for a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fed_a2v.errors import UserError
from fed_a2v.report.record import RunRecord, mean_of, merged
from fed_a2v.runs.compare import natural
from fed_a2v.runs.embedding_map import load_map
from fed_a2v.runs.folder import RunFolder
from fed_a2v.runs.intervals import CROSSED, pair_name
from fed_a2v.storage.untrusted import inside, read_json


class ReportError(UserError, ValueError):
    """There is no run, or its files cannot be read."""


@dataclass(frozen=True)
class Collection:
    """The runs of a report, and their baselines.

    Attributes:
        runs: at least one run.
        baselines: runs of the same comparison that are not in `runs`, such as pooled training: label and rows only.
        crossed: summaries of cross-validations (`fed_a2v.runs.intervals.summarise`) that the runs belong to.
        compared: whether `runs` are those of one comparison, the experiment first.
    """

    runs: list[RunRecord]
    baselines: list[RunRecord] = field(default_factory=list)
    crossed: list[dict[str, Any]] = field(default_factory=list)
    compared: bool = False

    @cached_property
    def arms(self) -> list[RunRecord]:
        """The runs; those that differ in nothing but seed and test fold are one, their mean."""
        return merged(self.runs, self.experiment)

    @property
    def experiment(self) -> str:
        """Name of the experiment of a cross-validation; "" without one, or with several."""
        return next(reversed(self.crossed[0]["arms"]), "") if len(self.crossed) == 1 else ""

    @property
    def held_out(self) -> str:
        """What the generators were validated with, in words."""
        names = {False: "held-out prototypes", True: "draws from the sites' sums"}
        return " or ".join(names[sums] for sums in sorted({run.shares_sums for run in self.runs}))


def collect(folders: Sequence[Path]) -> Collection:
    """Read runs.

    Args:
        folders: folders of runs, of `fed-a2v compare`, or of sweeps; the last two give the runs in them. For a run in
            the folder of a comparison, the other runs are baselines. A cross-validation gives the runs of its
            experiment.

    Raises:
        ReportError: a folder has no run with a finished round, or a file in it is damaged.
    """
    folders = [folder.expanduser().resolve() for folder in folders]
    crossed = {folder: summary for folder in folders if (summary := _json(folder / "comparison.json").get(CROSSED))}
    paths = list(dict.fromkeys(run for folder in folders for run in _runs_in(folder, crossed.get(folder))))
    runs = [_read(path, label) for path, label in zip(paths, _labels(paths), strict=True)]
    found: dict[str, list[RunRecord]] = {}
    for parent in dict.fromkeys(path.parent for path in paths):
        here = {path.name for path in paths if path.parent == parent}
        for label, rows in _json(parent / "comparison.json").items():
            if label not in here and label != CROSSED and rows:
                found.setdefault(label, []).append(RunRecord(str(label), parent / str(label), list(rows)))
    baselines = [mean_of(each, label) if len(each) > 1 else each[0] for label, each in found.items()]
    compared = len(folders) == 1 and len(paths) > 1 and (folders[0] / "comparison.json").is_file()
    return Collection(runs, baselines, list(crossed.values()), compared)


def _runs_in(folder: Path, crossed: dict[str, Any] | None) -> list[Path]:
    if crossed:
        *_, experiment = crossed["arms"]
        paths = (folder / pair_name(pair["fold"], pair["seed"]) / experiment for pair in crossed["pairs"])
        return [inside(path, folder) for path in paths if (path / "metrics.jsonl").is_file()]
    if not folder.is_dir():
        raise ReportError(f"{folder}: no such folder; choose the folder of a run, a comparison or a sweep")
    if (folder / "metrics.jsonl").is_file():
        return [folder]
    below = [
        inside(path, folder)
        for path in folder.iterdir()
        if (path / "metrics.jsonl").is_file() and RunFolder(path).rows()
    ]
    if not below:
        raise ReportError(f"no run in {folder}: it has no metrics.jsonl, nor has a folder in it; choose another folder")
    # The experiment is last in a comparison's file, and first in the report.
    *baselines, experiment = list(_json(folder / "comparison.json")) or [""]
    order = [experiment, *baselines]
    return sorted(below, key=lambda path: ([*order, path.name].index(path.name), natural(path.name)))


def _labels(paths: Sequence[Path]) -> list[str]:
    """Folder names, with as many parent folders as make them distinct."""
    for parts in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        labels = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(labels)) == len(labels):
            break
    return labels


def _read(path: Path, label: str) -> RunRecord:
    folder = RunFolder(path)
    try:
        rows = folder.rows()
        if not rows or any(not isinstance(row.get("round"), int) for row in rows):
            raise ReportError(f"{folder.metrics} has no finished round; wait for the first")
        return RunRecord(
            label=label,
            folder=path,
            rows=rows,
            config=folder.read_config() if (path / "config.yaml").is_file() else {},
            environment=_json(folder.environment),
            evaluation=_json(folder.evaluation),
            partition=_json(path / "partition.json").get("sites", {}),
            map=load_map(folder.map) if folder.map.is_file() else None,
            without_step=folder.rows_without_step(),
        )
    except ReportError:
        raise
    except (ValueError, KeyError, OSError) as error:
        raise ReportError(f"the run in {path} cannot be read: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, which must not be a link out of its folder; empty for a missing file."""
    return read_json(inside(path, path.parent))
