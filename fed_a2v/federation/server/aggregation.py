"""From the sites' adapters to one.

The sites' weights are views of the bytes that came; they are taken in one site after the other, in a fixed order,
because sums of floats depend on it. Means need no more than a running sum; the robust rules hold all of them unpacked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from flwr.server.strategy.aggregate import aggregate_krum, aggregate_median, aggregate_trimmed_avg
from torch import Tensor

from fed_a2v.config.schema import AggregationSettings
from fed_a2v.core.weight_cap import capped
from fed_a2v.federation.protocol import SiteReply


def aggregate(
    replies: Sequence[SiteReply], sent: Sequence[Tensor], settings: AggregationSettings
) -> list[Tensor] | None:
    """Combine the weights of one round's sites.

    Args:
        replies: checked ones, at least one, in a fixed order; they stay as they are.
        sent: the weights that all of them started from.
        settings: `mode`: `avg` is FedAvg (McMahan et al. 2017) with all sites alike, `weighted` with each by its clips,
            as far as `max_site_share` lets it; `kd` starts from `avg`, the rest is the server step's. For the robust
            modes see `_robust`. Updates longer than `max_update_norm` are shortened to it, in every mode.

    Returns:
        The combined weights, float32; None (mode `none`) to keep the adapters as they were.
    """
    if settings.mode == "none":
        return None
    limit = math.inf if settings.max_update_norm is None else settings.max_update_norm
    sites = (clipped(reply.weights, sent, limit) for reply in replies)
    if settings.mode in ("avg", "kd"):
        return _mean(sites, [1] * len(replies))
    if settings.mode == "weighted":
        return _mean(sites, _believed(replies, settings))
    return _robust(list(sites), settings)


def cut_shares(replies: Sequence[SiteReply], settings: AggregationSettings) -> dict[str, tuple[float, float]]:
    """The sites that count for less than their share of the clips in a `weighted` mean: that share, and what counts."""
    if settings.mode != "weighted":
        return {}
    clips, counted = [reply.num_examples for reply in replies], _believed(replies, settings)
    return {
        reply.site: (claimed / sum(clips), weight / sum(counted))
        for reply, claimed, weight in zip(replies, clips, counted, strict=True)
        if weight < claimed
    }


def _believed(replies: Sequence[SiteReply], settings: AggregationSettings) -> list[float]:
    return capped([reply.num_examples for reply in replies], settings.max_site_share)


def root_mean_square(weights: Sequence[Tensor]) -> float:
    """Of all weights together; 0 where there are none."""
    size = sum(weight.numel() for weight in weights)
    return _length(weights) / math.sqrt(max(1, size))


def clipped(weights: Sequence[Tensor], sent: Sequence[Tensor], limit: float) -> Sequence[Tensor]:
    """A site's weights, pulled back towards those it was sent until their distance is `limit` at most.

    The distance is the Euclidean norm of all weights' changes together (Sun et al. 2019, "Can you really backdoor
    federated learning?").
    """
    if math.isinf(limit):
        return weights
    updates = [weight.float() - start for weight, start in zip(weights, sent, strict=True)]
    norm = _length(updates)
    if norm <= limit:
        return weights
    return [start + update * (limit / norm) for start, update in zip(sent, updates, strict=True)]


def _length(weights: Sequence[Tensor]) -> float:
    """The Euclidean norm of all weights together."""
    return math.hypot(*(float(torch.linalg.vector_norm(weight)) for weight in weights))


def _mean(sites: Iterator[Sequence[Tensor]], factors: Sequence[float]) -> list[Tensor]:
    """The mean of the sites' weights, weighted by `factors`, as a running sum."""
    sums: list[Tensor] = []
    for weights, factor in zip(sites, factors, strict=True):
        if sums:
            for total, weight in zip(sums, weights, strict=True):
                total.add_(weight, alpha=factor)
        else:
            sums = [weight.float() * factor for weight in weights]
    return [total / sum(factors) for total in sums]


def _robust(sites: Sequence[Sequence[Tensor]], settings: AggregationSettings) -> list[Tensor]:
    """A rule that a few bad sites cannot sway, as Flower has it; every site counts alike.

    `median` and `trimmed`: of each weight (Yin et al. 2018); `krum`: the mean of the sites whose weights lie closest
    to others' (Multi-Krum, Blanchard et al. 2017).
    """
    replies = [([weight.cpu().float().numpy() for weight in weights], 1) for weights in sites]
    if settings.mode == "median":
        combined = aggregate_median(replies)
    elif settings.mode == "trimmed":
        combined = aggregate_trimmed_avg(replies, settings.trimmed_share)
    else:
        kept = max(1, len(replies) - settings.malicious_sites)
        combined = aggregate_krum(replies, settings.malicious_sites, kept)
    return [torch.from_numpy(np.array(array, dtype=np.float32)) for array in combined]
