"""Mean and spread of the clips of each class, measured on prototypes, and draws that have them.

Every generator of known classes has `ClassMoments`; validation uses them as a baseline.

A prototype is the mean of a group of clips, so prototypes are closer together than clips. Their counts and
within-group variances restore the spread of the clips: by the law of total variance,
`Var = sum_k n_k ((q_k - mu)^2 + v_k) / (N - 1)`.

Shapes: C classes, K the largest number of prototypes of a class, D = S x Da.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fed_a2v.core.generators.parts.buffers import DataSizedModule
from fed_a2v.core.generators.parts.draws import normal
from fed_a2v.core.likelihood import gaussian_log_density
from fed_a2v.core.statistics import PrototypeBatch

# Largest factor by which a group's deviation is scaled up to reach the total variance.
LARGEST_CORRECTION = 3.0
# If a model trains on rows, a class with fewer prototypes gets rows drawn from its moments up to this number.
ROWS_PER_CLASS = 8
# A Gaussian whose mean is so many deviations above 0 has practically no negative part.
NEVER_NEGATIVE = 6.0
# Share of a class's variance that is drawn with the pooled correlation of all classes: a class's own few rows span only
# a few directions.
SHRINKAGE = 0.3
# If the spread within classes is unknown (one mean each, no variance sent), it is taken to be this share of the
# deviation between classes.
UNKNOWN_SPREAD = 0.5


class ClassMoments(DataSizedModule):
    """Mean, deviation and principal directions of each class, as buffers that a checkpoint carries.

    Attributes:
        mean: (C, D) mean over clips.
        std: (C, D) deviation over clips.
        stretch: (C, D) factor from a prototype's offset from the mean, times the root of its count, to the offset
            of a clip.
        drawn_mean, drawn_std: (C, D) moments to draw with; of non-negative rows, before `rectify` (see there).
        non_negative: (), whether no row has a negative entry.
        directions: (C, K, D), such that `w @ directions` with w ~ N(0, I_K) has the class's covariance; zero
            rows if a class has fewer than K prototypes.
        correlated: (N, D) rows such that `v @ correlated` with v ~ N(0, I_N) has the pooled correlation of
            all classes, shrunk; with `independent` (D,), the deviation of the rest.
    """

    mean: Tensor
    std: Tensor
    stretch: Tensor
    drawn_mean: Tensor
    drawn_std: Tensor
    non_negative: Tensor
    directions: Tensor
    correlated: Tensor
    independent: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in self.__annotations__:
            self.register_buffer(name, torch.empty(0))
        self.non_negative = torch.tensor(False)

    @torch.no_grad()
    def fit(self, rows: PrototypeBatch) -> None:
        """Measure the moments of `rows`; replaces all earlier ones."""
        table, valid = _by_class(rows)
        counts = rows.counts[table] * valid
        means, variances = rows.embeddings.flatten(1)[table], rows.variances.flatten(1)[table]
        clips = counts.sum(dim=1).clamp(min=1)
        weight = counts.unsqueeze(-1)
        self.mean = (weight * means).sum(dim=1) / clips.unsqueeze(-1)
        offsets = (means - self.mean.unsqueeze(1)) * valid.unsqueeze(-1)
        between = (weight * offsets.square()).sum(dim=1)
        within = (weight * variances).sum(dim=1)
        self.std = _total_deviation(between, within, clips, valid.sum(dim=1), self.mean)
        self.non_negative = (rows.embeddings >= 0).all()
        self.drawn_mean, self.drawn_std = (
            _before_rectification(self.mean, self.std) if self.non_negative else (self.mean, self.std)
        )
        self._measure_directions(counts, offsets)
        self._fit_correlation()

    def _measure_directions(self, counts: Tensor, offsets: Tensor) -> None:
        """Prototype offsets, rescaled per dimension so that they carry the class's whole variance."""
        # Degrees of freedom of the class's prototypes.
        free = ((counts > 0).sum(dim=1) - 1).clamp(min=1).sqrt()[:, None, None]
        raw = counts.sqrt().unsqueeze(-1) * offsets / free
        spread = raw.square().sum(dim=1).sqrt()
        self.stretch = (self.std / spread.clamp(min=1e-12)).clamp(max=LARGEST_CORRECTION)
        self.directions = raw * self.stretch.unsqueeze(1)

    def _fit_correlation(self) -> None:
        """Pooled correlation of the directions, shrunk to its diagonal (Ledoit & Wolf 2004)."""
        scaled = (self.directions / self.std.clamp(min=1e-12).unsqueeze(1)).flatten(0, 1)
        scaled = scaled[scaled.square().sum(dim=1) > 0]
        if len(scaled) < 2:
            self.correlated = torch.zeros(1, self.mean.shape[1], device=self.mean.device)
            self.independent = torch.ones_like(self.mean[0])
            return
        # Unit variance on average; clamped, so that no single entry dominates a column.
        scaled = (scaled * len(scaled) ** 0.5 / len(self.mean) ** 0.5).clamp(-8, 8)
        scaled = scaled / scaled.square().mean(dim=0).sqrt().clamp(min=1e-6)
        shrinkage = ledoit_wolf_shrinkage(scaled)
        self.correlated = scaled * ((1 - shrinkage) / len(scaled)) ** 0.5
        self.independent = torch.full_like(self.mean[0], shrinkage**0.5)

    def spread_rows(self, rows: PrototypeBatch) -> Tensor:
        """(N, D) rows as far from their class's mean as clips are, in the direction of each of N prototypes.

        The prototypes may be the measured ones, or others of the same classes, such as held-out ones.
        """
        mean = self.mean[rows.labels]
        offsets = rows.counts.sqrt().unsqueeze(1) * (rows.embeddings.flatten(1) - mean)
        return mean + offsets * self.stretch[rows.labels]

    def training_rows(self, rows: PrototypeBatch, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """`spread_rows`, and draws from the moments for classes with few rows: (M, D) rows and (M,) labels."""
        counts = torch.bincount(rows.labels, minlength=len(rows.names))
        missing = (ROWS_PER_CLASS - counts).clamp(min=0)
        extra = torch.repeat_interleave(torch.arange(len(counts), device=missing.device), missing)
        sampled = self.mean[extra] + self.residuals(extra, 1.0, random)
        return torch.cat([self.spread_rows(rows), sampled]), torch.cat([rows.labels, extra])

    @staticmethod
    def batches(rows: PrototypeBatch, batch_size: int) -> int:
        """Batches of one pass over `training_rows`."""
        number = torch.bincount(rows.labels, minlength=len(rows.names)).clamp(min=ROWS_PER_CLASS).sum()
        return math.ceil(int(number) / batch_size)

    def draw(self, labels: Tensor, shrinkage: float, random: torch.Generator) -> Tensor:
        """(B, D) Gaussian draws of the classes `labels`; see `residuals`."""
        scale = self.drawn_std / self.std.clamp(min=1e-12)
        return self.rectify(self.drawn_mean[labels] + scale[labels] * self.residuals(labels, shrinkage, random))

    def rectify(self, rows: Tensor) -> Tensor:
        """(B, D) rows with negative entries set to 0, if the data have none.

        That raises their mean and lowers their deviation. So rows are first drawn with `drawn_mean` and `drawn_std`:
        after rectification they have the classes' moments, and about as many exact zeros as the data.
        """
        return rows.clamp(min=0) if self.non_negative else rows

    @torch.no_grad()
    def log_density(self, rows: Tensor, labels: Tensor, shrinkage: float, noise: Tensor) -> Tensor:
        """(B,) log densities of (B, D) rows under the Gaussians of their classes `labels`.

        The covariances are those of `residuals` plus noise with the (D,) deviation `noise`; nothing is rectified.
        """
        densities = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
        pooled = self.correlated
        if len(pooled) > pooled.shape[1]:
            pooled = torch.linalg.qr(pooled, mode="r").R  # the same covariance
        for label in labels.unique().tolist():
            own, std = self.directions[label], self.std[label]
            share = 1.0 if not own.any() else shrinkage
            factors = torch.cat([(1 - share) ** 0.5 * own, share**0.5 * std * pooled])
            variances = share * (self.independent * std).square() + noise.square()
            offsets = rows[labels == label] - self.mean[label]
            densities[labels == label] = gaussian_log_density(offsets, factors, variances)
        return densities

    def residuals(self, labels: Tensor, shrinkage: float, random: torch.Generator) -> Tensor:
        """(B, D) draws of the classes' spread around zero.

        A class's own covariance has at most K - 1 directions. `shrinkage` of the variance comes instead from
        the pooled correlation, scaled by the class's own deviations.
        """
        own = self.draw_directions(self.directions, labels, random)
        pooled = self.pooled_noise(len(labels), random) * self.std[labels]
        # A class without any directions gets its whole spread from the pooled part.
        without_directions = (self.directions.square().sum(dim=(1, 2)) == 0)[labels].unsqueeze(-1)
        share = torch.where(without_directions, 1.0, shrinkage)
        return (1 - share).sqrt() * own + share.sqrt() * pooled

    def pooled_noise(self, number: int, random: torch.Generator) -> Tensor:
        """(number, D) draws with unit variance and the pooled correlation."""
        common = normal((number, len(self.correlated)), self.mean, random) @ self.correlated
        return common + normal((number, self.mean.shape[1]), self.mean, random) * self.independent

    @staticmethod
    def draw_directions(directions: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        """(B, D): a random Gaussian combination of each row's class's (K, D) directions."""
        number, (_, most, width) = len(labels), directions.shape
        weights = normal((number, most), directions, random)
        # One product per class in place of a (B, K, D) gather: rows of a class share its directions.
        out = directions.new_empty(number, width)
        for label in labels.unique().tolist():
            rows = labels == label
            out[rows] = weights[rows] @ directions[label]
        return out


def ledoit_wolf_shrinkage(rows: Tensor) -> float:
    """The best share, in [0, 1], of its diagonal's mean in the shrunk covariance of centred (N, D) rows.

    Ledoit & Wolf 2004, with D as the number of variables. Both sums come from the smaller of the (N, N) and (D, D)
    products: a few hundred rows of ten thousand columns take milliseconds.
    """
    number, width = rows.shape
    x = rows.double()
    small = x if number <= width else x.T
    squared = (small @ small.T).square().sum() / number**2
    mean_variance = x.square().sum() / (number * width)
    error = x.square().sum(dim=1).square().sum() / number - squared
    beta = error / (number * width)
    delta = squared / width - mean_variance.square()
    return float((torch.minimum(beta, delta) / delta).clamp(0, 1)) if delta > 0 and beta > 0 else 0.0


def _before_rectification(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the Gaussians that have `mean` and `std` after `ClassMoments.rectify`.

    For a Gaussian of deviation 1 and mean a, the ratio of mean to deviation after rectification grows with a, which
    bisection finds. It stops at a = 0: rarer entries have too heavy a tail to be estimated from a few clips; their
    mean is right then, and their deviation too small.
    """
    ratio = mean / std.clamp(min=1e-12)
    low, high = torch.zeros_like(ratio), torch.full_like(ratio, NEVER_NEGATIVE)
    for _ in range(24):
        middle = (low + high) / 2
        above = torch.div(*_rectified_moments(middle)) > ratio
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    rectified_mean, rectified_std = _rectified_moments(low)
    scale = torch.minimum(std / rectified_std, mean / rectified_mean)
    far = ratio > NEVER_NEGATIVE
    return torch.where(far, mean, scale * low), torch.where(far, std, scale)


def _rectified_moments(mean: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of max(0, x) for x ~ N(mean, 1)."""
    density = (-0.5 * mean.square()).exp() / math.sqrt(2 * math.pi)
    positive = torch.special.ndtr(mean)
    first = mean * positive + density
    second = (mean.square() + 1) * positive + mean * density
    return first, (second - first.square()).sqrt()


def _by_class(rows: PrototypeBatch) -> tuple[Tensor, Tensor]:
    """(C, K) row numbers of each class, padded with 0, and the mask of those that are not padding."""
    numbers = [torch.nonzero(rows.labels == label).flatten() for label in range(len(rows.names))]
    valid = nn.utils.rnn.pad_sequence([torch.ones(len(n)) for n in numbers], batch_first=True)
    return nn.utils.rnn.pad_sequence(numbers, batch_first=True), valid.to(rows.embeddings.device)


def _total_deviation(between: Tensor, within: Tensor, clips: Tensor, groups: Tensor, mean: Tensor) -> Tensor:
    """(C, D) deviation of the clips of each class, by the law of total variance.

    For groups without a variance, the spread of the group means over (groups - 1) is used, which is unbiased for random
    groups. A class with a single mean and no variance gets the average of the other classes or, without any, a share
    of the deviation between classes.
    """
    sent = within.sum(dim=1) > 0
    single_clips = clips == groups
    free = torch.where(sent | single_clips, clips - 1, groups - 1).clamp(min=1)
    variance = (between + within) / free.unsqueeze(-1)
    known = sent | (groups > 1)
    unknown = UNKNOWN_SPREAD**2 * mean.var(dim=0, correction=0)
    fallback = variance[known].mean(dim=0) if known.any() else unknown
    return torch.where(known.unsqueeze(-1), variance, fallback).sqrt()
