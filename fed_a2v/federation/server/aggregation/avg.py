"""FedAvg (McMahan et al. 2017) with the same weight for all sites."""

from __future__ import annotations

from fed_a2v.federation.server.aggregation.base import MeanRule


class Rule(MeanRule):
    """The mean of the sites' weights."""
