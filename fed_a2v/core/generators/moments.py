"""What prototypes say about the spread of their class, and draws that have that spread.

A prototype is the mean of a group of clips, so prototypes lie closer together than clips do. Their counts and
within-group variances restore the spread of the clips: by the law of total variance,
`Var = sum_k n_k ((q_k - mu)^2 + v_k) / (N - 1)`.

Shapes: C classes, K the largest number of prototypes of a class, D = S x Da.
"""

from __future__ import annotations

import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor, nn

from fed_a2v.core.prompts import PrototypeRows

# A group's deviation is not blown up by more than this factor to reach the total variance.
LARGEST_CORRECTION = 3.0
# A class with fewer prototypes gets rows drawn from its moments up to this number, where a network trains on rows.
ROWS_PER_CLASS = 8
# Where nothing tells the spread within classes (one mean each, no variance sent), it is taken to be this
# share of the deviation between classes.
UNKNOWN_SPREAD = 0.5


class ClassMoments(nn.Module):
    """Mean, deviation and principal directions of each class, as buffers that a checkpoint carries.

    Attributes:
        mean: (C, D) mean over clips.
        std: (C, D) deviation over clips.
        directions: (C, K, D), such that `w @ directions` with w ~ N(0, I_K) has the class's covariance; zero
            rows where a class has fewer than K prototypes.
        correlated: (N, D) rows such that `v @ correlated` with v ~ N(0, I_N) has the pooled correlation of
            all classes, shrunk; with `independent` (D,), the deviation of the rest.
    """

    mean: Tensor
    std: Tensor
    directions: Tensor
    correlated: Tensor
    independent: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("mean", "std", "directions", "correlated", "independent"):
            self.register_buffer(name, torch.empty(0))

    @torch.no_grad()
    def fit(self, rows: PrototypeRows) -> None:
        """Measure the moments of `rows`, replacing all that was measured before."""
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
        self.directions = self._directions(counts, offsets)
        self._fit_correlation()

    def _directions(self, counts: Tensor, offsets: Tensor) -> Tensor:
        """Prototype offsets, rescaled per dimension so that they carry the class's whole variance."""
        raw = counts.sqrt().unsqueeze(-1) * offsets
        free = ((counts > 0).sum(dim=1) - 1).clamp(min=1).sqrt()[:, None, None]
        raw = raw / free
        spread = raw.square().sum(dim=1).sqrt()
        factor = (self.std / spread.clamp(min=1e-12)).clamp(max=LARGEST_CORRECTION)
        return raw * factor.unsqueeze(1)

    def _fit_correlation(self) -> None:
        """Pooled correlation of the directions, shrunk to its diagonal (Ledoit & Wolf 2004)."""
        scaled = (self.directions / self.std.clamp(min=1e-12).unsqueeze(1)).flatten(0, 1)
        scaled = scaled[scaled.square().sum(dim=1) > 0]
        if len(scaled) < 2:
            self.correlated = torch.zeros(1, self.mean.shape[1], device=self.mean.device)
            self.independent = torch.ones_like(self.mean[0])
            return
        # Unit variance of the rows' average, and no single entry that owns a column.
        scaled = (scaled * len(scaled) ** 0.5 / len(self.mean) ** 0.5).clamp(-8, 8)
        scaled = scaled / scaled.square().mean(dim=0).sqrt().clamp(min=1e-6)
        shrinkage = float(ledoit_wolf_shrinkage(scaled.cpu().numpy(), assume_centered=True))
        self.correlated = scaled * ((1 - shrinkage) / len(scaled)) ** 0.5
        self.independent = torch.full_like(self.mean[0], shrinkage**0.5)

    def spread_rows(self, rows: PrototypeRows) -> Tensor:
        """(N, D) rows of the same classes and directions, as far from their class's mean as clips are."""
        table, valid = _by_class(rows)
        scale = (valid.sum(dim=1) - 1).clamp(min=0).sqrt()[:, None, None]
        spread = self.mean.unsqueeze(1) + self.directions * scale
        out = torch.empty_like(rows.embeddings.flatten(1))
        out[table[valid > 0]] = spread[valid > 0]
        return out

    def training_rows(self, rows: PrototypeRows, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """`spread_rows`, and draws from the moments for classes with few of them: (M, D) rows and (M,) labels."""
        counts = torch.bincount(rows.labels, minlength=len(rows.names))
        missing = (ROWS_PER_CLASS - counts).clamp(min=0)
        extra = torch.repeat_interleave(torch.arange(len(counts), device=missing.device), missing)
        drawn = self.mean[extra] + self.residuals(extra, 1.0, random)
        return torch.cat([self.spread_rows(rows), drawn]), torch.cat([rows.labels, extra])

    def residuals(self, labels: Tensor, shrinkage: float, random: torch.Generator) -> Tensor:
        """(B, D) draws of the classes' spread around zero.

        A class's own covariance has at most K - 1 directions. `shrinkage` of the variance comes instead from
        the pooled correlation, scaled by the class's own deviations.
        """
        own = self.draw_directions(self.directions, labels, random)
        pooled = self.pooled_noise(len(labels), random) * self.std[labels]
        # A class without directions of its own gets its whole spread from the pooled part.
        lone = (self.directions.square().sum(dim=(1, 2)) == 0)[labels].unsqueeze(-1)
        share = torch.where(lone, 1.0, shrinkage)
        return (1 - share).sqrt() * own + share.sqrt() * pooled

    def pooled_noise(self, number: int, random: torch.Generator) -> Tensor:
        """(number, D) draws with unit variance and the pooled correlation."""
        common = _normal((number, len(self.correlated)), self.mean, random) @ self.correlated
        return common + _normal((number, self.mean.shape[1]), self.mean, random) * self.independent

    @staticmethod
    def draw_directions(directions: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        """(B, D): a random Gaussian combination of each row's class's (K, D) directions."""
        number, (_, most, width) = len(labels), directions.shape
        weights = _normal((number, most), directions, random)
        # One product per class instead of a (B, K, D) gather: rows of a class share its directions.
        out = directions.new_empty(number, width)
        for label in labels.unique().tolist():
            rows = labels == label
            out[rows] = weights[rows] @ directions[label]
        return out

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        # Shapes depend on the data, so the buffers take the checkpoint's shapes.
        for name in self._buffers:
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _normal(shape: tuple[int, int], like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=random, device=random.device, dtype=like.dtype).to(like.device)


def _by_class(rows: PrototypeRows) -> tuple[Tensor, Tensor]:
    """(C, K) row numbers of each class, padded with 0, and the mask of those that are not padding."""
    numbers = [torch.nonzero(rows.labels == label).flatten() for label in range(len(rows.names))]
    valid = nn.utils.rnn.pad_sequence([torch.ones(len(n)) for n in numbers], batch_first=True)
    return nn.utils.rnn.pad_sequence(numbers, batch_first=True), valid.to(rows.embeddings.device)


def _total_deviation(between: Tensor, within: Tensor, clips: Tensor, groups: Tensor, mean: Tensor) -> Tensor:
    """(C, D) deviation of the clips of each class, by the law of total variance.

    Where groups came without their variance, the spread of group means over (groups - 1) is used, which is
    unbiased for random groups. Where a class has a single mean and no variance, the other classes' average
    stands in, and failing that a share of the deviation between classes.
    """
    sent = within.sum(dim=1) > 0
    single_clips = clips == groups
    free = torch.where(sent | single_clips, clips - 1, groups - 1).clamp(min=1)
    variance = (between + within) / free.unsqueeze(-1)
    known = sent | (groups > 1)
    unknown = UNKNOWN_SPREAD**2 * mean.var(dim=0, correction=0)
    fallback = variance[known].mean(dim=0) if known.any() else unknown
    return torch.where(known.unsqueeze(-1), variance, fallback).sqrt()
