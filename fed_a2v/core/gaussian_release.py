"""Differential privacy of the sums that leave a site: how much noise a budget needs, and what releases add up to.

All sums of a site are one Gaussian mechanism (Dwork & Roth 2014): a clip of length 1 changes the sum of rows, the class
sums and the upper triangle of the scatter each by at most 1, so Gaussian noise on each hides whether a clip takes part.
The exact relation of epsilon, delta and noise is that of Balle & Wang (2018), computed by the library `dp-accounting`.

The neighbouring relation is to add or remove one clip (`level="clip"`), or all clips of a site (`level="site"`). Class
names and numbers of clips count as public.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

Level = Literal["clip", "site"]

# Shares of the budget for the sum of rows, the class sums and the scatter. Measured on real embeddings: the class sums
# need most, and without a scatter they get its share.
CENTRE_SHARE, CLASS_SHARE, SCATTER_SHARE = 0.05, 0.80, 0.15


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
