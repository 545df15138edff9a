"""Differential privacy of the sums that leave a site: how much noise a budget needs, the noise, and what it adds up to.

All sums of a site are one Gaussian mechanism (Dwork & Roth 2014): a clip of length 1 changes the sum of rows, the class
sums and the upper triangle of the scatter each by at most 1, so Gaussian noise on each hides whether a clip takes part.
The exact relation of epsilon, delta and noise is that of Balle & Wang (2018), computed by the library `dp-accounting`.

The neighbouring relation is to add or remove one clip (`level="clip"`), or all clips of a site (`level="site"`). Class
names and numbers of clips count as public.

Sums and noise are whole multiples of `GRID`, so that no digit below the noise depends on the clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fed_a2v.core.class_sums import ClassSums
from fed_a2v.core.discrete_gaussian import discrete_gaussian

Level = Literal["clip", "site"]

# Shares of the budget for the sum of rows, the class sums and the scatter. Measured on real embeddings: the class sums
# need most, and without a scatter they get its share.
CENTRE_SHARE, CLASS_SHARE, SCATTER_SHARE = 0.05, 0.80, 0.15
# Distance of neighbouring values of a release; a power of two, so that all values are exact.
GRID = 2.0**-30

# Draws (n,) int64 samples of a Gaussian distribution; arguments: its deviation, from 1, and n.
Normals = Callable[[int, int], Tensor]


class ReleaseNoise(NamedTuple):
    """Deviations of the Gaussian noise on each entry of the three sums that a site, or all sites together, release.

    Attributes:
        centre: of the sum of uncentred rows.
        classes: of the class sums.
        scatter: of the scatter; infinite if it is not released.
    """

    centre: float
    classes: float
    scatter: float

    def shared_by(self, sites: int) -> ReleaseNoise:
        """The noise of each of several sites whose sum has this noise, if the server sees nothing but the sum."""
        return ReleaseNoise(*(deviation / math.sqrt(sites) for deviation in self))


@dataclass(frozen=True)
class Budget:
    """What all releases of a site may reveal of one clip, or of the site.

    Attributes:
        epsilon: bound on the log ratio of probabilities, above 0.
        delta: probability with which the bound may fail, between 0 and 1.
        level: what is added or removed.
    """

    epsilon: float
    delta: float
    level: Level = "clip"

    def noise(self, max_norm: float = 1.0, scatter: bool = True) -> ReleaseNoise:
        """The noise of one release of all three sums.

        Args:
            max_norm: largest norm of what a clip, or a site, adds to each sum; 1 for a clip.
            scatter: whether the scatter is released; if not, the class sums have its share of the budget.
        """
        from dp_accounting import get_sigma_gaussian

        sigma = max_norm * get_sigma_gaussian(self.epsilon, self.delta)
        classes = CLASS_SHARE + (0.0 if scatter else SCATTER_SHARE)
        return ReleaseNoise(
            sigma / math.sqrt(CENTRE_SHARE),
            sigma / math.sqrt(classes),
            sigma / math.sqrt(SCATTER_SHARE) if scatter else math.inf,
        )


def epsilon_of(deviations: Iterable[float], delta: float, max_norm: float = 1.0) -> float:
    """Epsilon of Gaussian releases together, each of a sum that changes by at most `max_norm`; 0 without a release.

    Gaussian mechanisms compose to one: the squared ratios of norm and deviation add up (Dong, Roth & Su 2022).

    Args:
        deviations: deviations of the noise on each release.
        delta: as in `Budget`.
        max_norm: as in `Budget.noise`.
    """
    from dp_accounting import get_epsilon_gaussian

    total = math.sqrt(sum((max_norm / deviation) ** 2 for deviation in deviations))
    return get_epsilon_gaussian(1 / total, delta) if total else 0.0


def secure_normals(deviation: int, number: int) -> Tensor:
    """Exact samples from the operating system's cryptographically strong source, for deployed sites."""
    return torch.tensor([discrete_gaussian(deviation) for _ in range(number)], dtype=torch.int64)


def seeded_normals(random: torch.Generator) -> Normals:
    """Samples that repeat with their generator: for simulations only, as whoever knows the seed can subtract them."""

    def draw(deviation: int, number: int) -> Tensor:
        normals: Tensor = torch.randn(number, dtype=torch.float64, generator=random) * deviation
        return normals.round().long()

    return draw


def bounded(rows: Tensor, max_norm: float = 1.0) -> Tensor:
    """(N, R) rows as float64, longer ones scaled down to `max_norm`; a row that is not finite becomes 0."""
    rows = rows.double()
    rows = torch.where(rows.isfinite().all(dim=1, keepdim=True), rows, 0.0)
    shorter: Tensor = rows * (max_norm / rows.norm(dim=1, keepdim=True)).clamp(max=1.0)
    return shorter


def noisy(values: Tensor, deviation: float, normals: Normals, norm: float = 1.0) -> Tensor:
    """Values on the grid with Gaussian noise, of the same shape, float64.

    Args:
        values: what a clip, or a site, changes by a limited norm.
        deviation: deviation of the noise, for that norm.
        normals: source of the noise.
        norm: that norm.
    """
    # Rounding to the grid moves two neighbouring values apart by up to a step in every entry.
    steps = math.ceil(deviation / GRID * (1 + GRID * math.sqrt(values.numel()) / norm))
    whole = (values.double() / GRID).round().long() + normals(steps, values.numel()).view(values.shape)
    return whole.double() * GRID


def noisy_sums(
    sums: ClassSums,
    noise: ReleaseNoise,
    normals: Normals,
    max_norm: float | None = None,
    every_class: bool = False,
) -> ClassSums:
    """Class sums with noise on the rows of the classes with clips and, if it has noise at all, on the scatter.

    Args:
        sums: sums of rows of length 1 or less.
        noise: deviations of the noise.
        normals: source of the noise.
        max_norm: norm that class sums together and scatter are each scaled down to, if what is hidden is the whole
            site; None: a clip is hidden.
        every_class: whether classes without clips get noise, too: if several sites share it, each class needs the part
            of every site. Otherwise they stay 0, as the counts are public.
    """
    present = (sums.counts > 0) | every_class
    rows, scatter = sums.sums[present], sums.scatter
    norm = 1.0 if max_norm is None else max_norm
    if max_norm is not None:
        rows = bounded(rows.view(1, -1), max_norm).view_as(rows)
        scatter = bounded(scatter.view(1, -1), max_norm).view(-1)
    released = torch.zeros_like(sums.sums)
    released[present] = noisy(rows, noise.classes, normals, norm)
    has_scatter = math.isfinite(noise.scatter)
    scatter = noisy(scatter, noise.scatter, normals, norm) if has_scatter else scatter[:0]
    return replace(sums, sums=released, scatter=scatter)
