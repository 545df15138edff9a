"""Which test clips the scores of a round cover, and the figures by class of `evaluation.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fed_a2v.core.prototype_bank import PrototypeBank
from fed_a2v.core.uncertainty import with_interval
from fed_a2v.federation.protocol import ClassScores, Scores


@dataclass(frozen=True)
class Coverage:
    """Which part of the federation's test clips the figures of a round cover.

    Attributes:
        evaluated: the sites whose scores are in the figures.
        sites: all sites that have ever replied, and those that a request was sent to.
        reported: number of test clips by site and class, as last reported; without sites that never reported it.
        nameless: number of nodes that got no request, because they do not report which site they are.
    """

    evaluated: Collection[str]
    sites: Collection[str]
    reported: Mapping[str, Mapping[str, int]]
    nameless: int = 0

    @property
    def missing(self) -> list[str]:
        """The sites whose scores are not in the figures, in order."""
        return sorted(set(self.sites) - set(self.evaluated))

    @property
    def class_totals(self) -> dict[str, int]:
        """Test clips of each class at the sites that have reported them, by name in sorted order."""
        totals: Counter[str] = Counter()
        for clips in self.reported.values():
            totals.update(clips)
        return dict(sorted(totals.items()))

    @property
    def is_known(self) -> bool:
        """Whether every site has reported its number of test clips."""
        return not self.nameless and set(self.sites) <= self.reported.keys()

    @property
    def figures(self) -> dict[str, Any]:
        """Values of the row: `test_clips_total` is None if a site has never reported its number."""
        return {
            "test_clips_total": sum(self.class_totals.values()) if self.is_known else None,
            "sites_evaluated": len(self.evaluated),
            "sites_total": len(self.sites) + self.nameless,
            "not_evaluated": self.missing,
        }


def class_figures(
    scores: Mapping[str, Scores],
    bank: PrototypeBank,
    round_number: int,
    coverage: Coverage,
    lost: Collection[str] = (),
) -> dict[str, Any]:
    """The content of `evaluation.json`.

    Args:
        scores: scores of the model "after" the server step and, if it was scored, of that "before" it.
        bank: the source of the numbers of sites and of training clips.
        round_number: number of the round.
        coverage: the sites that the scores come from.
        lost: the classes of which no site shares statistics.

    Returns:
        `classes`: by name `sites`, `clips` (trained on), `test_clips` (scored), `test_clips_total` (of all sites; None
        if a site has never reported its number), `accuracy`, `accuracy_at_5`, `accuracy_before`, `cosine` (to the
        class's prompt) and, if the adapters have a T5 side, `t5/accuracy`, `t5/cosine`; None if no clip was
        scored. Each accuracy has the ends of its 95 % interval, such as `accuracy_low` and `accuracy_high`. If the
        model "before" was scored, `better` and `worse`: clips that are right after the server step only, or before it
        only. The numbers of sites and clips of a `lost` class are unknown. `confusion`: clips by their class and by
        the predicted class.
    """
    after, before = (scores[name].classes if name in scores else {} for name in ("after", "before"))
    trained: dict[str, list[int]] = {}
    for _, statistics in bank:
        trained.setdefault(statistics.name, []).append(statistics.count)
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
            **_accuracy("accuracy", score.right_at_1 if score else None, score),
            **_accuracy("accuracy_at_5", score.right_at_5 if score else None, score),
            **_accuracy("accuracy_before", earlier.right_at_1 if earlier else None, earlier),
            "cosine": score.cosine / score.clips if score else None,
        }
        if before:
            changes = score.changes if score else None
            figures |= {"better": changes.better if changes else None, "worse": changes.worse if changes else None}
        if has_t5:
            t5 = score.t5 if score else None
            figures |= _accuracy("t5/accuracy", t5.right_at_1 if t5 else None, score)
            figures["t5/cosine"] = t5.cosine / score.clips if score and t5 else None
        classes[name] = figures
    confusion = {name: score.predicted for name, score in after.items() if score.predicted}
    return {"round": round_number, "classes": classes, "confusion": confusion}


def _accuracy(name: str, right: int | None, score: ClassScores | None) -> dict[str, Any]:
    """The share of right clips among those of a class, with its interval; None if no clip was scored."""
    if right is None or score is None:
        return with_interval(name, None, 0)
    return with_interval(name, right / score.clips, score.clips)
