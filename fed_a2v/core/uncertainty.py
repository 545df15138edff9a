"""Uncertainty of accuracies on a finite number of clips: Wilson's interval, and McNemar's test of two models.

Both take the clips as independent draws. They cover other test clips of the same kind, not other seeds, other training
clips, or other data.
"""

from __future__ import annotations

import math
from typing import Any

QUANTILE = 1.96
"""Of the normal distribution, for 95 % intervals."""
Interval = tuple[float, float]


def wilson_interval(share: float, trials: int) -> Interval:
    """95 % interval of a probability from the share of successes in independent trials (Wilson, 1927).

    Unlike the share plus and minus two standard errors, it stays within 0 and 1, and has a width at a share of 0 or 1
    (Brown, Cai and DasGupta, 2001). `scipy.stats.binomtest` computes the same; sites and tables do without scipy.

    Args:
        share: share of successes, 0 to 1.
        trials: number of trials, at least 1.
    """
    squared = QUANTILE**2
    centre = (share * trials + squared / 2) / (trials + squared)
    half = QUANTILE * math.sqrt(share * (1 - share) * trials + squared / 4) / (trials + squared)
    # Rounding would leave out a share of 1 for some numbers of trials.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def with_interval(name: str, share: float | None, trials: int) -> dict[str, Any]:
    """A share of clips with the ends of its interval: `name`, `name_low` and `name_high`; None without trials."""
    low, high = (None, None) if share is None or not trials else wilson_interval(share, trials)
    return {name: share, f"{name}_low": low, f"{name}_high": high}


def mcnemar_p(better: int, worse: int) -> float:
    """Two-sided p-value of the exact test that two models are right equally often (McNemar, 1947).

    Only the clips on which the models differ count: if neither is better, each of these is a fair coin.

    Args:
        better: clips that the second model alone has right.
        worse: clips that the first model alone has right.

    Returns:
        1 if the models differ on no clip.
    """
    if not better + worse:
        return 1.0
    from scipy.special import betainc  # not scipy.stats, whose import takes a second

    # The binomial distribution up to the smaller number, as an incomplete beta function.
    fewer, more = sorted((better, worse))
    return min(1.0, 2 * float(betainc(more, fewer + 1, 0.5)))
