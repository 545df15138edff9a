"""Figures by class after a run's last round, and which class was taken for which: `evaluation.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_a2v.core.prompts import PromptBank
from fed_a2v.federation.wire import Scores


def class_figures(scores: Mapping[str, Scores], bank: PromptBank, round_number: int) -> dict[str, Any]:
    """What `evaluation.json` holds.

    Args:
        scores: of the models "after" and, where it was scored, "before" the server step.
        bank: says which sites train on a class, and on how many clips.
        round_number: the round.

    Returns:
        `classes`: by name `sites`, `clips` (trained on), `test_clips`, `accuracy`, `accuracy_at_5`, `accuracy_before`,
        `cosine` (to the class's prompt); null where nothing was scored. `confusion`: clips by their class and by the
        class that they were taken for.
    """
    after, before = (scores[name].classes if name in scores else {} for name in ("after", "before"))
    trained: dict[str, list[int]] = {}
    for _, prompt in bank:
        trained.setdefault(prompt.name, []).append(prompt.count)
    classes = {}
    for name in sorted({*trained, *after}):
        figures: dict[str, Any] = {"sites": len(trained.get(name, [])), "clips": sum(trained.get(name, []))}
        score, earlier = after.get(name), before.get(name)
        figures |= {
            "test_clips": score.clips if score else 0,
            "accuracy": score.right_at_1 / score.clips if score else None,
            "accuracy_at_5": score.right_at_5 / score.clips if score else None,
            "accuracy_before": earlier.right_at_1 / earlier.clips if earlier else None,
            "cosine": score.cosine / score.clips if score else None,
        }
        classes[name] = figures
    confusion = {name: score.predicted for name, score in after.items() if score.predicted}
    return {"round": round_number, "classes": classes, "confusion": confusion}
