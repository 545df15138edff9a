"""A custom metric: the accuracy of the worst class, and the mean accuracy over classes.

PYTHONPATH=examples fed-a2v train +metrics.worst_class._target_=worst_class.WorstClass
"""

from collections.abc import Mapping
from typing import Any

from fed_a2v.federation.server.metrics.base import Evaluation, Metric


class WorstClass(Metric):
    """Accuracies in which all classes have the same weight.

    Args:
        least: minimum number of scored clips of a class; classes with fewer are left out.
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
