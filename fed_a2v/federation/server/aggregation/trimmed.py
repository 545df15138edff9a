"""The coordinate-wise trimmed mean (Yin et al. 2018), with Flower's implementation; all sites have the same weight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flwr.server.strategy.aggregate import aggregate_trimmed_avg
from torch import Tensor

from fed_a2v.federation.server.aggregation.base import AggregationRule
from fed_a2v.federation.server.aggregation.numpy_rules import as_flower, as_tensors


class Rule(AggregationRule):
    """The mean of each weight without the `aggregation.trimmed_share` largest and the same share of smallest values."""

    def combine(
        self, sites: Iterable[Sequence[Tensor]], clips: Sequence[int], sent: Sequence[Tensor]
    ) -> list[Tensor] | None:
        """See `AggregationRule`."""
        return as_tensors(aggregate_trimmed_avg(as_flower(sites), self.settings.trimmed_share))
