"""FedAvg (McMahan et al. 2017) weighted by numbers of clips; `aggregation.max_site_share` caps the share of a site."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from fed_a2v.core.weight_cap import cap_client_weights
from fed_a2v.federation.server.aggregation.base import AggregationRule, weighted_mean


class Rule(AggregationRule):
    """The mean of the sites' weights, weighted by their capped numbers of clips."""

    def combine(
        self, sites: Iterable[Sequence[Tensor]], clips: Sequence[int], sent: Sequence[Tensor]
    ) -> list[Tensor] | None:
        """See `AggregationRule`."""
        return weighted_mean(sites, self.factors(clips))

    def factors(self, clips: Sequence[int]) -> list[float]:
        """The weight of each site: its capped number of clips."""
        return cap_client_weights(clips, self.settings.max_site_share)
