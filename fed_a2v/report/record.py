"""A run as the report sees it, and the mean of runs that differ only in seed and test fold."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fed_a2v.config.schema import affects_result
from fed_a2v.config.tree import dotted_items
from fed_a2v.core.projection import EmbeddingMap
from fed_a2v.report.reproduce import overrides_of
from fed_a2v.runs.compare import differing
from fed_a2v.runs.exchange import shares_sums

Row = dict[str, Any]
# Settings in which repetitions of an experiment differ, and one of each in words.
SEED, FOLD = "seed", "dataset.test_fold"


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
        members: the runs that this one is the mean of (`merged`); empty for a single run.
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
    members: tuple[RunRecord, ...] = ()

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

    @cached_property
    def overrides(self) -> list[str] | None:
        """See `overrides_of`; None without settings."""
        return overrides_of(self.config) if self.config else None

    @property
    def repeats(self) -> str:
        """How many seeds and folds a mean is over, in words; "" for a single run."""
        return _repeats(self.members)


def merged(runs: Sequence[RunRecord], single: str = "") -> list[RunRecord]:
    """The runs; those that differ in nothing but seed and test fold become one, at the place of the first.

    Args:
        runs: the runs.
        single: name of the arm, if all runs become one.
    """
    groups: dict[Any, list[RunRecord]] = {}
    for index, run in enumerate(runs):
        flat = _settings(run)
        shared = {key: value for key, value in flat.items() if key not in (SEED, FOLD) and affects_result(key)}
        groups.setdefault(repr(sorted(shared.items())) if flat else index, []).append(run)
    arms = []
    names = [single] if len(groups) == 1 else _names([group[0] for group in groups.values()])
    for name, group in zip(names, groups.values(), strict=True):
        different = len({(flat.get(SEED), repr(flat.get(FOLD))) for flat in map(_settings, group)}) == len(group)
        repeats = _repeats(group)
        arms += [mean_of(group, f"{name}, {repeats}" if name else repeats)] if different and repeats else group
    return arms


def mean_of(runs: Sequence[RunRecord], label: str) -> RunRecord:
    """The mean of the runs' metrics and figures by class; `NAME_low` and `NAME_high` are the lowest and highest.

    Args:
        runs: at least two; of their rounds, those that all have.
        label: name of the mean.
    """
    rows = [{row["round"]: row for row in run.rows} for run in runs]
    without = [{row["round"]: row for row in run.without_step} for run in runs]
    classes = [run.evaluation.get("classes", {}) for run in runs]
    return RunRecord(
        label=label,
        folder=runs[0].folder,
        rows=[_mean_row([each[number] for each in rows]) for number in rows[0] if all(number in each for each in rows)],
        config=runs[0].config,
        evaluation={
            "classes": {
                name: _mean_row([each[name] for each in classes])
                for name in classes[0]
                if all(name in each for each in classes)
            }
        },
        without_step=[
            _mean_row([each[number] for each in without])
            for number in without[0]
            if all(number in each for each in without)
        ],
        members=tuple(runs),
    )


def _mean_row(rows: Sequence[Mapping[str, Any]]) -> Row:
    row: Row = {}
    for key in rows[0]:
        if not key.endswith(("_low", "_high")):  # the ends of single runs' intervals
            values: list[Any] = [each.get(key) for each in rows]
            row[key] = mean = _mean(values)
            if isinstance(mean, float):
                row |= {f"{key}_low": min(values), f"{key}_high": max(values)}
    return row


def _mean(values: Sequence[Any]) -> Any:
    """The mean of numbers, also in dictionaries; of other values the one that all have, or None."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return values[0] if len(set(values)) == 1 else statistics.fmean(values)
    if all(isinstance(value, dict) for value in values):
        return {key: _mean([value.get(key) for value in values]) for key in values[0]}
    return values[0] if all(value == values[0] for value in values) else None


def _settings(run: RunRecord) -> dict[str, Any]:
    return dict(dotted_items(run.config))


def _repeats(runs: Sequence[RunRecord]) -> str:
    settings = [_settings(run) for run in runs]
    counts = {what: len({repr(each.get(key)) for each in settings}) for key, what in ((FOLD, "folds"), (SEED, "seeds"))}
    return " x ".join(f"{number} {what}" for what, number in counts.items() if number > 1)


def _names(firsts: Sequence[RunRecord]) -> list[str]:
    """A name for each of several arms, by its first run: its folder's name, or the settings in which they differ."""
    folders = [run.folder.name for run in firsts if run.folder is not None]
    if len(set(folders)) == len(firsts) and not any("=" in name or name.isdecimal() for name in folders):
        return folders
    flat = [_settings(run) for run in firsts]
    keys = [key for key in differing(flat) if affects_result(key) and all(key in each for each in flat)]
    return [", ".join(f"{key}={each[key]}" for key in keys) for each in flat]
