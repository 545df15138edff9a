"""Distillation: the mean of the sites' weights is the start, and the server step then distils the sites' adapters."""

from __future__ import annotations

from fed_a2v.federation.server.aggregation import avg


class Rule(avg.Rule):
    """The mean of the sites' weights; `fed_a2v.core.distillation` does the distillation."""
