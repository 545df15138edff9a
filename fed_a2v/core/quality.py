"""Quality of a generator's samples: figures that detect class means, copies of training rows and noise.

No single figure can. Class means train a good classifier, copies of the training rows pass every two-sample test,
and wide noise covers everything. Three gates together detect them, on rows that were held out of training:

- train on synthetic, test on real (TSTR): samples have the features that separate the classes (Esteban et al., 2017);
- two-sample test within classes (C2ST): a classifier cannot tell residuals of samples from residuals of real
  rows (Lopez-Paz & Oquab, 2017);
- nearest-neighbour ratio: samples are as far from the training rows as unseen real rows are.

Each is reported with the figure of real rows in place of samples, the number of rows and a 95 % interval. With ten or
twenty rows the result of a gate is mostly chance, so there is no verdict below `FEWEST_JUDGED` rows. Samples that pass
all three may still differ from real rows: the two-sample test sees the directions of largest variance and the overall
size, but not, for example, exact zeros.

Rows are (N, S, Da) or (N, D), compared with tokens flattened. Unless stated otherwise, columns are standardised with
the training rows' mean and max(std, 0.3 x RMS of all stds): the floor prevents columns that are active in a few rows
from outweighing all others, and division by zero.

`row_comparison` computes the figures; here they get a meaning. `validation` and `network` call `assess`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fed_a2v.core.row_comparison import (
    Scale,
    Table,
    c2st_interval,
    compare,
    correct_rows,
    paired_ratio_interval,
)
from fed_a2v.core.uncertainty import Interval

FEWEST_JUDGED = 40
"""Minimum rows of either set for the verdict of a gate: with fewer, good samples would fail the two-sample test by
chance in some rounds."""


class Rows(NamedTuple):
    """Audio embeddings with their classes.

    Attributes:
        embeddings: (N, S, Da) or (N, D).
        labels: (N,) integers, with the same number for a class in all sets of rows.
    """

    embeddings: Tensor
    labels: Tensor


Sampler = Callable[[int, int], Rows]
"""`sampler(per_class, seed)` returns `per_class` samples of every class, which depend on the seed."""


@dataclass(frozen=True)
class Figures:
    """Figures of one set of rows against held-out real rows; None if there are too few rows.

    Attributes:
        accuracy: accuracy on held-out rows of a classifier trained on this set; samples and real rows train on equally
            many rows per class.
        c2st: accuracy of a classifier between the residuals of this set and of held-out rows; 0.5 =
            indistinguishable.
        nn_ratio: median distance to the nearest training row of the class, over the same for held-out rows.
            0 = copies, 1 = like unseen real rows, 1.4 and more = noise.
        variance_ratio: variance within classes (unbiased, summed over columns) over that of the training rows.
        precision: share of this set in the k-nearest-neighbour balls of the held-out rows.
        recall: share of the held-out rows in the balls of this set. Only both together are meaningful: class means
            have precision 1 and recall 0, wide noise the reverse (Kynkaanniemi et al., 2019).
        one_nn_held_out: share of held-out rows whose nearest neighbour among both sets is a held-out row; 0.5 = mixed.
        one_nn_synthetic: the same for this set. Do not average the two: a collapsed set has a low and a high one.
    """

    accuracy: float | None = None
    c2st: float | None = None
    nn_ratio: float | None = None
    variance_ratio: float | None = None
    precision: float | None = None
    recall: float | None = None
    one_nn_held_out: float | None = None
    one_nn_synthetic: float | None = None


@dataclass(frozen=True)
class Gate:
    """One gate: a figure of the samples, the same figure of real rows, and the range of values that pass.

    Attributes:
        name: `tstr`, `c2st` or `nn_ratio`.
        value: the samples' figure, or None if it cannot be computed.
        real: the figure of real rows in place of samples, or None.
        low: smallest value that passes.
        high: largest value that passes.
        rows: held-out rows that the value is computed from.
        interval: 95 % interval of the value over the choice of held-out rows; None without a value.
    """

    name: str
    value: float | None
    real: float | None
    low: float
    high: float
    rows: int = 0
    interval: Interval | None = None

    @property
    def passed(self) -> bool | None:
        """Whether the value passes; None without a value, or with too few rows for a verdict."""
        if self.value is None or self.rows < FEWEST_JUDGED:
            return None
        return self.low <= self.value <= self.high

    @property
    def surely_failed(self) -> bool:
        """Whether the value and its whole interval fail, so that chance is no likely cause."""
        if self.passed is not False or self.interval is None:
            return False
        return self.interval[1] < self.low or self.interval[0] > self.high


@dataclass(frozen=True)
class GeneratorQuality:
    """Result of `assess`.

    Attributes:
        synthetic: figures of the samples, averaged over sampling seeds.
        real: the same figures of training rows that are left out for this purpose (`accuracy`: of a classifier
            trained on real rows).
        classes: number of classes compared.
        rows: number of samples, and of held-out rows, that are compared for each seed.
        intervals: 95 % intervals of `tstr` (`paired_ratio_interval`) and `nn_ratio` (bootstrap of the rows, Efron
            1979); that of `c2st` follows from its value, see `c2st_interval`.
    """

    synthetic: Figures
    real: Figures
    classes: int
    rows: int
    intervals: dict[str, Interval] = field(default_factory=dict)

    @property
    def tstr(self) -> float | None:
        """Accuracy after training on samples over that after training on real rows.

        None for fewer than two classes, and if training on real rows is not better than chance.
        """
        if self.synthetic.accuracy is None or self.real.accuracy is None or self.classes < 2:
            return None
        return None if self.real.accuracy <= 1 / self.classes else self.synthetic.accuracy / self.real.accuracy

    def gates(self) -> tuple[Gate, Gate, Gate]:
        """The three gates with the ranges that pass. None of them suffices alone."""
        tstr, c2st, nn_ratio = self.tstr, self.synthetic.c2st, self.synthetic.nn_ratio
        tstr_interval, nn_interval = self.intervals.get("tstr"), self.intervals.get("nn_ratio")
        c2st_ends = None if c2st is None else c2st_interval(c2st, self.rows)
        return (
            Gate("tstr", tstr, None if tstr is None else 1.0, 0.94, math.inf, self.rows, tstr_interval),
            Gate("c2st", c2st, self.real.c2st, 0.0, 0.63, self.rows, c2st_ends),
            Gate("nn_ratio", nn_ratio, self.real.nn_ratio, 0.85, 1.15, self.rows, nn_interval),
        )

    def as_dict(self) -> dict[str, float]:
        """All figures that have a value, by name; those of real rows have the suffix `_real`.

        Includes `rows`, and the ends of the gates' intervals with the suffixes `_low` and `_high`.
        """
        figures = {"tstr": self.tstr, **asdict(self.synthetic), "rows": self.rows or None}
        figures |= {f"{name}_real": value for name, value in asdict(self.real).items()}
        for gate in self.gates():
            if gate.value is not None and gate.interval is not None:
                figures |= {f"{gate.name}_low": gate.interval[0], f"{gate.name}_high": gate.interval[1]}
        return {name: float(value) for name, value in figures.items() if value is not None}


def assess(
    train: Rows,
    held_out: Rows,
    synthetic: Rows | Sampler,
    seeds: int = 3,
    max_rows: int = 2400,
    known: GeneratorQuality | None = None,
) -> GeneratorQuality:
    """Compare a generator's samples with held-out real rows of the same classes, and real rows with real rows.

    Equal numbers are compared: as many samples per class as there are held-out rows, and as many samples to train
    the classifier as there are training rows. Figures are means over `seeds`. For the figures of real rows, up to a
    third of the training rows of each class is left out at random and replaces the samples; the others are the training
    rows.

    All three sets must be rows of the same kind: group means vary less than single clips, so samples of single
    clips would look too wide compared with held-out group means.

    Classes with at least two training rows, a held-out row and a sample are compared.

    Args:
        train: the generator's training rows, (N, S, Da) or (N, D), on any device.
        held_out: real rows that it was not trained on.
        synthetic: a sampler, or samples; of these each seed uses another part, if there are enough.
        seeds: number of samplings to average, at least 1.
        max_rows: about the maximum number of rows of each set to compare, evenly over classes, to limit the time.
            The nearest training row is always searched among all.
        known: result for equally many other samples and the same rows. Its figures of real rows are reused, which
            saves half of the work, and `tstr` has no interval.

    Returns:
        Figures for logs, gates and warnings. A figure is None if there are too few rows for it.

    Raises:
        ValueError: widths differ, labels do not match, or a value is not finite.
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: must be at least 1")
    real, held = Table.of(*train, "training"), Table.of(*held_out, "held-out")
    classes = np.intersect1d(real.classes(at_least=2), held.classes())
    limit = max(2, max_rows // max(1, len(classes)))

    def draw(seed: int) -> Table:
        if not callable(synthetic):
            return Table.of(*synthetic, "synthetic")
        largest = max(real.largest_class(classes), held.largest_class(classes))
        return Table.of(*synthetic(min(limit, largest), seed), "synthetic")

    samples = [draw(seed) for seed in range(seeds)]
    for table in (held, *samples):
        if table.x.shape[1] != real.x.shape[1]:
            raise ValueError(f"rows have width {table.x.shape[1]}, but training rows have width {real.x.shape[1]}")
    for table in samples:
        classes = np.intersect1d(classes, table.classes())
    if len(classes) == 0:
        return GeneratorQuality(Figures(), Figures(), classes=0, rows=0)

    real, held, *samples = (table.of_classes(classes) for table in (real, held, *samples))
    held = held.choose(np.full(len(classes), limit), "held-out")
    scale = Scale.of(real.x)
    real, held, *samples = (Table(scale(table.x), table.y) for table in (real, held, *samples))

    synthetic_figures, real_figures = [], []
    intervals: dict[str, list[Interval]] = {"tstr": [], "nn_ratio": []}
    for seed, table in enumerate(samples):
        to_train = np.minimum(np.minimum(real.counts, table.counts), limit)
        figures, interval = compare(real, held, table, seed)
        correct = correct_rows(table.choose(to_train, "tstr", seed), held)
        synthetic_figures.append({**figures, "accuracy": _share(correct)})
        intervals["nn_ratio"] += [] if interval is None else [interval]
        if known is not None:
            continue
        left_out, remaining = real.split(np.minimum(held.counts, real.counts // 3), "left-out", seed)
        figures, _ = compare(remaining, held, left_out, seed)
        if seed == 0 or (to_train < real.counts).any():  # else the same as that of seed 0
            correct_by_real = correct_rows(real.choose(to_train, "tstr", seed), held)
        real_figures.append({**figures, "accuracy": _share(correct_by_real)})
        if correct is not None and correct_by_real is not None and correct_by_real.any():
            intervals["tstr"].append(paired_ratio_interval(correct, correct_by_real))
    rows = int(np.minimum(held.counts, np.min([table.counts for table in samples], axis=0)).sum())
    means = {name: _mean_interval(each) for name, each in intervals.items() if each}
    of_real = known.real if known is not None else _mean(real_figures)
    return GeneratorQuality(_mean(synthetic_figures), of_real, len(classes), rows, means)


def warnings_for(quality: GeneratorQuality, active: int | None = None) -> list[str]:
    """Problems of a generator with their remedies, one line each; empty for a good one.

    A gate only causes a warning if its whole interval fails, with at least `FEWEST_JUDGED` rows, so that no warning is
    due to chance alone. Several remedies name `generator=gaussian`, which uses the moments of the same rows: if it
    fails, too, the rows are the cause.

    Args:
        quality: from `assess`.
        active: from `active_units`, or None for a generator without a latent.
    """
    failed = {gate.name: gate for gate in quality.gates() if gate.surely_failed}
    nn_ratio, variance = quality.synthetic.nn_ratio, quality.synthetic.variance_ratio
    flat = variance is not None and variance < 0.5
    warnings = []
    if active is not None and active <= 1:
        warnings.append(
            f"The posterior has collapsed: {active} active latent units within classes. Lower the loss's beta_max, or "
            "set free_bits."
        )
    if flat:
        warnings.append(
            f"Samples have no spread: their variance within classes is {variance:.2f} of the training rows'. Sample "
            "with the moments of each class, as generator=gaussian does."
        )
    # Flat samples are at the class mean, closer to training rows than real rows are without being copies.
    if "nn_ratio" in failed and nn_ratio is not None and nn_ratio < (0.5 if flat else 1):
        warnings.append(
            f"Samples copy training rows: they are {nn_ratio:.2f} times as far from them as unseen rows are. Sample "
            "from the moments of each class, as generator=gaussian does."
        )
    if "nn_ratio" in failed and nn_ratio is not None and nn_ratio > 1:
        warnings.append(
            f"Samples are {'noise' if 'c2st' in failed else 'off their class'}: they are {nn_ratio:.2f} times as far "
            "from the training rows as unseen rows are. Use each class's own spread, with the correlations of its "
            "residuals, as generator=gaussian does, and check that every row has the condition of its class."
        )
    elif "c2st" in failed and not flat:
        warnings.append(
            f"Samples vary unlike real rows: a classifier between them has accuracy "
            f"{quality.synthetic.c2st:.2f}. Sample residuals with the correlations of the class, as generator=gaussian "
            "does."
        )
    if "tstr" in failed:
        warnings.append(
            f"Samples do not carry their class: a classifier trained on them is {quality.tstr:.2f} times as "
            "accurate as one trained on real rows. Check that every row has the condition of its class, and compare "
            "with generator=gaussian."
        )
    return warnings


def _share(mask: NDArray[np.bool_] | None) -> float | None:
    return None if mask is None else float(mask.mean())


def _mean_interval(intervals: Sequence[Interval]) -> Interval:
    """The mean of the ends, no narrower interval: more samplings are no additional held-out rows."""
    low, high = np.mean(intervals, axis=0)
    return float(low), float(high)


def _mean(figures: Sequence[dict[str, float | None]]) -> Figures:
    """The mean of each figure over the sets that have a value for it."""
    means = {}
    for name in (each.name for each in fields(Figures)):
        values = [value for each in figures if (value := each.get(name)) is not None]
        means[name] = float(np.mean(values)) if values else None
    return Figures(**means)
