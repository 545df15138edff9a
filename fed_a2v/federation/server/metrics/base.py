"""The interface of a metric; the strategy computes the chosen metrics after each evaluation."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fed_a2v.core.server_step import ServerStep
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


def compute_metrics(
    metrics: Mapping[str, Metric], evaluation: Evaluation, taken: Collection[str] = ()
) -> dict[str, Any]:
    """The values of all metrics; if one raises an error, it is logged and only its values are missing.

    Args:
        metrics: metrics by name.
        evaluation: sums of a round's scores.
        taken: names of values that the round has already, which no metric may replace.
    """
    values: dict[str, Any] = {}
    for name, metric in metrics.items():
        try:
            computed = metric.compute(evaluation)
            if double := sorted(computed.keys() & {*taken, *values}):
                raise ValueError(f"the round already has {', '.join(double)}; choose other names")
            values |= computed
        except Exception as error:  # a user's class may raise anything
            log.warning("The metric metrics.%s failed (%s: %s)", name, type(error).__name__, error)
    return values
