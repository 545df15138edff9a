"""Accuracy on the classes that no site trains on (`dataset.unseen`), and on the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_a2v.core.uncertainty import with_interval
from fed_a2v.core.zero_shot import UnseenAccuracy
from fed_a2v.federation.server.metrics.base import Evaluation, Metric


class Unseen(Metric):
    """`unseen/...`: without calibration, and with the calibration that the server step has chosen.

    Accuracies have 95 % intervals, harmonic means of two of them have none.
    """

    def compute(self, evaluation: Evaluation) -> Mapping[str, Any]:
        """{} unless clips of both kinds were scored."""
        scores, step = evaluation.scores["after"], evaluation.step
        unseen = step.settings.unseen
        of_unseen, of_seen = scores.of(unseen), scores.of(set(evaluation.classes) - set(unseen))
        if not of_unseen.classes or not of_seen.classes:
            return {}
        plain = UnseenAccuracy(of_unseen.accuracy_among, of_unseen.accuracy, of_seen.accuracy)
        calibrated = UnseenAccuracy(
            of_unseen.accuracy_among, of_unseen.accuracy_calibrated, of_seen.accuracy_calibrated
        )
        return {
            **with_interval("unseen/among_unseen", plain.among_unseen, of_unseen.clips),
            **with_interval("unseen/unseen", plain.unseen, of_unseen.clips),
            **with_interval("unseen/seen", plain.seen, of_seen.clips),
            "unseen/harmonic": plain.harmonic,
            **with_interval("unseen/unseen_calibrated", calibrated.unseen, of_unseen.clips),
            **with_interval("unseen/seen_calibrated", calibrated.seen, of_seen.clips),
            "unseen/harmonic_calibrated": calibrated.harmonic,
            "unseen/calibration": step.calibration,
            "unseen/unseen_clips": of_unseen.clips,
            "unseen/seen_clips": of_seen.clips,
        }
