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

`validation` calls it. scikit-learn is imported where it is used, as that takes seconds and few rounds are validated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fed_a2v.core.seeding import numpy_generator, seed_for

STD_FLOOR = 0.3
COMPONENTS = 64
NEIGHBOURS = 5
FOLDS = 5
FEWEST_ROWS = 10
"""Minimum rows of either set for two-sample figures: with fewer, their standard error would exceed 0.16."""
FEWEST_JUDGED = 40
"""Minimum rows of either set for the verdict of a gate: with fewer, good samples would fail the two-sample test by
chance in some rounds."""
QUANTILE = 1.96
"""Of the normal distribution, for 95 % intervals."""
RESAMPLES = 500
"""Bootstrap resamples."""
ACTIVE_VARIANCE = 0.01
"""Minimum variance (unbiased, pooled over classes) of the posterior mean of an active latent unit."""

Interval = tuple[float, float]


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
        one_nn_synthetic: the same for this set. Never average the two: a collapsed set has a low and a high one.
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
    real, held = _Table.of(train, "training"), _Table.of(held_out, "held-out")
    classes = np.intersect1d(real.classes(at_least=2), held.classes())
    limit = max(2, max_rows // max(1, len(classes)))

    def draw(seed: int) -> _Table:
        if not callable(synthetic):
            return _Table.of(synthetic, "synthetic")
        largest = max(real.largest_class(classes), held.largest_class(classes))
        return _Table.of(synthetic(min(limit, largest), seed), "synthetic")

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
    scale = _Scale.of(real.x)
    real, held, *samples = (_Table(scale(table.x), table.y) for table in (real, held, *samples))

    synthetic_figures, real_figures = [], []
    intervals: dict[str, list[Interval]] = {"tstr": [], "nn_ratio": []}
    for seed, table in enumerate(samples):
        to_train = np.minimum(np.minimum(real.counts, table.counts), limit)
        figures, interval = _compare(real, held, table, seed)
        correct = _correct(table.choose(to_train, "tstr", seed), held)
        synthetic_figures.append({**figures, "accuracy": _share(correct)})
        intervals["nn_ratio"] += [] if interval is None else [interval]
        if known is not None:
            continue
        left_out, remaining = real.split(np.minimum(held.counts, real.counts // 3), "left-out", seed)
        figures, _ = _compare(remaining, held, left_out, seed)
        if seed == 0 or (to_train < real.counts).any():  # else the same as that of seed 0
            correct_by_real = _correct(real.choose(to_train, "tstr", seed), held)
        real_figures.append({**figures, "accuracy": _share(correct_by_real)})
        if correct is not None and correct_by_real is not None and correct_by_real.any():
            intervals["tstr"].append(paired_ratio_interval(correct, correct_by_real))
    rows = int(np.minimum(held.counts, np.min([table.counts for table in samples], axis=0)).sum())
    means = {name: _mean_interval(each) for name, each in intervals.items() if each}
    of_real = known.real if known is not None else _mean(real_figures)
    return GeneratorQuality(_mean(synthetic_figures), of_real, len(classes), rows, means)


def c2st_interval(accuracy: float, rows: int) -> Interval:
    """95 % interval of a cross-validated accuracy on two sets of `rows` rows: Wilson's (1927), with `rows` trials.

    Not with 2 x `rows` trials, the number of rows classified: folds share their training rows, so the accuracy varies
    more between sets of rows than that of independent trials (Bengio & Grandvalet, 2004). For two sets from one
    distribution, the interval contains 0.5 in 19 of 20 cases with `rows` trials, in 15 to 17 with twice as many.
    """
    squared = QUANTILE**2
    centre = (accuracy * rows + squared / 2) / (rows + squared)
    half = QUANTILE * math.sqrt(accuracy * (1 - accuracy) * rows + squared / 4) / (rows + squared)
    return centre - half, centre + half


def paired_ratio_interval(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Interval:
    """95 % interval of the ratio of two accuracies on the same rows (Bonett & Price, 2006).

    Args:
        one: (N,) mask of the rows that the first classifier classifies correctly.
        other: (N,) mask of the second, with at least one row.
    """
    either, discordant = int((one | other).sum()), int((one ^ other).sum())
    first, second = int(one.sum()), int(other.sum())

    def log_error(number: int) -> float:
        return math.sqrt((1 - (number + 1) / (either + 2)) / (number + 1))

    joint = math.sqrt((discordant + 2) / ((first + 1) * (second + 1)))
    squared = (QUANTILE * joint / (log_error(first) + log_error(second))) ** 2

    def ends(number: int) -> Interval:
        centre = 2 * number + squared
        spread = math.sqrt(squared**2 + 4 * squared * number * (1 - number / either))
        return (centre - spread) / (2 * (either + squared)), (centre + spread) / (2 * (either + squared))

    (low, high), (other_low, other_high) = ends(first), ends(second)
    return low / other_high, high / other_low


@dataclass(frozen=True)
class SampleValidation:
    """Agreement of samples with held-out rows of their class: expectations over all pairs, then over classes.

    Attributes:
        similarity: mean cosine, by token.
        mse: mean squared difference.
        l1: mean absolute difference.
        per_class: mean cosine of each validated class, by name in sorted order.
    """

    similarity: float
    mse: float
    l1: float
    per_class: dict[str, float]


def validate_samples(synthetic: Rows, held_out: Rows, names: Sequence[str]) -> SampleValidation:
    """Cosine, MSE and L1 between each sample and each held-out row of its class, in the embeddings' own space.

    Real rows differ from each other, so the best possible similarity is not 1: compare with
    `validate_samples(train, held_out, names)`. A generator that always returns the class mean scores *better* than real
    rows; `assess` detects it.

    Args:
        synthetic: samples, (N, S, Da) or (N, D).
        held_out: real rows of the same width.
        names: class names; labels are indices into them.

    Raises:
        ValueError: no class has both a sample and a held-out row.
    """
    shared = sorted(set(synthetic.labels.tolist()) & set(held_out.labels.tolist()), key=lambda label: names[label])
    if not shared:
        raise ValueError("no class has both a sample and a held-out row; raise generator.holdout")
    figures = {}
    for label in shared:
        fake = synthetic.embeddings[synthetic.labels == label].detach().cpu().double()
        real = held_out.embeddings[held_out.labels == label].detach().cpu().double()
        # The mean over pairs of a product is the product of the means.
        cosine = (F.normalize(fake, dim=-1).mean(0) * F.normalize(real, dim=-1).mean(0)).sum(-1).mean()
        fake, real = fake.flatten(1), real.flatten(1)
        spread = fake.var(0, correction=0) + real.var(0, correction=0)
        mse = (spread + (fake.mean(0) - real.mean(0)).square()).mean()
        l1 = torch.cdist(fake, real, p=1).mean() / fake.shape[1]
        figures[names[label]] = (cosine.item(), mse.item(), l1.item())
    similarity, mse_mean, l1_mean = (float(mean) for mean in np.mean(list(figures.values()), axis=0))
    return SampleValidation(similarity, mse_mean, l1_mean, {name: each[0] for name, each in figures.items()})


def active_units(mu: Tensor, labels: Tensor) -> int | None:
    """Number of latent units whose posterior mean varies over the rows *of a class* (Burda et al., 2016).

    Units that only encode the class do not count, as the decoder gets the class from its condition.

    Args:
        mu: (N, L) posterior means.
        labels: (N,) integers.

    Returns:
        A number from 0 to L, or None if no class has two rows.
    """
    _, index = labels.unique(return_inverse=True)
    counts = index.bincount()
    freedom = len(mu) - len(counts)
    if freedom < 1:
        return None
    mu = mu.detach().double()
    means = mu.new_zeros(len(counts), mu.shape[1]).index_add_(0, index, mu) / counts[:, None]
    variance = (mu - means[index]).square().sum(0) / freedom
    return int((variance > ACTIVE_VARIANCE).sum())


def warnings_for(quality: GeneratorQuality, active: int | None = None) -> list[str]:
    """Problems of a generator with their remedies, one line each; empty for a good one.

    A gate only causes a warning if its whole interval fails, with at least `FEWEST_JUDGED` rows, so that no warning is
    due to chance alone. Several remedies name `generator=gaussian`, which uses the moments of the same rows: what it
    does not reach, the rows do not allow.

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


# The comparison itself, on numpy arrays.


@dataclass(frozen=True)
class _Table:
    """Flattened rows `x` (N, D) float32 and their classes `y` (N,) int64."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Rows, kind: str) -> _Table:
        x = rows.embeddings.detach().float().cpu().flatten(1).numpy()
        y = rows.labels.detach().cpu().numpy().astype(np.int64)
        if y.shape != x.shape[:1]:
            raise ValueError(f"{len(x)} {kind} rows need {len(x)} labels, got shape {y.shape}")
        if bad := int((~np.isfinite(x).all(1)).sum()):
            raise ValueError(f"{bad} of {len(x)} {kind} rows are not finite; lower generator.learning_rate")
        return cls(x, y)

    def classes(self, at_least: int = 1) -> NDArray[np.int64]:
        labels, counts = np.unique(self.y, return_counts=True)
        return labels[counts >= at_least]

    def largest_class(self, classes: NDArray[np.int64]) -> int:
        return max((int((self.y == label).sum()) for label in classes), default=0)

    def of_classes(self, classes: NDArray[np.int64]) -> _Table:
        """The rows of `classes` (sorted), numbered from 0."""
        keep = np.isin(self.y, classes)
        return _Table(self.x[keep], np.searchsorted(classes, self.y[keep]))

    @property
    def counts(self) -> NDArray[np.int64]:
        return np.bincount(self.y)

    def split(self, counts: NDArray[np.int64], *purpose: int | str) -> tuple[_Table, _Table]:
        """Up to `counts[c]` rows of each class c, at random, and the others; `purpose` is the seed."""
        shuffled = numpy_generator("quality", *purpose).permutation(len(self.y))
        order = shuffled[np.argsort(self.y[shuffled], kind="stable")]
        place = np.arange(len(order)) - np.searchsorted(self.y[order], self.y[order])
        first = place < counts[self.y[order]]
        chosen, others = order[first], order[~first]
        return _Table(self.x[chosen], self.y[chosen]), _Table(self.x[others], self.y[others])

    def choose(self, counts: NDArray[np.int64], *purpose: int | str) -> _Table:
        return self.split(counts, *purpose)[0]


class _Scale:
    """Standardisation with a minimum standard deviation."""

    def __init__(self, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
        self.mean, self.std = mean, std

    @classmethod
    def of(cls, x: NDArray[np.float32]) -> _Scale:
        std = x.std(0, dtype=np.float64)
        floor = STD_FLOOR * math.sqrt((std**2).mean()) or 1.0
        return cls(x.mean(0, dtype=np.float64).astype(np.float32), np.maximum(std, floor).astype(np.float32))

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return (x - self.mean) / self.std


def _compare(train: _Table, held: _Table, other: _Table, seed: int) -> tuple[dict[str, float | None], Interval | None]:
    """All figures except accuracy of `other` against `held`, and the 95 % interval of `nn_ratio`.

    Equal numbers of either are compared in each class.
    """
    means = _class_means(train)
    train_variance, variance = _within_variance(train), _within_variance(other)
    # Classes of identical rows vary by rounding errors alone.
    varied = train_variance is not None and train_variance > 1e-8 * train.x.shape[1]
    ratio = variance / train_variance if varied and variance is not None and train_variance else None
    counts = np.minimum(np.bincount(held.y, minlength=len(means)), np.bincount(other.y, minlength=len(means)))
    held = held.choose(counts, "compared", "held-out", seed)
    other = other.choose(counts, "compared", "other", seed)
    if len(other.y) == 0:
        return {"variance_ratio": ratio}, None
    near, near_held = _nearest_in_class(train, other), _nearest_in_class(train, held)
    figures: dict[str, float | None] = {"variance_ratio": ratio}
    interval = None
    # If held-out rows are copies of training rows, their distance is no reference.
    if np.median(near_held) > 1e-3:
        figures["nn_ratio"] = float(np.median(near) / np.median(near_held))
        interval = _median_ratio_interval(near, near_held, seed)
    if len(other.y) < FEWEST_ROWS:
        return figures, interval
    c2st = _c2st(train, means, held, other, seed) if varied else None
    return {**figures, "c2st": c2st, **_neighbourhoods(held.x, other.x)}, interval


def _class_means(rows: _Table) -> NDArray[np.float32]:
    """(C, D) class means."""
    return np.stack([rows.x[rows.y == label].mean(0) for label in range(len(rows.counts))])


def _within_variance(rows: _Table) -> float | None:
    """Unbiased variance within classes, summed over columns; None if no class has two rows."""
    freedom = len(rows.y) - len(rows.classes())
    if freedom < 1:
        return None
    total = sum(
        (rows.x[rows.y == label].var(0, dtype=np.float64) * (rows.y == label).sum()).sum() for label in rows.classes()
    )
    return float(total) / freedom


def _correct(train: _Table, test: _Table) -> NDArray[np.bool_] | None:
    """Rows of `test` that a logistic regression trained on `train` classifies correctly; None for a single class."""
    if len(train.classes()) < 2:
        return None
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=0.01, max_iter=1000, tol=1e-3).fit(train.x, train.y)
    correct: NDArray[np.bool_] = model.predict(test.x) == test.y
    return correct


def _share(mask: NDArray[np.bool_] | None) -> float | None:
    return None if mask is None else float(mask.mean())


def _nearest_in_class(train: _Table, rows: _Table) -> NDArray[np.float32]:
    """Distance of each row to the nearest training row of the same class."""
    from sklearn.metrics.pairwise import euclidean_distances

    distances = [
        euclidean_distances(rows.x[rows.y == label], train.x[train.y == label]).min(1) for label in rows.classes()
    ]
    return np.concatenate(distances)


def _median_ratio_interval(one: NDArray[np.float32], other: NDArray[np.float32], seed: int) -> Interval:
    """95 % interval of the ratio of two medians: percentiles over bootstrap resamples."""
    random = numpy_generator("quality", "bootstrap", seed)

    def medians(values: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = random.integers(len(values), size=(RESAMPLES, len(values)))
        resampled: NDArray[np.float32] = np.median(values[rows], axis=1)
        return resampled

    low, high = np.percentile(medians(one) / np.maximum(medians(other), 1e-12), [2.5, 97.5])
    return float(low), float(high)


def _mean_interval(intervals: Sequence[Interval]) -> Interval:
    """The mean of the ends, no narrower interval: more samplings are no additional held-out rows."""
    low, high = np.mean(intervals, axis=0)
    return float(low), float(high)


def _c2st(train: _Table, means: NDArray[np.float32], held: _Table, other: _Table, seed: int) -> float | None:
    """Cross-validated accuracy of a classifier between `other` and `held`, on residuals from the training class means.

    Features: the top principal components of the training rows' residuals, their absolute values (for a different
    spread), and the log norm of the whole residual.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    residuals = train.x - means[train.y]
    # Of the N - C directions of the training residuals, the half with less variance is mostly sampling error.
    size = min(COMPONENTS, (len(train.y) - len(means)) // 2, residuals.shape[1])
    if size < 1:
        return None
    directions = PCA(size, random_state=seed_for("quality", "pca") % 2**32).fit(residuals)

    def features(rows: _Table) -> NDArray[Any]:
        residual = rows.x - means[rows.y]
        z = directions.transform(residual)
        norm = np.linalg.norm(residual, axis=1, keepdims=True)
        return np.hstack([z, np.abs(z), np.log(norm + 1e-6)])

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed_for("quality", "folds", seed) % 2**32)
    side = np.repeat([0, 1], [len(held.y), len(other.y)])
    return float(cross_val_score(model, np.vstack([features(held), features(other)]), side, cv=folds).mean())


def _neighbourhoods(real: NDArray[np.float32], other: NDArray[np.float32]) -> dict[str, float | None]:
    """Precision, recall and both one-sided 1-NN accuracies of two sets of equal size."""
    from sklearn.metrics.pairwise import euclidean_distances

    k = min(NEIGHBOURS, len(real) // FEWEST_ROWS)
    within_real, within_other = euclidean_distances(real), euclidean_distances(other)
    across = euclidean_distances(real, other)
    # Column 0 of the sorted distances is the row itself.
    real_radius, other_radius = np.sort(within_real)[:, k], np.sort(within_other)[:, k]
    np.fill_diagonal(within_real, np.inf)
    np.fill_diagonal(within_other, np.inf)
    return {
        "precision": float((across <= real_radius[:, None]).any(0).mean()),
        "recall": float((across <= other_radius[None, :]).any(1).mean()),
        "one_nn_held_out": float((within_real.min(1) < across.min(1)).mean()),
        "one_nn_synthetic": float((within_other.min(1) < across.min(0)).mean()),
    }


def _mean(figures: Sequence[dict[str, float | None]]) -> Figures:
    """The mean of each figure over the sets that have a value for it."""
    means = {}
    for name in (each.name for each in fields(Figures)):
        values = [value for each in figures if (value := each.get(name)) is not None]
        means[name] = float(np.mean(values)) if values else None
    return Figures(**means)
