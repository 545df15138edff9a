"""FedAvg (McMahan et al. 2017) in which a site counts by its clips, up to `aggregation.max_site_share` of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from fed_a2v.core.weight_cap import cap_client_weights
from fed_a2v.federation.server.aggregation.base import AggregationRule, weighted_mean


class Rule(AggregationRule):
    """The mean of the sites' weights by their capped numbers of clips."""

    def combine(self, sites: Iterable[Sequence[Tensor]], clips: Sequence[int]) -> list[Tensor] | None:
        """See `AggregationRule`."""
        return weighted_mean(sites, self.factors(clips))

    def factors(self, clips: Sequence[int]) -> list[float]:
        """What each site counts for: its clips, capped."""
        return cap_client_weights(clips, self.settings.max_site_share)
