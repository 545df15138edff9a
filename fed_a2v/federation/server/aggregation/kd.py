"""Distillation: starts from the mean of the sites' weights; the server step then distils the sites' adapters."""

from __future__ import annotations

from fed_a2v.federation.server.aggregation import avg


class Rule(avg.Rule):
    """The mean of the sites' weights; see `fed_a2v.core.distillation` for the rest."""
