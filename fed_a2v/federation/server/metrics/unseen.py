"""Accuracy on the classes that no site trains on (`dataset.unseen`), and on the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_a2v.core.zero_shot import UnseenAccuracy
from fed_a2v.federation.server.metrics.base import Evaluation, Metric


class Unseen(Metric):
    """`unseen/...`: without calibration, and with the calibration that the server step has chosen."""

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
            "unseen/among_unseen": plain.among_unseen,
            "unseen/unseen": plain.unseen,
            "unseen/seen": plain.seen,
            "unseen/harmonic": plain.harmonic,
            "unseen/unseen_calibrated": calibrated.unseen,
            "unseen/seen_calibrated": calibrated.seen,
            "unseen/harmonic_calibrated": calibrated.harmonic,
            "unseen/calibration": step.calibration,
        }
