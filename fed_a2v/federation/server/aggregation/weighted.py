"""FedAvg (McMahan et al. 2017) weighted by numbers of clips; `aggregation.max_site_share` caps the share of a site."""

from __future__ import annotations

from fed_a2v.federation.server.aggregation.base import MeanRule
from fed_a2v.federation.server.aggregation.running_mean import RunningMean


class Rule(MeanRule):
    """The mean of the sites' weights, weighted by their capped numbers of clips."""

    def running_mean(self) -> RunningMean:
        """See `MeanRule`."""
        return RunningMean(self.settings.max_site_share)
