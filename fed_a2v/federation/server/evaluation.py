"""Figures of the sites' scores: those of every round's row, and by class those after the last, `evaluation.json`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fed_a2v.core.prototype_bank import PrototypeBank
from fed_a2v.core.zero_shot import UnseenAccuracy
from fed_a2v.federation.protocol import VALIDATION, Scores

# T5 is far behind CLIP if its cosine is less than this share of CLIP's.
FAR_BEHIND = 0.5


@dataclass(frozen=True)
class Coverage:
    """Which part of the federation's test clips a round's figures rest on.

    Attributes:
        evaluated: the sites whose scores are in the figures.
        sites: all sites heard of, and those that were asked.
        told: by site, its test clips of each class, as it has said last; a site not in it has never said.
        nameless: nodes that could not be asked, for they do not say which site they are.
    """

    evaluated: Collection[str]
    sites: Collection[str]
    told: Mapping[str, Mapping[str, int]]
    nameless: int = 0

    @property
    def missing(self) -> list[str]:
        """The sites whose scores are not in the figures, in order."""
        return sorted(set(self.sites) - set(self.evaluated))

    @property
    def class_totals(self) -> dict[str, int]:
        """Test clips of each class at the sites that have said how many they have, by name in sorted order."""
        totals: Counter[str] = Counter()
        for clips in self.told.values():
            totals.update(clips)
        return dict(sorted(totals.items()))

    @property
    def is_known(self) -> bool:
        """Whether every site has said how many test clips it has."""
        return not self.nameless and set(self.sites) <= self.told.keys()

    @property
    def figures(self) -> dict[str, Any]:
        """What the row says: `test_clips_total` is None where a site has never said how many it has."""
        return {
            "test_clips_total": sum(self.class_totals.values()) if self.is_known else None,
            "sites_evaluated": len(self.evaluated),
            "sites_total": len(self.sites) + self.nameless,
            "not_evaluated": self.missing,
        }


def round_figures(scores: Mapping[str, Scores], coverage: Coverage, candidates: int) -> dict[str, Any]:
    """What a round's row says of the test clips; fractions of them, or means over them.

    Args:
        scores: of the models "after" and, where it was scored, "before" the server step; and of "after" on the clips
            for validation, where there are any.
        coverage: which sites they come from.
        candidates: class prompts among which the right one is looked for.

    Returns:
        The figures; in `per_class`, None for a class of whose test clips none was scored.
    """
    after = scores["after"]
    per_class = dict.fromkeys(coverage.class_totals) | after.class_accuracy
    figures = {
        "accuracy": after.accuracy,
        "accuracy_at_5": after.accuracy_at_5,
        "cosine": after.cosine,
        "loss": after.loss,
        "per_class": dict(sorted(per_class.items())),
    }
    if after.t5 is not None:
        figures |= {f"t5/{name}": getattr(after.t5, name) for name in ("accuracy", "cosine", "loss")}
        figures["t5/far_behind"] = t5_is_far_behind(after, candidates)
    if "before" in scores:
        figures["accuracy_before"] = scores["before"].accuracy
    if VALIDATION in scores and scores[VALIDATION].clips:
        figures |= {"accuracy_validation": scores[VALIDATION].accuracy, "validation_clips": scores[VALIDATION].clips}
    return figures


def t5_is_far_behind(scores: Scores, candidates: int) -> bool:
    """Whether the T5 side has learned far less than CLIP's.

    It has where CLIP's accuracy is beyond that of chance, by two standard errors, and T5's is not, or T5's cosine is
    less than half of CLIP's.

    Args:
        scores: with at least one clip, of a model with a T5 side.
        candidates: class prompts among which the right one is looked for.
    """
    assert scores.t5 is not None
    chance = 1 / candidates
    limit = chance + 2 * math.sqrt(chance * (1 - chance) / scores.clips)
    learned_less = scores.t5.accuracy <= limit or scores.t5.cosine < FAR_BEHIND * scores.cosine
    return scores.accuracy > limit and learned_less


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


def replay_figures(scores: Scores, bank: PrototypeBank, here: Collection[str]) -> dict[str, Any]:
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


def class_figures(
    scores: Mapping[str, Scores],
    bank: PrototypeBank,
    round_number: int,
    coverage: Coverage,
    lost: Collection[str] = (),
) -> dict[str, Any]:
    """What `evaluation.json` holds.

    Args:
        scores: of the models "after" and, where it was scored, "before" the server step.
        bank: says which sites train on a class, and on how many clips.
        round_number: the round.
        coverage: which sites the scores come from.
        lost: the classes that no site has enough clips of to share anything.

    Returns:
        `classes`: by name `sites`, `clips` (trained on), `test_clips` (scored), `test_clips_total` (of all sites; None
        where a site has never said how many it has), `accuracy`, `accuracy_at_5`, `accuracy_before`, `cosine` (to the
        class's prompt) and, where the adapters have a T5 side, `t5/accuracy`, `t5/cosine`; None where nothing was
        scored. Of a class that is `lost` nobody has said how many sites and clips it has. `confusion`: clips by their
        class and by the class that they were taken for.
    """
    after, before = (scores[name].classes if name in scores else {} for name in ("after", "before"))
    trained: dict[str, list[int]] = {}
    for _, prompt in bank:
        trained.setdefault(prompt.name, []).append(prompt.count)
    totals = coverage.class_totals
    has_t5 = any(score.t5 is not None for score in after.values())
    classes = {}
    for name in sorted({*trained, *after, *totals, *lost}):
        figures: dict[str, Any] = {"lost": name in lost, "sites": None, "clips": None}
        if name not in lost:
            figures |= {"sites": len(trained.get(name, [])), "clips": sum(trained.get(name, []))}
        score, earlier = after.get(name), before.get(name)
        figures |= {
            "test_clips": score.clips if score else 0,
            "test_clips_total": totals.get(name, 0) if coverage.is_known else None,
            "accuracy": score.right_at_1 / score.clips if score else None,
            "accuracy_at_5": score.right_at_5 / score.clips if score else None,
            "accuracy_before": earlier.right_at_1 / earlier.clips if earlier else None,
            "cosine": score.cosine / score.clips if score else None,
        }
        if has_t5:
            t5 = score.t5 if score else None
            figures |= {
                "t5/accuracy": t5.right_at_1 / score.clips if score and t5 else None,
                "t5/cosine": t5.cosine / score.clips if score and t5 else None,
            }
        classes[name] = figures
    confusion = {name: score.predicted for name, score in after.items() if score.predicted}
    return {"round": round_number, "classes": classes, "confusion": confusion}
