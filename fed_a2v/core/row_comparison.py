"""Figures that compare two sets of rows, on numpy arrays; `quality` and `network` use them.

Rows are compared with tokens flattened, (N, D). scikit-learn is imported where it is used, as that takes seconds and
few rounds are validated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fed_a2v.core.one_thread import one_thread
from fed_a2v.core.seeding import numpy_generator, seed_for
from fed_a2v.core.uncertainty import QUANTILE, Interval, wilson_interval

STD_FLOOR = 0.3
COMPONENTS = 64
NEIGHBOURS = 5
FOLDS = 5
FEWEST_ROWS = 10
"""Minimum rows of either set for two-sample figures: with fewer, their standard error would exceed 0.16."""
RESAMPLES = 500
"""Bootstrap resamples."""


@dataclass(frozen=True)
class Table:
    """Flattened rows `x` (N, D) float32 and their classes `y` (N,) int64."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]

    @classmethod
    def of(cls, embeddings: Tensor, labels: Tensor, kind: str) -> Table:
        """A table of (N, S, Da) or (N, D) embeddings.

        Args:
            embeddings: the rows, on any device.
            labels: (N,) integers.
            kind: words for the rows in errors.

        Raises:
            ValueError: labels do not match, or a value is not finite.
        """
        x = embeddings.detach().float().cpu().flatten(1).numpy()
        y = labels.detach().cpu().numpy().astype(np.int64)
        if y.shape != x.shape[:1]:
            raise ValueError(f"{len(x)} {kind} rows need {len(x)} labels, got shape {y.shape}")
        if bad := int((~np.isfinite(x).all(1)).sum()):
            raise ValueError(f"{bad} of {len(x)} {kind} rows are not finite; lower generator.learning_rate")
        return cls(x, y)

    def classes(self, at_least: int = 1) -> NDArray[np.int64]:
        """The classes with at least so many rows, sorted."""
        labels, counts = np.unique(self.y, return_counts=True)
        return labels[counts >= at_least]

    def largest_class(self, classes: NDArray[np.int64]) -> int:
        """Number of rows of the largest of these classes."""
        return max((int((self.y == label).sum()) for label in classes), default=0)

    def of_classes(self, classes: NDArray[np.int64]) -> Table:
        """The rows of `classes` (sorted), numbered from 0."""
        keep = np.isin(self.y, classes)
        return Table(self.x[keep], np.searchsorted(classes, self.y[keep]))

    @property
    def counts(self) -> NDArray[np.int64]:
        """(C,) rows of each class."""
        return np.bincount(self.y)

    def split(self, counts: NDArray[np.int64], *purpose: int | str) -> tuple[Table, Table]:
        """Up to `counts[c]` rows of each class c, at random, and the others; `purpose` is the seed."""
        shuffled = numpy_generator("quality", *purpose).permutation(len(self.y))
        order = shuffled[np.argsort(self.y[shuffled], kind="stable")]
        place = np.arange(len(order)) - np.searchsorted(self.y[order], self.y[order])
        first = place < counts[self.y[order]]
        chosen, others = order[first], order[~first]
        return Table(self.x[chosen], self.y[chosen]), Table(self.x[others], self.y[others])

    def choose(self, counts: NDArray[np.int64], *purpose: int | str) -> Table:
        """The first part of `split`."""
        return self.split(counts, *purpose)[0]


class Scale:
    """Standardisation with a minimum standard deviation."""

    def __init__(self, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
        self.mean, self.std = mean, std

    @classmethod
    def of(cls, x: NDArray[np.float32]) -> Scale:
        """The standardisation of (N, D) rows."""
        std = x.std(0, dtype=np.float64)
        floor = STD_FLOOR * math.sqrt((std**2).mean()) or 1.0
        return cls(x.mean(0, dtype=np.float64).astype(np.float32), np.maximum(std, floor).astype(np.float32))

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, D) standardised rows."""
        return (x - self.mean) / self.std


def compare(train: Table, held: Table, other: Table, seed: int) -> tuple[dict[str, float | None], Interval | None]:
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


def _class_means(rows: Table) -> NDArray[np.float32]:
    """(C, D) class means."""
    return np.stack([rows.x[rows.y == label].mean(0) for label in range(len(rows.counts))])


def _within_variance(rows: Table) -> float | None:
    """Unbiased variance within classes, summed over columns; None if no class has two rows."""
    freedom = len(rows.y) - len(rows.classes())
    if freedom < 1:
        return None
    total = sum(
        (rows.x[rows.y == label].var(0, dtype=np.float64) * (rows.y == label).sum()).sum() for label in rows.classes()
    )
    return float(total) / freedom


@one_thread()
def correct_rows(train: Table, test: Table) -> NDArray[np.bool_] | None:
    """Rows of `test` that a logistic regression trained on `train` classifies correctly; None for a single class."""
    if len(train.classes()) < 2:
        return None
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=0.01, max_iter=1000, tol=1e-3).fit(train.x, train.y)
    correct: NDArray[np.bool_] = model.predict(test.x) == test.y
    return correct


@one_thread()
def _nearest_in_class(train: Table, rows: Table) -> NDArray[np.float32]:
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


@one_thread()
def _c2st(train: Table, means: NDArray[np.float32], held: Table, other: Table, seed: int) -> float | None:
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

    def features(rows: Table) -> NDArray[Any]:
        residual = rows.x - means[rows.y]
        z = directions.transform(residual)
        norm = np.linalg.norm(residual, axis=1, keepdims=True)
        return np.hstack([z, np.abs(z), np.log(norm + 1e-6)])

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed_for("quality", "folds", seed) % 2**32)
    side = np.repeat([0, 1], [len(held.y), len(other.y)])
    return float(cross_val_score(model, np.vstack([features(held), features(other)]), side, cv=folds).mean())


@one_thread()
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


# Intervals


def c2st_interval(accuracy: float, rows: int) -> Interval:
    """95 % interval of a cross-validated accuracy on two sets of `rows` rows: Wilson's, with `rows` trials.

    Not with 2 x `rows` trials, the number of rows classified: folds share their training rows, so the accuracy varies
    more between sets of rows than that of independent trials (Bengio & Grandvalet, 2004). For two sets from one
    distribution, the interval contains 0.5 in 19 of 20 cases with `rows` trials, in 15 to 17 with twice as many.
    """
    return wilson_interval(accuracy, rows)


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
