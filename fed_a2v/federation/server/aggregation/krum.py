"""Multi-Krum (Blanchard et al. 2017), as Flower computes it; every site counts alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flwr.server.strategy.aggregate import aggregate_krum
from torch import Tensor

from fed_a2v.federation.server.aggregation.base import AggregationRule
from fed_a2v.federation.server.aggregation.numpy_rules import as_flower, as_tensors


class Rule(AggregationRule):
    """The mean of the sites whose weights lie closest to others', without `aggregation.malicious_sites` of them."""

    def combine(self, sites: Iterable[Sequence[Tensor]], clips: Sequence[int]) -> list[Tensor] | None:
        """See `AggregationRule`."""
        bad = self.settings.malicious_sites
        return as_tensors(aggregate_krum(as_flower(sites), bad, max(1, len(clips) - bad)))
