"""Accuracy, cosine and loss on the test clips, and accuracy by class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_a2v.core.uncertainty import with_interval
from fed_a2v.federation.server.metrics.base import Evaluation, Metric


class Accuracy(Metric):
    """Fractions of the test clips, with 95 % intervals, or means over them, after and before the server step."""

    def compute(self, evaluation: Evaluation) -> Mapping[str, Any]:
        """`per_class` has None for a class without scored test clips."""
        after = evaluation.scores["after"]
        per_class = dict.fromkeys(evaluation.coverage.class_totals) | after.class_accuracy
        values = {
            **with_interval("accuracy", after.accuracy, after.clips),
            **with_interval("accuracy_at_5", after.accuracy_at_5, after.clips),
            "cosine": after.cosine,
            "loss": after.loss,
            "per_class": dict(sorted(per_class.items())),
        }
        if "before" in evaluation.scores:
            before = evaluation.scores["before"]
            values |= with_interval("accuracy_before", before.accuracy, before.clips)
        return values
