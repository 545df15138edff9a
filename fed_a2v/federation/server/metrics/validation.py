"""Accuracy on the clips for validation (`dataset.validation_folds`), which chooses the best round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_a2v.federation.protocol import VALIDATION
from fed_a2v.federation.server.metrics.base import Evaluation, Metric


class Validation(Metric):
    """`accuracy_validation` and the number of clips behind it."""

    def compute(self, evaluation: Evaluation) -> Mapping[str, Any]:
        """{} without such clips."""
        scores = evaluation.scores.get(VALIDATION)
        if scores is None or not scores.clips:
            return {}
        return {"accuracy_validation": scores.accuracy, "validation_clips": scores.clips}
