"""Statistics of a cross-validated comparison: paired differences of its arms with 95 % intervals, and a verdict.

Used by `fed-a2v compare --folds --seeds` and the report.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fed_a2v.config.baselines import REFERENCE
from fed_a2v.runs.rounds import fully_evaluated, total
from fed_a2v.runs.table import TextTable, figure_cell

LEVEL = 0.95
# A clip more in every run is no proof; rounding of accuracies in single precision is below this.
NO_SPREAD = 1e-6
# Key of a summary in `comparison.json`, which otherwise has the names of arms.
CROSSED = "cross_validation"


@dataclass(frozen=True)
class Interval:
    """A mean difference and the ends of its interval; infinite without spread: a single pair, or equal differences."""

    mean: float
    low: float
    high: float

    @property
    def reach(self) -> float:
        """Largest distance from zero in the interval."""
        return max(abs(self.low), abs(self.high))

    def sentence(self, name: str, other: str) -> str:
        """What is established about an arm against another, in points of accuracy (hundredths)."""
        # The z in a format turns the -0.0 of rounding into 0.0.
        between = f"{name} against {other}: {100 * self.mean:+z.1f} points"
        if not math.isfinite(self.reach):
            return f"{between}, without an interval: no two pairs of runs give different values"
        found = "better" if self.low > 0 else "worse" if self.high < 0 else "no difference shown"
        return f"{between}, 95 % {100 * self.low:+z.1f} to {100 * self.high:+z.1f}: {found}"

    def __str__(self) -> str:
        ends = f" [{self.low:+z.3f}, {self.high:+z.3f}]" if math.isfinite(self.reach) else ""
        return f"{self.mean:+z.3f}{ends}"


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
    deviation = statistics.stdev(differences) if number > 1 else 0.0
    if deviation < NO_SPREAD:
        return Interval(mean, -math.inf, math.inf)
    from scipy.special import stdtrit  # imported here, since no other table needs scipy

    quantile = float(stdtrit(number - 1, (1 + LEVEL) / 2))
    reach = quantile * deviation * math.sqrt(1 / number + test_per_training)
    return Interval(mean, mean - reach, mean + reach)


def mean_interval(values: Sequence[float]) -> Interval:
    """The 95 % interval of the mean of a figure over seeds, by Student's t, within 0 and 1."""
    found = paired_interval(values) if values else Interval(math.nan, -math.inf, math.inf)
    if not math.isfinite(found.reach):
        return found
    return Interval(found.mean, max(0.0, found.low), min(1.0, found.high))


def finite_ends(each: Interval) -> tuple[float | None, float | None]:
    """The ends of an interval; None and None if it has none."""
    return (each.low, each.high) if math.isfinite(each.reach) else (None, None)


def verdict(differences: Mapping[str, Interval], reference: str = REFERENCE) -> str:
    """One sentence: the arms that differ from `reference`, and those without an established difference."""
    below = [f'"{name}" ({each.mean:+.3f})' for name, each in differences.items() if each.high < 0]
    above = [f'"{name}" ({each.mean:+.3f})' for name, each in differences.items() if each.low > 0]
    unclear = {f'"{name}"': each for name, each in differences.items() if each.low <= 0 <= each.high}
    parts = [f"{side} {reference}: {', '.join(names)}" for side, names in (("below", below), ("above", above)) if names]
    if unclear:
        reach = max(each.reach for each in unclear.values())
        bound = f"all intervals are within ±{reach:.3f}" if math.isfinite(reach) else "not all have an interval"
        parts.append(f"no established difference from {reference}: {', '.join(unclear)} ({bound})")
    return f"At 95 %, {'; '.join(parts)}."


def covers(folds: int, seeds: int, left_out: int = 0, clips: int | None = None) -> str:
    """What the intervals cover, in one sentence, and the number of runs that were left out.

    Args:
        folds: number of folds that test.
        seeds: number of seeds.
        left_out: runs whose last round was not evaluated at all sites.
        clips: number of test clips, if all runs have the same.
    """
    without = (
        f" Left out: {_many(left_out, 'run')} in whose last round not all sites were evaluated." if left_out else ""
    )
    if folds < 2:
        same = f"{_many(seeds, 'seed')} on the same {'' if clips is None else f'{clips} '}test clips"
        found = "intervals cover other seeds, not other clips" if seeds > 1 else "without intervals"
        return f"{same}: {found}.{without}"
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
    reference: str = REFERENCE,
) -> dict[str, Any]:
    """Summary of a cross-validation for `comparison.json`: plain numbers, lists and dictionaries.

    Args:
        pairs: fold and seed of each run of an arm; fold None: the folds of the experiment.
        arms: round metrics of each pair's run, by arm; the experiment is the last.
        test_per_training: see `paired_interval`.
        reference: the arm that the others are measured against in the table.

    Returns:
        `pairs`, `test_per_training`, `reference`; `arms`: the figures of each by name; `against`: the experiment's
        differences to each other arm; `sentences`: these in words, a sentence each; `says`: the arms that differ from
        the reference, in one sentence; `covers`: what the intervals cover.
    """
    last = {name: [_final(rows[-1]) for rows in runs] for name, runs in arms.items()}
    left_out = sum(not fully_evaluated(rows[-1]) for runs in arms.values() for rows in runs)
    clips = {rows[-1].get("test_clips") for runs in arms.values() for rows in runs}
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
        each = _difference(accuracies, last.get(reference, []), test_per_training)
        if name != reference and each is not None:
            differences[name] = each
            figures[name] |= _plain(each)
    experiment = next(reversed(last))
    against = {
        name: each
        for name in last
        if name != experiment and (each := _difference(last[experiment], last[name], test_per_training)) is not None
    }
    folds, seeds = ({pair[place] for pair in pairs} for place in (0, 1))
    return {
        "pairs": [{"fold": fold, "seed": seed} for fold, seed in pairs],
        "test_per_training": test_per_training,
        "reference": reference,
        "arms": figures,
        "against": {name: _plain(each) for name, each in against.items()},
        "sentences": [each.sentence(experiment, name) for name, each in against.items()],
        "says": verdict(differences, reference)
        if differences
        else f'There is no arm "{reference}" to compare the others with.',
        "covers": covers(len(folds), len(seeds), left_out, clips.pop() if len(clips) == 1 else None),
    }


def crossed_table(summary: Mapping[str, Any], title: str = "") -> TextTable:
    """Table of the arms of `summarise`: accuracy in the last round, difference to the reference, and optimiser steps.

    It fits into eighty columns.
    """

    def cells(name: str, arm: Mapping[str, Any]) -> tuple[str, ...]:
        spread = "" if arm["deviation"] is None else f" ± {arm['deviation']:.3f}"
        accuracy = "-" if arm["mean"] is None else f"{arm['mean']:.3f}{spread}"
        difference = "-"
        if "difference" in arm:
            difference = str(Interval(arm["difference"], arm.get("low", -math.inf), arm.get("high", math.inf)))
        return name, accuracy, difference, f"{arm['site_steps']:.0f} + {arm['server_steps']:.0f}"

    header = ("arm", "accuracy", f"minus {summary.get('reference', REFERENCE)}, 95 %", "steps")
    return TextTable(title, header, tuple(cells(name, arm) for name, arm in summary["arms"].items()))


# Keys of an arm in `summarise`, and its columns in `figures_table`.
FIGURES = ("mean", "deviation", "difference", "low", "high", "site_steps", "server_steps")


def figures_table(summary: Mapping[str, Any]) -> TextTable:
    """The figures of each arm of `summarise` with all their digits, for a CSV file."""
    rows = tuple(
        (
            name,
            str(sum(value is not None for value in arm["accuracy"])),
            *(figure_cell(arm.get(key), None) for key in FIGURES),
        )
        for name, arm in summary["arms"].items()
    )
    return TextTable("", ("arm", "runs", *FIGURES), rows)


def caption(summary: Mapping[str, Any]) -> str:
    """Caption of `crossed_table` in a paper: what is in it, and what the intervals cover."""
    reference = summary.get("reference", REFERENCE)
    return (
        f"Accuracy after the last round, mean ± standard deviation over the runs; difference to {reference} with its "
        f"95 % interval; optimiser steps at a site + on the server. {summary['covers']}"
    )


def _difference(
    mine: Sequence[float | None], others: Sequence[float | None], test_per_training: float
) -> Interval | None:
    """The interval of the paired differences of two arms' accuracies; None without a pair that has both."""
    pairings = zip(mine, others, strict=False)
    paired = [one - other for one, other in pairings if one is not None and other is not None]
    return paired_interval(paired, test_per_training) if paired else None


def _plain(each: Interval) -> dict[str, float]:
    """An interval in `comparison.json`; without ends if they are infinite."""
    ends = {"low": each.low, "high": each.high} if math.isfinite(each.reach) else {}
    return {"difference": each.mean, **ends}


def _final(row: Mapping[str, Any]) -> float | None:
    """The accuracy if all sites were evaluated, else None: on fewer clips it is not comparable with other arms."""
    return row.get("accuracy") if fully_evaluated(row) else None


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"
