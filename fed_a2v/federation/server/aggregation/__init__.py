"""Aggregation of the sites' adapters: this file has what all rules share, and each rule has its own file.

The strategy calls `aggregate`. The sites' weights are views of the received bytes and are converted one site at a time;
`server/intake.py` has added those of most sites to a `RunningMean` already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from fed_a2v.core.weight_cap import cap_client_weights
from fed_a2v.federation.protocol import TrainReply
from fed_a2v.federation.server.aggregation import weighted
from fed_a2v.federation.server.aggregation.base import AggregationRule, MeanRule, norm
from fed_a2v.federation.server.aggregation.running_mean import RunningMean


def aggregate(
    rule: AggregationRule, replies: Sequence[TrainReply], sent: Sequence[Tensor], mean: RunningMean | None = None
) -> list[Tensor] | None:
    """Combine the weights of one round's sites.

    Args:
        rule: the rule of the run.
        replies: checked replies, at least one, in a fixed order; they are not changed.
        sent: the global weights that all sites started from. Updates with a norm above `max_update_norm` are scaled to
            it before any rule.
        mean: the mean that the replies without weights have been added to; None: all replies have their weights.

    Returns:
        The combined weights, float32; None to keep the global adapters.
    """
    if mean is not None and isinstance(rule, MeanRule):
        for reply in replies:
            if reply.weights:
                mean.add(limited(rule, reply, sent), reply.num_examples)
        return rule.from_mean(mean.finish(), sent)
    sites = (limited(rule, reply, sent) for reply in replies)
    return rule.combine(sites, [reply.num_examples for reply in replies], sent)


def limited(rule: AggregationRule, reply: TrainReply, sent: Sequence[Tensor]) -> Sequence[Tensor]:
    """The weights of a reply, with the norm of their update limited to the rule's `max_update_norm`."""
    limit = rule.settings.max_update_norm
    return clipped(reply.weights, sent, math.inf if limit is None else limit)


def cut_shares(rule: AggregationRule, replies: Sequence[TrainReply]) -> dict[str, tuple[float, float]]:
    """The sites whose weight in a `weighted` mean is capped: share of the clips and share after the cap, by site."""
    if not isinstance(rule, weighted.Rule):
        return {}
    clips = [reply.num_examples for reply in replies]
    capped = cap_client_weights(clips, rule.settings.max_site_share)
    return {
        reply.site: (count / sum(clips), weight / sum(capped))
        for reply, count, weight in zip(replies, clips, capped, strict=True)
        if weight < count
    }


def root_mean_square(weights: Sequence[Tensor]) -> float:
    """Root mean square of all weights together; 0 if there are none."""
    size = sum(weight.numel() for weight in weights)
    return norm(weights) / math.sqrt(max(1, size))


def clipped(weights: Sequence[Tensor], sent: Sequence[Tensor], limit: float) -> Sequence[Tensor]:
    """A site's weights with the norm of their update limited to `limit`.

    The norm is the Euclidean norm of the changes of all weights together (Sun et al. 2019, "Can you really backdoor
    federated learning?").
    """
    if math.isinf(limit):
        return weights
    updates = [weight.float() - start for weight, start in zip(weights, sent, strict=True)]
    size = norm(updates)
    if size <= limit:
        return weights
    return [start + update * (limit / size) for start, update in zip(sent, updates, strict=True)]
