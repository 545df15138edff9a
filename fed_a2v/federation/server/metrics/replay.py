"""Accuracy on the classes registered so far, and on those whose sites have left (`scenario=class_incremental`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_a2v.core.uncertainty import with_interval
from fed_a2v.federation.server.metrics.base import Evaluation, Metric


class Replay(Metric):
    """`accuracy_known`, `accuracy_old`, their 95 % intervals, and the numbers of these classes and of their clips.

    All class prompts are candidates.
    """

    def compute(self, evaluation: Evaluation) -> Mapping[str, Any]:
        """{} if all sites take part in every round; an accuracy is None if no clip is of such classes."""
        if evaluation.active is None:
            return {}
        known: dict[str, bool] = {}  # whether a site with the class is still active
        for site, prompt in evaluation.step.bank:
            known[prompt.name] = known.get(prompt.name, False) or site in evaluation.active
        old = {name for name, active in known.items() if not active}
        scores = evaluation.scores["after"]
        of_known, of_old = scores.of(known), scores.of(old)
        return {
            "classes_known": len(known),
            **with_interval("accuracy_known", of_known.accuracy if of_known.classes else None, of_known.clips),
            "test_clips_known": of_known.clips,
            "classes_old": len(old),
            **with_interval("accuracy_old", of_old.accuracy if of_old.classes else None, of_old.clips),
            "test_clips_old": of_old.clips,
        }
