"""A metric of your own: the accuracy of the worst class, and the mean over classes.

PYTHONPATH=examples fed-a2v train +metrics.worst_class._target_=worst_class.WorstClass
"""

from collections.abc import Mapping
from typing import Any

from fed_a2v.federation.server.metrics.base import Evaluation, Metric


class WorstClass(Metric):
    """Accuracies that do not let large classes outweigh small ones.

    Args:
        least: classes with fewer scored clips than this are left out.
    """

    def __init__(self, least: int = 1) -> None:
        self.least = least

    def compute(self, evaluation: Evaluation) -> Mapping[str, Any]:
        """See `Metric`."""
        classes = evaluation.scores["after"].classes.values()
        values = [score.right_at_1 / score.clips for score in classes if score.clips >= self.least]
        if not values:
            return {}
        return {"accuracy_worst_class": min(values), "accuracy_over_classes": sum(values) / len(values)}
