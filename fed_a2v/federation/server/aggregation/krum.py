"""Multi-Krum (Blanchard et al. 2017), with Flower's implementation; all sites have the same weight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flwr.server.strategy.aggregate import aggregate_krum
from torch import Tensor

from fed_a2v.federation.server.aggregation.base import AggregationRule
from fed_a2v.federation.server.aggregation.numpy_rules import as_flower, as_tensors


class Rule(AggregationRule):
    """The mean without the `aggregation.malicious_sites` sites whose weights are farthest from those of others."""

    def combine(
        self, sites: Iterable[Sequence[Tensor]], clips: Sequence[int], sent: Sequence[Tensor]
    ) -> list[Tensor] | None:
        """See `AggregationRule`."""
        malicious = self.settings.malicious_sites
        return as_tensors(aggregate_krum(as_flower(sites), malicious, max(1, len(clips) - malicious)))
