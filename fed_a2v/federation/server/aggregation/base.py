"""The interfaces of aggregation rules, and `make_rule`, which finds a rule by its name."""

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
from fed_a2v.federation.server.aggregation.running_mean import RunningMean


class AggregationRule(ABC):
    """Combines the adapters of a round's sites. A run has one rule, so that it can keep values between rounds.

    The server keeps the weights of all sites until the end of the round for it; not so for a `MeanRule`.

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


class MeanRule(AggregationRule):
    """A rule that needs the mean of the sites' weights only.

    The server adds each reply to the mean when it arrives and drops its weights, so that its memory does not grow with
    the number of sites. The methods are those of FedAvg with equal weights; override what differs.
    """

    def running_mean(self) -> RunningMean:
        """The mean of a round, before any site is added."""
        return RunningMean()

    def from_mean(self, mean: list[Tensor], sent: Sequence[Tensor]) -> list[Tensor]:
        """The combined weights.

        Args:
            mean: the mean of the sites' weights, float32.
            sent: the global weights that all sites started from.

        Returns:
            float32 tensors with the shapes of `mean`.
        """
        del sent
        return mean

    def combine(self, sites: Iterable[Sequence[Tensor]], clips: Sequence[int], sent: Sequence[Tensor]) -> list[Tensor]:
        """See `AggregationRule`; the same as adding the sites one by one."""
        mean = self.running_mean()
        for weights, count in zip(sites, clips, strict=True):
            mean.add(weights, count)
        return self.from_mean(mean.finish(), sent)


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


def norm(weights: Sequence[Tensor]) -> float:
    """The Euclidean norm of all weights together."""
    return math.hypot(*(float(torch.linalg.vector_norm(weight)) for weight in weights))
