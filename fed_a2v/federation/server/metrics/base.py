"""The interface of a metric; the strategy computes the chosen metrics after each evaluation."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fed_a2v.config.plugins import load_class, make_object
from fed_a2v.config.sections.base import ComponentSettings
from fed_a2v.core.server_step import ServerStep
from fed_a2v.errors import ConfigError
from fed_a2v.federation.protocol import Scores
from fed_a2v.federation.server.evaluation import Coverage

log = logging.getLogger("fed_a2v")


@dataclass(frozen=True)
class Evaluation:
    """The results of a round's evaluation.

    Attributes:
        scores: the sites' sums by model: "after" and, if scored, "before" the server step, and "validation".
        coverage: the sites and test clips that the scores come from.
        classes: names of all classes.
        step: the server step; read only.
        active: names of the sites that take part in the round; None if all do.
    """

    scores: Mapping[str, Scores]
    coverage: Coverage
    classes: Collection[str]
    step: ServerStep
    active: Collection[str] | None


class Metric(ABC):
    """One or more values of a round's row."""

    @abstractmethod
    def compute(self, evaluation: Evaluation) -> Mapping[str, Any]:
        """The values by name: numbers, or None for an undefined one; {} if the metric does not apply.

        At least one test clip was scored. A name may contain a slash, e.g. "t5/accuracy".
        """


def build_metrics(settings: Mapping[str, ComponentSettings | None]) -> dict[str, Metric]:
    """The metrics in the order of the settings; those set to null are left out.

    Raises:
        ConfigError: an import path is wrong, its class is no `Metric`, or the class refuses its arguments.
    """
    made: dict[str, Metric] = {}
    for name, chosen in settings.items():
        if chosen is None:
            continue
        section = f"metrics.{name}"
        if not issubclass(load_class(section, chosen.target), Metric):
            raise ConfigError(
                f"{section}._target_={chosen.target} is not a metric; derive it from {Metric.__module__}.Metric"
            )
        made[name] = make_object(section, chosen.target, chosen.arguments, ())
    return made


def compute_metrics(metrics: Mapping[str, Metric], evaluation: Evaluation) -> dict[str, Any]:
    """The values of all metrics; if one raises an error, it is logged and only its values are missing."""
    values: dict[str, Any] = {}
    for name, metric in metrics.items():
        try:
            values |= metric.compute(evaluation)
        except Exception as error:  # a user's class may raise anything
            log.warning("The metric metrics.%s failed (%s: %s)", name, type(error).__name__, error)
    return values
