"""How much each site weighs, so that none owns the result by claiming more clips than it has."""

from __future__ import annotations

from collections.abc import Sequence


def cap_client_weights(counts: Sequence[float], max_share: float) -> list[float]:
    """Counts of which none is more than `max_share` of their sum.

    Those that are too large are cut to one value, the largest that keeps to the share; the others stay. Where there
    are so few that the share cannot be kept, all weigh as much as the smallest. A single one has nobody to outweigh.

    Args:
        counts: positive, one a site.
        max_share: 0 to 1; 1 leaves all as they are.
    """
    if max_share >= 1 or len(counts) < 2:
        return list(counts)
    descending = sorted(counts, reverse=True)
    rest = sum(descending)
    limit = descending[-1]
    for cut, largest in enumerate(descending):
        # With the first `cut` at one limit, that limit is max_share of (rest + cut * limit).
        if cut * max_share >= 1:
            limit = descending[cut - 1]
            break
        solved = max_share * rest / (1 - cut * max_share)
        if solved >= largest:
            limit = solved
            break
        rest -= largest
    return [min(count, limit) for count in counts]
