"""The mean of the sites' weights, to which each site is added when its reply arrives."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from torch import Tensor

from fed_a2v.core.exact_sum import ExactSum
from fed_a2v.core.weight_cap import cap_client_weights


class RunningMean:
    """The mean of the weights added so far; it does not depend on their order, to the last bit.

    A cap on the share of a site depends on the numbers of clips of all, but it can only reduce the `1 / max_share`
    largest sites. So just these are kept until the end; the others are summed up with their numbers of clips.

    Args:
        max_share: largest share of a site in a mean that is weighted by numbers of clips, 0 to 1 (1: no cap); None:
            all sites have the same weight.
    """

    def __init__(self, max_share: float | None = None) -> None:
        self._max_share = max_share
        self._room = 0 if max_share is None or max_share >= 1 else math.ceil(1 / max_share)
        self._sum = ExactSum()
        self._counts: list[int] = []
        # Heap of the largest sites: their counts, their places, which no other site has, and their weights.
        self._largest: list[tuple[int, int, Sequence[Tensor]]] = []

    def add(self, weights: Sequence[Tensor], clips: int) -> None:
        """Add a site.

        Args:
            weights: its weights, float16 or float32; they must not change later.
            clips: its number of training clips.
        """
        count = 1 if self._max_share is None else clips
        heapq.heappush(self._largest, (count, len(self._counts), weights))
        self._counts.append(count)
        if len(self._largest) > self._room:
            self._sum_up(heapq.heappop(self._largest), math.inf)

    def finish(self) -> list[Tensor]:
        """The mean of all sites added, at least one: float32 tensors. No site can be added later."""
        factors = cap_client_weights(self._counts, 1.0 if self._max_share is None else self._max_share)
        for site in self._largest:
            self._sum_up(site, max(factors))
        totals = self._sum.value()
        # Flower refers to the replies, and they to this, until the next round.
        self._largest, self._sum = [], ExactSum()
        return [(total / math.fsum(factors)).float() for total in totals]

    def _sum_up(self, site: tuple[int, int, Sequence[Tensor]], limit: float) -> None:
        count, _, weights = site
        self._sum.add(weights, min(count, limit))
