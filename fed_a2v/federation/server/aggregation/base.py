"""The interface of an aggregation rule, and `make_rule`, which finds a rule by its name."""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fed_a2v.config.plugins import load_class
from fed_a2v.config.sections.federation import AggregationSettings
from fed_a2v.errors import ConfigError


class AggregationRule(ABC):
    """Combines the adapters of a round's sites. A run has one rule, so that it can keep values between rounds.

    Args:
        settings: the section `aggregation`; `settings.arguments` has the keys of a custom rule.
    """

    def __init__(self, settings: AggregationSettings) -> None:
        self.settings = settings

    @abstractmethod
    def combine(
        self, sites: Iterable[Sequence[Tensor]], clips: Sequence[int], sent: Sequence[Tensor]
    ) -> list[Tensor] | None:
        """The combined weights.

        Args:
            sites: each site's weights, at least one site, in a fixed order because sums of floats depend on it. The
                iterator decodes the weights of one site at a time, so a rule that keeps none needs memory for one site.
            clips: each site's number of training clips, in the same order.
            sent: the global weights that all sites started from, e.g. for a server optimiser.

        Returns:
            float32 tensors with the shapes of one site's weights; None to keep the global adapters.
        """

    def state_dict(self) -> dict[str, Any]:
        """Values that a resumed run needs, in tensors and plain types; none by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - a rule without state needs none
        """Load the result of `state_dict`."""


def make_rule(settings: AggregationSettings) -> AggregationRule:
    """The rule that `aggregation.mode` names: the class `Rule` of the file of that name, or a custom class.

    Raises:
        ConfigError: the custom class is not found or is not derived from `AggregationRule`.
    """
    if settings.target is None:
        rule = importlib.import_module(f"fed_a2v.federation.server.aggregation.{settings.mode}").Rule
    else:
        rule = load_class("aggregation", settings.target)
        if not issubclass(rule, AggregationRule):
            raise ConfigError(
                f"aggregation._target_={settings.target} is not an aggregation rule; derive it from "
                f"{AggregationRule.__module__}.{AggregationRule.__name__}"
            )
    made: AggregationRule = rule(settings)
    return made


def weighted_mean(sites: Iterable[Sequence[Tensor]], factors: Sequence[float]) -> list[Tensor]:
    """The mean of the sites' weights, weighted by `factors`, as a running sum."""
    sums: list[Tensor] = []
    for weights, factor in zip(sites, factors, strict=True):
        if sums:
            for total, weight in zip(sums, weights, strict=True):
                total.add_(weight, alpha=factor)
        else:
            sums = [weight.float() * factor for weight in weights]
    return [total / sum(factors) for total in sums]


def norm(weights: Sequence[Tensor]) -> float:
    """The Euclidean norm of all weights together."""
    return math.hypot(*(float(torch.linalg.vector_norm(weight)) for weight in weights))
