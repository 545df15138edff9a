"""The coordinate-wise median (Yin et al. 2018), with Flower's implementation; all sites have the same weight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flwr.server.strategy.aggregate import aggregate_median
from torch import Tensor

from fed_a2v.federation.server.aggregation.base import AggregationRule
from fed_a2v.federation.server.aggregation.numpy_rules import as_flower, as_tensors


class Rule(AggregationRule):
    """The median of each weight over the sites."""

    def combine(
        self, sites: Iterable[Sequence[Tensor]], clips: Sequence[int], sent: Sequence[Tensor]
    ) -> list[Tensor] | None:
        """See `AggregationRule`."""
        return as_tensors(aggregate_median(as_flower(sites)))
