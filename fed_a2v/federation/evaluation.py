"""Figures of the sites' scores: those of every round's row, and by class those after the last, `evaluation.json`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fed_a2v.core.prompts import PromptBank
from fed_a2v.core.zero_shot import UnseenAccuracy
from fed_a2v.federation.wire import VALIDATION, Scores


def round_figures(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """What a round's row says of the test clips; fractions of them, or means over them.

    Args:
        scores: of the models "after" and, where it was scored, "before" the server step; and of "after" on the clips
            for validation, where there are any.
    """
    after = scores["after"]
    figures = {
        "accuracy": after.accuracy,
        "accuracy_at_5": after.accuracy_at_5,
        "cosine": after.cosine,
        "loss": after.loss,
        "test_clips": after.clips,
        "per_class": after.class_accuracy,
    }
    if "before" in scores:
        figures["accuracy_before"] = scores["before"].accuracy
    if VALIDATION in scores and scores[VALIDATION].clips:
        figures |= {"accuracy_validation": scores[VALIDATION].accuracy, "validation_clips": scores[VALIDATION].clips}
    return figures


def unseen_figures(
    scores: Scores, classes: Collection[str], unseen: Collection[str], calibration: float
) -> dict[str, Any]:
    """Accuracy on the classes that no site trains on, and on the others; nothing where there are none.

    Args:
        scores: of the model after the server step.
        classes: names of all classes.
        unseen: those that no site trains on.
        calibration: with which the calibrated figures were scored.
    """
    of_unseen, of_seen = scores.of(unseen), scores.of(set(classes) - set(unseen))
    if not of_unseen.classes or not of_seen.classes:
        return {}
    plain = UnseenAccuracy(of_unseen.accuracy_among, of_unseen.accuracy, of_seen.accuracy)
    calibrated = UnseenAccuracy(of_unseen.accuracy_among, of_unseen.accuracy_calibrated, of_seen.accuracy_calibrated)
    return {
        "unseen/among_unseen": plain.among_unseen,
        "unseen/unseen": plain.unseen,
        "unseen/seen": plain.seen,
        "unseen/harmonic": plain.harmonic,
        "unseen/unseen_calibrated": calibrated.unseen,
        "unseen/seen_calibrated": calibrated.seen,
        "unseen/harmonic_calibrated": calibrated.harmonic,
        "unseen/calibration": calibration,
    }


def remembered_figures(scores: Scores, bank: PromptBank, here: Collection[str]) -> dict[str, Any]:
    """Accuracy on the classes heard of so far, and on those whose sites are all gone; of all prompts each time.

    Args:
        scores: of the model after the server step.
        bank: says which sites train on a class.
        here: the sites that are there in the round.

    Returns:
        `accuracy_known` and `accuracy_old` beside the numbers of these classes; None where no clip is of them.
    """
    known: dict[str, bool] = {}
    for site, prompt in bank:
        known[prompt.name] = known.get(prompt.name, False) or site in here
    old = {name for name, present in known.items() if not present}
    of_known, of_old = scores.of(known), scores.of(old)
    return {
        "classes_known": len(known),
        "accuracy_known": of_known.accuracy if of_known.classes else None,
        "classes_old": len(old),
        "accuracy_old": of_old.accuracy if of_old.classes else None,
    }


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
