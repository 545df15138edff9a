"""Statistics of a cross-validated comparison: paired differences of its arms with 95 % intervals, and a verdict.

Used by `fed-a2v compare --folds --seeds` and the report.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fed_a2v.runs.rounds import fully_evaluated, total
from fed_a2v.runs.table import TextTable

LEVEL = 0.95
# Key of a summary in `comparison.json`, which otherwise has the names of arms.
CROSSED = "cross_validation"
# The arm that others are measured against: fine-tuning without a generator.
REFERENCE = "prototypes"


@dataclass(frozen=True)
class Interval:
    """A mean difference and the ends of its interval; infinite for a single pair, which has no spread."""

    mean: float
    low: float
    high: float

    @property
    def reach(self) -> float:
        """Largest distance from zero in the interval."""
        return max(abs(self.low), abs(self.high))

    def __str__(self) -> str:
        ends = f" [{self.low:+.3f}, {self.high:+.3f}]" if math.isfinite(self.reach) else ""
        return f"{self.mean:+.3f}{ends}"


def paired_interval(differences: Sequence[float], test_per_training: float = 0.0) -> Interval:
    """The 95 % interval of the mean of n paired differences, by Student's t with n - 1 degrees of freedom.

    Folds share most of their training clips, so their differences are correlated and the plain interval is too
    narrow. The corrected interval (Nadeau & Bengio 2003; for folds and seeds Bouckaert & Frank 2004) uses
    (1 / n + test clips / training clips) times the variance of the differences as the variance of the mean.

    Args:
        differences: n differences, one for each fold and seed.
        test_per_training: number of test clips per training clip, 1 / (k - 1) for k folds that each test once; 0 if
            all pairs have the same clips: the interval then covers other seeds on these clips only.
    """
    mean, number = statistics.fmean(differences), len(differences)
    if number < 2:
        return Interval(mean, -math.inf, math.inf)
    from scipy.special import stdtrit  # imported here, since no other table needs scipy

    quantile = float(stdtrit(number - 1, (1 + LEVEL) / 2))
    reach = quantile * statistics.stdev(differences) * math.sqrt(1 / number + test_per_training)
    return Interval(mean, mean - reach, mean + reach)


def verdict(differences: Mapping[str, Interval], reference: str = REFERENCE) -> str:
    """One sentence: the arms that differ from `reference`, and those without an established difference."""
    below = [f'"{name}" ({each.mean:+.3f})' for name, each in differences.items() if each.high < 0]
    above = [f'"{name}" ({each.mean:+.3f})' for name, each in differences.items() if each.low > 0]
    unclear = {f'"{name}"': each for name, each in differences.items() if each.low <= 0 <= each.high}
    parts = [f"{side} {reference}: {', '.join(names)}" for side, names in (("below", below), ("above", above)) if names]
    if unclear:
        reach = max(each.reach for each in unclear.values())
        bound = f"all intervals are within ±{reach:.3f}" if math.isfinite(reach) else "a single pair has no interval"
        parts.append(f"no established difference from {reference}: {', '.join(unclear)} ({bound})")
    return f"At 95 %, {'; '.join(parts)}."


def covers(folds: int, seeds: int, left_out: int = 0) -> str:
    """What the intervals cover, in one sentence, and the number of runs that were left out."""
    without = (
        f" Left out: {_many(left_out, 'run')} in whose last round not all sites were evaluated." if left_out else ""
    )
    if folds < 2:
        return f"{_many(seeds, 'seed')} on the same clips: intervals cover other seeds, not other clips.{without}"
    return (
        f"{folds} folds x {_many(seeds, 'seed')}, each arm paired with the reference on the same fold and seed. The "
        "intervals allow for folds that share training clips: they cover other seeds and other clips of this data set, "
        f"not other data. They are not corrected for multiple comparisons: one in twenty misses.{without}"
    )


def pair_name(fold: int | None, seed: int) -> str:
    """Folder name of a fold and seed."""
    return f"seed-{seed}" if fold is None else f"fold-{fold}_seed-{seed}"


def summarise(
    pairs: Sequence[tuple[int | None, int]],
    arms: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    test_per_training: float,
) -> dict[str, Any]:
    """Summary of a cross-validation for `comparison.json`: plain numbers, lists and dictionaries.

    Args:
        pairs: fold and seed of each run of an arm; fold None: the folds of the experiment.
        arms: round metrics of each pair's run, by arm.
        test_per_training: see `paired_interval`.
    """
    last = {name: [_final(rows[-1]) for rows in runs] for name, runs in arms.items()}
    left_out = sum(not fully_evaluated(rows[-1]) for runs in arms.values() for rows in runs)
    figures: dict[str, dict[str, Any]] = {}
    differences: dict[str, Interval] = {}
    for name, accuracies in last.items():
        known = [value for value in accuracies if value is not None]
        figures[name] = {
            "accuracy": accuracies,
            "mean": statistics.fmean(known) if known else None,
            "deviation": statistics.stdev(known) if len(known) > 1 else None,
            **{
                f"{side}_steps": statistics.fmean(total(rows, f"{side}/optimiser_steps") for rows in arms[name])
                for side in ("site", "server")
            },
        }
        pairings = zip(accuracies, last.get(REFERENCE, []), strict=False)
        paired = [mine - other for mine, other in pairings if mine is not None and other is not None]
        if name != REFERENCE and paired:
            each = differences[name] = paired_interval(paired, test_per_training)
            figures[name]["difference"] = each.mean
            if math.isfinite(each.reach):
                figures[name] |= {"low": each.low, "high": each.high}
    folds, seeds = ({pair[place] for pair in pairs} for place in (0, 1))
    return {
        "pairs": [{"fold": fold, "seed": seed} for fold, seed in pairs],
        "test_per_training": test_per_training,
        "arms": figures,
        "says": verdict(differences) if differences else f'There is no arm "{REFERENCE}" to compare the others with.',
        "covers": covers(len(folds), len(seeds), left_out),
    }


def crossed_table(summary: Mapping[str, Any], title: str = "") -> TextTable:
    """Table of the arms of `summarise`: accuracy in the last round, difference to `REFERENCE`, and optimiser steps.

    It fits into eighty columns.
    """

    def cells(name: str, arm: Mapping[str, Any]) -> tuple[str, ...]:
        spread = "" if arm["deviation"] is None else f" ± {arm['deviation']:.3f}"
        accuracy = "-" if arm["mean"] is None else f"{arm['mean']:.3f}{spread}"
        difference = "-"
        if "difference" in arm:
            difference = str(Interval(arm["difference"], arm.get("low", -math.inf), arm.get("high", math.inf)))
        return name, accuracy, difference, f"{arm['site_steps']:.0f} + {arm['server_steps']:.0f}"

    header = ("arm", "accuracy", f"less {REFERENCE}, 95 %", "steps")
    return TextTable(title, header, tuple(cells(name, arm) for name, arm in summary["arms"].items()))


def _final(row: Mapping[str, Any]) -> float | None:
    """The accuracy if all sites were evaluated, else None: on fewer clips it is not comparable with other arms."""
    return row.get("accuracy") if fully_evaluated(row) else None


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"
