"""From the sites' adapters to one: a file for each rule, and what all rules share.

The sites' weights are views of the bytes that came; they are taken one site after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from fed_a2v.config.schema import AggregationSettings
from fed_a2v.federation.protocol import TrainReply
from fed_a2v.federation.server.aggregation import weighted
from fed_a2v.federation.server.aggregation.base import make_rule, norm


def aggregate(
    replies: Sequence[TrainReply], sent: Sequence[Tensor], settings: AggregationSettings
) -> list[Tensor] | None:
    """Combine the weights of one round's sites by the rule `aggregation.mode`.

    Args:
        replies: checked ones, at least one, in a fixed order; they stay as they are.
        sent: the weights that all of them started from. Updates longer than `max_update_norm` are shortened to it
            before any rule sees them.
        settings: the section `aggregation`.

    Returns:
        The combined weights, float32; None to keep the adapters as they were.
    """
    limit = math.inf if settings.max_update_norm is None else settings.max_update_norm
    sites = (clipped(reply.weights, sent, limit) for reply in replies)
    return make_rule(settings).combine(sites, [reply.num_examples for reply in replies])


def cut_shares(replies: Sequence[TrainReply], settings: AggregationSettings) -> dict[str, tuple[float, float]]:
    """The sites that count for less than their share of the clips in a `weighted` mean: that share, and what counts."""
    rule = make_rule(settings)
    if not isinstance(rule, weighted.Rule):
        return {}
    clips = [reply.num_examples for reply in replies]
    counted = rule.factors(clips)
    return {
        reply.site: (claimed / sum(clips), weight / sum(counted))
        for reply, claimed, weight in zip(replies, clips, counted, strict=True)
        if weight < claimed
    }


def root_mean_square(weights: Sequence[Tensor]) -> float:
    """Of all weights together; 0 where there are none."""
    size = sum(weight.numel() for weight in weights)
    return norm(weights) / math.sqrt(max(1, size))


def clipped(weights: Sequence[Tensor], sent: Sequence[Tensor], limit: float) -> Sequence[Tensor]:
    """A site's weights, pulled back towards those it was sent until their distance is `limit` at most.

    The distance is the Euclidean norm of all weights' changes together (Sun et al. 2019, "Can you really backdoor
    federated learning?").
    """
    if math.isinf(limit):
        return weights
    updates = [weight.float() - start for weight, start in zip(weights, sent, strict=True)]
    size = norm(updates)
    if size <= limit:
        return weights
    return [start + update * (limit / size) for start, update in zip(sent, updates, strict=True)]
