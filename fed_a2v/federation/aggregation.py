"""From the sites' adapters to one.

Replies are added one at a time, in a fixed order: sums of floats depend on it. Means need no more than a running
sum, so the server never holds all sites' weights; the robust rules do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from flwr.common import NDArrays
from flwr.server.strategy.aggregate import aggregate_krum, aggregate_median, aggregate_trimmed_avg
from torch import Tensor

from fed_a2v.settings import AggregationSettings


class Aggregation(ABC):
    """Combines the weights of one round's sites."""

    @abstractmethod
    def add(self, weights: Sequence[Tensor], num_examples: int) -> None:
        """Take in a site's weights, which stay as they are, and its number of training clips."""

    @abstractmethod
    def result(self) -> list[Tensor] | None:
        """The combined weights, float32; None to keep the adapters as they were."""


class Nothing(Aggregation):
    """Keeps the old adapters."""

    def add(self, weights: Sequence[Tensor], num_examples: int) -> None:
        """See `Aggregation`."""

    def result(self) -> list[Tensor] | None:
        """See `Aggregation`."""
        return None


class Mean(Aggregation):
    """FedAvg (McMahan et al. 2017): the mean over sites, or over clips.

    Args:
        by_clips: weigh a site by its clips; else all sites count alike.
    """

    def __init__(self, by_clips: bool) -> None:
        self.by_clips = by_clips
        self.sums: list[Tensor] = []
        self.weight = 0

    def add(self, weights: Sequence[Tensor], num_examples: int) -> None:
        """See `Aggregation`."""
        factor = num_examples if self.by_clips else 1
        if self.sums:
            for total, weight in zip(self.sums, weights, strict=True):
                total.add_(weight, alpha=factor)
        else:
            self.sums = [weight.float() * factor for weight in weights]
        self.weight += factor

    def result(self) -> list[Tensor] | None:
        """See `Aggregation`."""
        return [total / self.weight for total in self.sums]


class Robust(Aggregation):
    """A rule that a few bad sites cannot sway, as Flower has it; every site counts alike.

    Args:
        mode: `median` and `trimmed`: of each weight (Yin et al. 2018); `krum`: the mean of the sites whose weights
            lie closest to others' (Multi-Krum, Blanchard et al. 2017).
        trimmed_share: of the sites, left out at either end; 0 to 0.5.
        malicious_sites: that `krum` reckons with; as many are left out.
    """

    def __init__(self, mode: str, trimmed_share: float, malicious_sites: int) -> None:
        self.mode, self.trimmed_share, self.malicious_sites = mode, trimmed_share, malicious_sites
        self.replies: list[tuple[NDArrays, int]] = []

    def add(self, weights: Sequence[Tensor], num_examples: int) -> None:
        """See `Aggregation`."""
        del num_examples
        self.replies.append(([weight.cpu().numpy() for weight in weights], 1))

    def result(self) -> list[Tensor] | None:
        """See `Aggregation`."""
        if self.mode == "median":
            combined = aggregate_median(self.replies)
        elif self.mode == "trimmed":
            combined = aggregate_trimmed_avg(self.replies, self.trimmed_share)
        else:
            kept = max(1, len(self.replies) - self.malicious_sites)
            combined = aggregate_krum(self.replies, self.malicious_sites, kept)
        return [torch.from_numpy(np.array(array, dtype=np.float32)) for array in combined]


def make_aggregation(settings: AggregationSettings) -> Aggregation:
    """The rule that the settings ask for; `kd` starts from the mean over sites, the rest is the server step's."""
    if settings.mode == "none":
        return Nothing()
    if settings.mode in ("avg", "weighted", "kd"):
        return Mean(by_clips=settings.mode == "weighted")
    return Robust(settings.mode, settings.trimmed_share, settings.malicious_sites)
