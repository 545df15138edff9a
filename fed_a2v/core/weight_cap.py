"""A cap on the weights of sites, so that no site dominates an average by reporting too many clips.

Used by the prototype bank and by the aggregation of adapters.
"""

from __future__ import annotations

from collections.abc import Sequence


def cap_client_weights(counts: Sequence[float], max_share: float) -> list[float]:
    """Cap counts so that none exceeds `max_share` of their sum.

    Counts that are too large are reduced to one common value, the largest that satisfies the share; the others do not
    change. If there are too few counts to satisfy it, all are reduced to the smallest. A single count is not capped.

    Args:
        counts: positive, one per site.
        max_share: 0 to 1; 1 means no cap.
    """
    if max_share >= 1 or len(counts) < 2:
        return list(counts)
    descending = sorted(counts, reverse=True)
    rest = sum(descending)
    limit = descending[-1]
    for capped, largest in enumerate(descending):
        # With the first `capped` counts at a common limit, limit = max_share * (rest + capped * limit).
        if capped * max_share >= 1:
            limit = descending[capped - 1]
            break
        solved = max_share * rest / (1 - capped * max_share)
        if solved >= largest:
            limit = solved
            break
        rest -= largest
    return [min(count, limit) for count in counts]
