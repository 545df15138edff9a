"""The T5 side: its accuracy, cosine and loss, and whether it has learned far less than the CLIP side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fed_a2v.core.uncertainty import with_interval
from fed_a2v.federation.protocol import Scores
from fed_a2v.federation.server.metrics.base import Evaluation, Metric

# `t5/far_behind` is true if the cosine of T5 is less than this share of that of CLIP.
FAR_BEHIND = 0.5


class T5(Metric):
    """`t5/...`, if the adapters have a T5 side."""

    def compute(self, evaluation: Evaluation) -> Mapping[str, Any]:
        """{} without a T5 side."""
        after = evaluation.scores["after"]
        if after.t5 is None:
            return {}
        values = with_interval("t5/accuracy", after.t5.accuracy, after.clips)
        values |= {"t5/cosine": after.t5.cosine, "t5/loss": after.t5.loss}
        return values | {"t5/far_behind": t5_is_far_behind(after, len(evaluation.classes))}


def t5_is_far_behind(scores: Scores, candidates: int) -> bool:
    """Whether the T5 side has learned far less than the CLIP side.

    That is so if the accuracy of CLIP exceeds that of chance by two standard errors, and that of T5 does not, or the
    cosine of T5 is less than half of that of CLIP.

    Args:
        scores: scores of at least one clip, by a model with a T5 side.
        candidates: number of class prompts among which the right one is retrieved.
    """
    assert scores.t5 is not None
    chance = 1 / candidates
    limit = chance + 2 * math.sqrt(chance * (1 - chance) / scores.clips)
    learned_less = scores.t5.accuracy <= limit or scores.t5.cosine < FAR_BEHIND * scores.cosine
    return scores.accuracy > limit and learned_less
