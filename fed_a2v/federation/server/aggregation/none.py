"""No averaging: only the server step changes the global adapters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from fed_a2v.federation.server.aggregation.base import AggregationRule


class Rule(AggregationRule):
    """Keeps the global adapters."""

    def combine(
        self, sites: Iterable[Sequence[Tensor]], clips: Sequence[int], sent: Sequence[Tensor]
    ) -> list[Tensor] | None:
        """See `AggregationRule`."""
        return None
