"""Reads the folders of runs for a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fed_a2v.core.projection import EmbeddingMap
from fed_a2v.errors import UserError
from fed_a2v.runs.compare import natural
from fed_a2v.runs.embedding_map import load_map
from fed_a2v.runs.exchange import shares_sums
from fed_a2v.runs.folder import RunFolder
from fed_a2v.runs.intervals import CROSSED, pair_name
from fed_a2v.storage.untrusted import inside, read_json

Row = dict[str, Any]


class ReportError(UserError, ValueError):
    """There is no run, or its files cannot be read."""


@dataclass(frozen=True)
class RunRecord:
    """Content of a run's folder; fields of missing files are empty, for example while the run is in progress.

    Attributes:
        label: name, unique in the report.
        folder: folder of the run.
        rows: metrics of each round, from `metrics.jsonl`; at least one.
        config: all settings, from `config.yaml`.
        environment: content of `environment.json`.
        evaluation: content of `evaluation.json`.
        partition: sites in `partition.json`.
        map: content of `map.npz`.
        without_step: metrics of the same run without the server step, if it is in a sibling folder.
    """

    label: str
    folder: Path
    rows: list[Row]
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    partition: dict[str, Any] = field(default_factory=dict)
    map: EmbeddingMap | None = None
    without_step: list[Row] = field(default_factory=list)

    @property
    def last(self) -> Row:
        """Metrics of the newest round."""
        return self.rows[-1]

    @property
    def shares_sums(self) -> bool:
        """Whether the sites sent sums instead of prototypes."""
        return shares_sums(self.config)

    @property
    def rounds(self) -> int:
        """Number of rounds in the settings."""
        return int(self.config.get("rounds") or self.last["round"])

    @property
    def finished(self) -> bool:
        """Whether the last round is done."""
        return int(self.last["round"]) >= self.rounds


@dataclass(frozen=True)
class Collection:
    """The runs of a report, and their baselines.

    Attributes:
        runs: at least one run.
        baselines: round metrics by label of runs that are not in `runs`, such as pooled training.
        crossed: summaries of cross-validations (`fed_a2v.runs.intervals.summarise`) that the runs belong to.
    """

    runs: list[RunRecord]
    baselines: dict[str, list[Row]] = field(default_factory=dict)
    crossed: list[dict[str, Any]] = field(default_factory=list)

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
    baselines: dict[str, list[Row]] = {}
    for parent in dict.fromkeys(path.parent for path in paths if path.parent.parent not in crossed):
        comparison = _json(parent / "comparison.json")
        here = {path.name for path in paths if path.parent == parent}
        baselines |= {str(label): list(rows) for label, rows in comparison.items() if label not in here and rows}
    return Collection(runs, baselines, list(crossed.values()))


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
