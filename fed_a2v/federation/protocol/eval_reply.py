"""How well the sites' models do on their test clips: sums that travel in the manifest, without arrays."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from flwr.common import Scalar
from pydantic import Field

from fed_a2v.federation.protocol.errors import InvalidReplyError, only_bad_reply, show
from fed_a2v.federation.protocol.manifest import (
    MAX_COUNT,
    MAX_LOSS,
    Manifest,
    Strict,
    check_origin,
    read_manifest,
    write_manifest,
)

# The model after the server step, scored on the clips for validation.
VALIDATION = "validation"
_COSINE_TOLERANCE = 1.001  # a float32 cosine may exceed 1 by rounding
_LOSS_TOLERANCE = 1e-3  # and so a loss may be below zero


class SideScores(Strict):
    """Sums over the clips of one class for one side of the adapters, with the prompts of that side as candidates.

    Attributes:
        right_at_1: clips whose nearest class prompt is the right one.
        cosine: sum of the cosines to the right prompt.
        loss: sum of this side's part of the losses.
    """

    right_at_1: Annotated[int, Field(ge=0)]
    cosine: float
    loss: float


class ClassScores(Strict):
    """Sums over the clips of one class. Plain Python numbers only.

    All but `loss` and `t5` are about the CLIP side.

    Attributes:
        clips: clips scored.
        right_at_1: clips whose nearest class prompt is the right one.
        right_at_5: clips with the right prompt among the nearest five.
        cosine: sum of the cosines to the right prompt.
        loss: sum of the losses.
        right_among: clips whose nearest prompt of their own kind, of recorded or of unseen classes, is the right one.
            0 where no class is unseen.
        right_calibrated: clips whose nearest prompt is the right one after calibration; likewise.
        predicted: clips by the class of their nearest prompt; empty where it was not asked for.
        t5: the T5 side; None where the model has none, or only its CLIP side was sent to be scored.
    """

    clips: Annotated[int, Field(ge=1)]
    right_at_1: Annotated[int, Field(ge=0)]
    right_at_5: Annotated[int, Field(ge=0)]
    cosine: float
    loss: float
    right_among: Annotated[int, Field(ge=0)] = 0
    right_calibrated: Annotated[int, Field(ge=0)] = 0
    predicted: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    t5: SideScores | None = None


@dataclass(frozen=True)
class SideFigures:
    """What `SideScores` come to per clip."""

    accuracy: float
    cosine: float
    loss: float


@dataclass(frozen=True)
class Scores:
    """How well one model retrieves the right prompts, as sums by class name, so that sites add up exactly.

    The figures over all clips are nan where no clip was scored.
    """

    classes: dict[str, ClassScores]

    @staticmethod
    def merge(parts: Iterable[Scores]) -> Scores:
        """The sum over sites. It does not depend on their order: `math.fsum` rounds once, at the end."""
        gathered: dict[str, list[ClassScores]] = {}
        for part in parts:
            for name, score in part.classes.items():
                gathered.setdefault(name, []).append(score)
        return Scores(
            {
                name: ClassScores(
                    clips=sum(score.clips for score in scores),
                    right_at_1=sum(score.right_at_1 for score in scores),
                    right_at_5=sum(score.right_at_5 for score in scores),
                    cosine=math.fsum(score.cosine for score in scores),
                    loss=math.fsum(score.loss for score in scores),
                    right_among=sum(score.right_among for score in scores),
                    right_calibrated=sum(score.right_calibrated for score in scores),
                    predicted=_added(score.predicted for score in scores),
                    t5=_added_sides([score.t5 for score in scores]),
                )
                for name, scores in sorted(gathered.items())
            }
        )

    def of(self, names: Container[str]) -> Scores:
        """The part of some classes."""
        return Scores({name: score for name, score in self.classes.items() if name in names})

    @property
    def clips(self) -> int:
        """Clips scored."""
        return sum(score.clips for score in self.classes.values())

    @property
    def accuracy(self) -> float:
        """Share of clips whose nearest prompt is the right one."""
        return self._per_clip(score.right_at_1 for score in self.classes.values())

    @property
    def accuracy_at_5(self) -> float:
        """Share of clips with the right prompt among the nearest five."""
        return self._per_clip(score.right_at_5 for score in self.classes.values())

    @property
    def accuracy_among(self) -> float:
        """Share of clips whose nearest prompt of their own kind is the right one."""
        return self._per_clip(score.right_among for score in self.classes.values())

    @property
    def accuracy_calibrated(self) -> float:
        """Share of clips whose nearest prompt is the right one after calibration."""
        return self._per_clip(score.right_calibrated for score in self.classes.values())

    @property
    def cosine(self) -> float:
        """Mean cosine to the right prompt."""
        return self._per_clip(score.cosine for score in self.classes.values())

    @property
    def loss(self) -> float:
        """Mean loss per clip."""
        return self._per_clip(score.loss for score in self.classes.values())

    @property
    def t5(self) -> SideFigures | None:
        """The figures of the T5 side; None where it was not scored."""
        sides = [score.t5 for score in self.classes.values() if score.t5 is not None]
        if not sides:
            return None
        return SideFigures(
            accuracy=self._per_clip(side.right_at_1 for side in sides),
            cosine=self._per_clip(side.cosine for side in sides),
            loss=self._per_clip(side.loss for side in sides),
        )

    @property
    def class_accuracy(self) -> dict[str, float]:
        """Accuracy of each class, by name in sorted order."""
        return {name: score.right_at_1 / score.clips for name, score in sorted(self.classes.items())}

    def _per_clip(self, sums: Iterable[float]) -> float:
        return math.fsum(sums) / self.clips if self.classes else math.nan


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of counts by name, in sorted order."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))


def _added_sides(sides: Sequence[SideScores | None]) -> SideScores | None:
    """The sum of sides; None unless every one was scored."""
    scored = [side for side in sides if side is not None]
    if not scored or len(scored) < len(sides):
        return None
    return SideScores(
        right_at_1=sum(side.right_at_1 for side in scored),
        cosine=math.fsum(side.cosine for side in scored),
        loss=math.fsum(side.loss for side in scored),
    )


class _ScoresManifest(Manifest):
    models: dict[str, dict[str, ClassScores]]


def encode_scores(site: str, round_number: int, scores: Mapping[str, Scores]) -> dict[str, Scalar]:
    """Evaluation metrics of a site: the scores of each model ("before" and "after" the server step)."""
    models = {model: score.classes for model, score in scores.items()}
    return write_manifest(_ScoresManifest(site=site, round_number=round_number, models=models))


@only_bad_reply()
def decode_scores(
    metrics: Mapping[str, Scalar],
    num_examples: int,
    site: str,
    round_number: int,
    classes: Collection[str],
    models: Collection[str] = ("before", "after"),
    confusion: bool = False,
    t5: Collection[str] = (),
    unseen: bool = False,
    registered: Mapping[str, int] | None = None,
    highest: Mapping[str, float] | None = None,
) -> dict[str, Scores]:
    """Check the scores of a site and return them by model.

    Args:
        metrics: metrics of the evaluation result.
        num_examples: its number of examples; every model must have been scored on just as many test clips.
        site: the site that was asked.
        round_number: the round it was asked in.
        classes: the known class names.
        models: the models it was asked to score, no more and no fewer.
        confusion: whether it was asked which classes were predicted; by the model after the server step.
        t5: the models of which it was sent a T5 side: these, and no others, must have it scored.
        unseen: whether there are classes that no site trains on, for which alone two of the counts are.
        registered: its test clips of each class, as it has said in its replies; None: it has not.
        highest: what the loss of a clip can be, for each side of the adapters; None: `MAX_LOSS`.

    Raises:
        InvalidReplyError: anything is wrong with them. No other exception escapes, whatever the input.
    """
    entries = len(classes) * len(models)
    if confusion:  # a class has no more entries than clips
        entries += min(len(classes) ** 2, num_examples) if type(num_examples) is int else 0
    manifest = read_manifest(metrics, _ScoresManifest, entries)
    check_origin(manifest, site, round_number)
    if manifest.models.keys() != set(models):
        raise InvalidReplyError(f"scores for models {show(sorted(manifest.models))}, asked was {show(sorted(models))}")
    known = frozenset(classes)
    for model, by_class in manifest.models.items():
        for name, score in by_class.items():
            _check_score(name, score, known, highest or {"clip": MAX_LOSS, "t5": MAX_LOSS})
            if (score.predicted and not (confusion and model == "after")) or (
                (score.right_among or score.right_calibrated) and not unseen
            ):
                raise InvalidReplyError(f"{show(name)}: {model} has counts that nobody asked for")
            if (score.t5 is not None) != (model in t5):
                raise InvalidReplyError(f"{show(name)}: {model} has {'no' if score.t5 is None else 'a'} T5 side")
    scores = {model: Scores(by_class) for model, by_class in manifest.models.items()}
    for model, result in scores.items():
        if type(num_examples) is not int or (model != VALIDATION and result.clips != num_examples):
            raise InvalidReplyError(f"{model}: scored {result.clips} clips, num_examples is {show(num_examples)}")
        if registered is not None and model != VALIDATION:
            _check_registered(model, result, registered)
    return scores


def _check_registered(model: str, scores: Scores, registered: Mapping[str, int]) -> None:
    clips = {name: score.clips for name, score in scores.classes.items()}
    for name in sorted(clips.keys() | registered.keys()):
        said, had = clips.get(name, 0), registered.get(name, 0)
        if said != had:
            raise InvalidReplyError(
                f"{model}: scored {said} clips of {show(name)}, the site had said that it has {had}"
            )


def _check_score(name: str, score: ClassScores, known: frozenset[str], highest: Mapping[str, float]) -> None:
    if name not in known:
        raise InvalidReplyError(f"unknown class {show(name)}")
    if score.clips > MAX_COUNT:
        raise InvalidReplyError(f"{show(name)}: {show(score.clips)} clips, the limit is {MAX_COUNT}")
    if not score.right_at_1 <= score.right_at_5 <= score.clips:
        raise InvalidReplyError(
            f"{show(name)}: {show(score.right_at_1)} right at 1, {show(score.right_at_5)} at 5, "
            f"{score.clips} clips: must not decrease"
        )
    if max(score.right_among, score.right_calibrated) > score.clips:
        raise InvalidReplyError(
            f"{show(name)}: {show(max(score.right_among, score.right_calibrated))} right of {score.clips} clips"
        )
    if score.predicted:
        if unknown := score.predicted.keys() - known:
            raise InvalidReplyError(f"{show(name)}: predicted is unknown class {show(min(unknown))}")
        if sum(score.predicted.values()) != score.clips or score.predicted.get(name, 0) < score.right_at_1:
            raise InvalidReplyError(
                f"{show(name)}: {show(sum(score.predicted.values()))} predictions, {show(score.predicted.get(name))}"
                f" of them right, for {score.clips} clips, {score.right_at_1} right"
            )
    _check_sums(show(name), score, score.clips, sum(highest.values()) / len(highest))
    if score.t5 is not None:
        if score.t5.right_at_1 > score.clips:
            raise InvalidReplyError(f"{show(name)}: T5 has {show(score.t5.right_at_1)} right of {score.clips} clips")
        _check_sums(f"{show(name)}, T5", score.t5, score.clips, highest["t5"])


def _check_sums(what: str, score: ClassScores | SideScores, clips: int, highest: float) -> None:
    if abs(score.cosine) > clips * _COSINE_TOLERANCE:
        raise InvalidReplyError(f"{what}: cosines of {clips} clips cannot sum to {score.cosine:.6g}")
    if not -clips * _LOSS_TOLERANCE <= score.loss <= clips * (1.01 * highest + _LOSS_TOLERANCE):
        raise InvalidReplyError(f"{what}: losses of {clips} clips cannot sum to {score.loss:.6g}")
