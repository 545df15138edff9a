"""What the server step does to single test clips: how many become right, how many wrong, and whether that is chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_a2v.core.uncertainty import mcnemar_p
from fed_a2v.federation.server.metrics.base import Evaluation, Metric


class ServerStepTest(Metric):
    """`server_step/better`, `server_step/worse` and `server_step/p`: both models are scored on the same clips.

    A test on the clips that differ is sharper than a comparison of two accuracies with their intervals.
    """

    def compute(self, evaluation: Evaluation) -> Mapping[str, Any]:
        """{} if the adapters before the server step are not scored."""
        changes = evaluation.scores["after"].changes
        if changes is None:
            return {}
        return {
            "server_step/better": changes.better,
            "server_step/worse": changes.worse,
            "server_step/p": mcnemar_p(changes.better, changes.worse),
        }
