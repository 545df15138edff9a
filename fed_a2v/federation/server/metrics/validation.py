"""Accuracy on the validation clips (`dataset.validation_folds`), which chooses the best round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_a2v.core.uncertainty import with_interval
from fed_a2v.federation.protocol import VALIDATION
from fed_a2v.federation.server.metrics.base import Evaluation, Metric


class Validation(Metric):
    """`accuracy_validation`, its 95 % interval, and its number of clips."""

    def compute(self, evaluation: Evaluation) -> Mapping[str, Any]:
        """{} without validation clips."""
        scores = evaluation.scores.get(VALIDATION)
        if scores is None or not scores.clips:
            return {}
        return with_interval("accuracy_validation", scores.accuracy, scores.clips) | {"validation_clips": scores.clips}
