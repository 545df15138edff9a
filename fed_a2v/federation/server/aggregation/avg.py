"""FedAvg (McMahan et al. 2017) with the same weight for all sites."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from fed_a2v.federation.server.aggregation.base import AggregationRule, weighted_mean


class Rule(AggregationRule):
    """The mean of the sites' weights."""

    def combine(
        self, sites: Iterable[Sequence[Tensor]], clips: Sequence[int], sent: Sequence[Tensor]
    ) -> list[Tensor] | None:
        """See `AggregationRule`."""
        return weighted_mean(sites, [1.0] * len(clips))
