"""A site's reply to evaluation: sums of metrics over its clips, in the manifest of the message, without arrays."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from flwr.common import Scalar
from pydantic import Field

from fed_a2v.federation.protocol.errors import InvalidReplyError, as_invalid_reply, show
from fed_a2v.federation.protocol.manifest import (
    MANIFEST,
    MAX_COUNT,
    MAX_LOSS,
    Manifest,
    Strict,
    check_origin,
    read_manifest,
    write_manifest,
)

# Name of the scores of the model after the server step on the validation clips.
VALIDATION = "validation"
_BESIDE_TRAINING = "scores"  # key in the metrics of a training reply
_COSINE_TOLERANCE = 1.001  # because of rounding a float32 cosine may exceed 1
_LOSS_TOLERANCE = 1e-3  # and a loss may be below zero


class SideScores(Strict):
    """Sums over the clips of one class for one side of the adapters, with the prompts of that side as candidates.

    Attributes:
        right_at_1: clips whose nearest class prompt is the right one.
        cosine: sum of the cosines to the right prompt.
        loss: sum of the losses of this side.
    """

    right_at_1: Annotated[int, Field(ge=0)]
    cosine: float
    loss: float


class Changes(Strict):
    """Clips of one class on which the models before and after the server step differ, by the CLIP side.

    Attributes:
        better: clips whose nearest class prompt is the right one after the step only.
        worse: clips whose nearest class prompt is the right one before the step only.
    """

    better: Annotated[int, Field(ge=0)]
    worse: Annotated[int, Field(ge=0)]


class ClassScores(Strict):
    """Sums over the clips of one class. Plain Python numbers only.

    All values except `loss` and `t5` are those of the CLIP side.

    Attributes:
        clips: clips scored.
        right_at_1: clips whose nearest class prompt is the right one.
        right_at_5: clips with the right prompt among the nearest five.
        cosine: sum of the cosines to the right prompt.
        loss: sum of the losses.
        right_among: clips whose nearest prompt among the classes of the same kind, recorded or unseen, is the right
            one; 0 if no class is unseen.
        right_calibrated: clips whose nearest prompt is the right one after calibration; 0 if no class is unseen.
        predicted: number of clips by the class of their nearest prompt; empty if not requested.
        t5: the T5 side; None if the model has none or only its CLIP side was sent.
        changes: of the model "after" the server step, if that "before" it was scored, too; else None.
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
    changes: Changes | None = None

    def counts_only(self) -> ClassScores:
        """Without cosines and losses, which are 0: with differential privacy no real number leaves a site."""
        nothing = {"cosine": 0.0, "loss": 0.0}
        return self.model_copy(update=nothing | {"t5": self.t5 and self.t5.model_copy(update=nothing)})


@dataclass(frozen=True)
class SideFigures:
    """Means per clip of `SideScores`."""

    accuracy: float
    cosine: float
    loss: float


@dataclass(frozen=True)
class Scores:
    """Retrieval of the right prompts by one model, as sums by class name, so that sites can be added exactly.

    The means over all clips are nan if no clip was scored.
    """

    classes: dict[str, ClassScores]

    @staticmethod
    def merge(parts: Iterable[Scores]) -> Scores:
        """The sum over sites. It does not depend on their order: `math.fsum` rounds once, at the end."""
        by_class: dict[str, list[ClassScores]] = {}
        for part in parts:
            for name, score in part.classes.items():
                by_class.setdefault(name, []).append(score)
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
                    predicted=_sum_counts(score.predicted for score in scores),
                    t5=_sum_sides([score.t5 for score in scores]),
                    changes=_sum_changes([score.changes for score in scores]),
                )
                for name, scores in sorted(by_class.items())
            }
        )

    def unchanged(self) -> tuple[Scores, Scores]:
        """These scores of a model as those before and after a server step that has not changed it."""
        before: dict[str, object] = {"predicted": {}, "t5": None, "changes": None}
        after = {"changes": Changes(better=0, worse=0)}
        return self._with(before), self._with(after)

    def _with(self, values: Mapping[str, object]) -> Scores:
        return Scores({name: score.model_copy(update=values) for name, score in self.classes.items()})

    def of(self, names: Container[str]) -> Scores:
        """The scores of the classes in `names`."""
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
        """Share of clips whose nearest prompt among the classes of the same kind is the right one."""
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
        """Means of the T5 side; None if it was not scored."""
        sides = [score.t5 for score in self.classes.values() if score.t5 is not None]
        if not sides:
            return None
        return SideFigures(
            accuracy=self._per_clip(side.right_at_1 for side in sides),
            cosine=self._per_clip(side.cosine for side in sides),
            loss=self._per_clip(side.loss for side in sides),
        )

    @property
    def changes(self) -> Changes | None:
        """Clips on which the models before and after the server step differ; None if one of them was not scored."""
        return _sum_changes([score.changes for score in self.classes.values()])

    @property
    def class_accuracy(self) -> dict[str, float]:
        """Accuracy of each class, by name in sorted order."""
        return {name: score.right_at_1 / score.clips for name, score in sorted(self.classes.items())}

    def _per_clip(self, sums: Iterable[float]) -> float:
        return math.fsum(sums) / self.clips if self.classes else math.nan


def _sum_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of counts by name, in sorted order."""
    total: Counter[str] = Counter()
    for counter in counts:
        total.update(counter)
    return dict(sorted(total.items()))


def _sum_sides(sides: Sequence[SideScores | None]) -> SideScores | None:
    """The sum of the T5 sides; None unless all of them were scored."""
    scored = [side for side in sides if side is not None]
    if not scored or len(scored) < len(sides):
        return None
    return SideScores(
        right_at_1=sum(side.right_at_1 for side in scored),
        cosine=math.fsum(side.cosine for side in scored),
        loss=math.fsum(side.loss for side in scored),
    )


def _sum_changes(changes: Sequence[Changes | None]) -> Changes | None:
    """The sum of the changed clips; None unless all of them were counted."""
    counted = [each for each in changes if each is not None]
    if not counted or len(counted) < len(changes):
        return None
    return Changes(better=sum(each.better for each in counted), worse=sum(each.worse for each in counted))


@dataclass(frozen=True)
class EvalReplySpec:
    """The scores that the server expects from a site, and their limits.

    Attributes:
        site: name of the site.
        round_number: the round of the request.
        classes: names of all classes.
        models: the models to score; no more and no fewer may be scored. With both "before" and "after", the latter must
            have the changed clips.
        confusion: whether the predicted classes of the model "after" were requested; otherwise no reply may have them.
        t5_models: the models that were sent with a T5 side; exactly these must have it scored.
        has_unseen: whether there are classes that no site trains on; otherwise their two counts must be 0.
        test_clips: number of the site's test clips of each class in its earlier replies; None: not reported yet.
        max_loss: largest possible loss of a clip for each side of the adapters; None: `MAX_LOSS`.
    """

    site: str
    round_number: int
    classes: Collection[str]
    models: Collection[str] = ("before", "after")
    confusion: bool = False
    t5_models: Collection[str] = ()
    has_unseen: bool = False
    test_clips: Mapping[str, int] | None = None
    max_loss: Mapping[str, float] | None = None


class _ScoresManifest(Manifest):
    models: dict[str, dict[str, ClassScores]]


def encode_scores(site: str, round_number: int, scores: Mapping[str, Scores]) -> dict[str, Scalar]:
    """Evaluation metrics of a site: the scores of each model ("before" and "after" the server step)."""
    models = {model: score.classes for model, score in scores.items()}
    return write_manifest(_ScoresManifest(site=site, round_number=round_number, models=models))


def beside_training(metrics: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The result of `encode_scores` under a key of its own, for the metrics of a training reply."""
    return {_BESIDE_TRAINING: metrics[MANIFEST]}


def scores_beside_training(metrics: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """What `beside_training` has put into the metrics of a training reply, for `decode_scores`."""
    carries = isinstance(metrics, Mapping) and _BESIDE_TRAINING in metrics
    return {MANIFEST: metrics[_BESIDE_TRAINING]} if carries else {}


@as_invalid_reply()
def decode_scores(
    metrics: Mapping[str, Scalar], num_examples: int | None, expected: EvalReplySpec
) -> dict[str, Scores]:
    """Check a site's reply to evaluation and return its scores by model.

    Args:
        metrics: metrics of Flower's evaluation result.
        num_examples: its number of examples, on exactly as many test clips every model must be scored; None: of a
            training reply, where only the models are compared with each other.
        expected: the request and its limits.

    Raises:
        InvalidReplyError: a check fails. No other exception is raised, whatever the input.
    """
    entries = len(expected.classes) * len(expected.models)
    if expected.confusion:  # a class has no more entries than clips
        entries += min(len(expected.classes) ** 2, num_examples) if type(num_examples) is int else 0
    manifest = read_manifest(metrics, _ScoresManifest, entries)
    check_origin(manifest, expected.site, expected.round_number)
    if manifest.models.keys() != set(expected.models):
        raise InvalidReplyError(
            f"scores for models {show(sorted(manifest.models))}, expected {show(sorted(expected.models))}"
        )
    known = frozenset(expected.classes)
    max_loss = expected.max_loss or {"clip": MAX_LOSS, "t5": MAX_LOSS}
    for model, by_class in manifest.models.items():
        for name, score in by_class.items():
            _check_score(name, score, known, max_loss)
            if (score.predicted and not (expected.confusion and model == "after")) or (
                (score.right_among or score.right_calibrated) and not expected.has_unseen
            ):
                raise InvalidReplyError(f"{show(name)}: {model} has counts that were not requested")
            if (score.t5 is not None) != (model in expected.t5_models):
                raise InvalidReplyError(f"{show(name)}: {model} has {'no' if score.t5 is None else 'a'} T5 side")
            if (score.changes is not None) != (model == "after" and "before" in manifest.models):
                has = "no" if score.changes is None else "a"
                raise InvalidReplyError(f"{show(name)}: {model} has {has} number of changed clips")
    scores = {model: Scores(by_class) for model, by_class in manifest.models.items()}
    if num_examples is None:
        num_examples = next(iter(scores.values())).clips
    for model, result in scores.items():
        if type(num_examples) is not int or (model != VALIDATION and result.clips != num_examples):
            raise InvalidReplyError(f"{model}: scored {result.clips} clips, num_examples is {show(num_examples)}")
        if expected.test_clips is not None and model != VALIDATION:
            _check_test_clips(model, result, expected.test_clips)
    for name, score in scores["after"].classes.items() if "before" in scores and "after" in scores else ():
        _check_changes(name, scores["before"].classes.get(name), score)
    return scores


def _check_test_clips(model: str, scores: Scores, test_clips: Mapping[str, int]) -> None:
    """Check that the site scored exactly the test clips that it reported in its earlier replies."""
    clips = {name: score.clips for name, score in scores.classes.items()}
    for name in sorted(clips.keys() | test_clips.keys()):
        scored, reported = clips.get(name, 0), test_clips.get(name, 0)
        if scored != reported:
            raise InvalidReplyError(
                f"{model}: scored {scored} clips of {show(name)}, the site reported {reported} test clips before"
            )


def _check_score(name: str, score: ClassScores, known: frozenset[str], max_loss: Mapping[str, float]) -> None:
    """Check that the sums of one class are possible and consistent."""
    if name not in known:
        raise InvalidReplyError(f"unknown class {show(name)}")
    if score.clips > MAX_COUNT:
        raise InvalidReplyError(f"{show(name)}: {show(score.clips)} clips, the limit is {MAX_COUNT}")
    if not score.right_at_1 <= score.right_at_5 <= score.clips:
        raise InvalidReplyError(
            f"{show(name)}: {show(score.right_at_1)} right at 1, {show(score.right_at_5)} at 5, "
            f"{score.clips} clips: these must not decrease"
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
    _check_sums(show(name), score, score.clips, sum(max_loss.values()) / len(max_loss))
    if score.t5 is not None:
        if score.t5.right_at_1 > score.clips:
            raise InvalidReplyError(f"{show(name)}: T5 has {show(score.t5.right_at_1)} right of {score.clips} clips")
        _check_sums(f"{show(name)}, T5", score.t5, score.clips, max_loss["t5"])


def _check_changes(name: str, before: ClassScores | None, after: ClassScores) -> None:
    """Check that the changed clips of one class lead from the right ones before to those after the server step."""
    clips = 0 if before is None else before.clips
    if before is None or clips != after.clips:
        raise InvalidReplyError(f"{show(name)}: scored {clips} clips before the server step, {after.clips} after it")
    changes = after.changes
    assert changes is not None
    if (
        changes.worse > before.right_at_1
        or changes.better > clips - before.right_at_1
        or changes.better - changes.worse != after.right_at_1 - before.right_at_1
    ):
        raise InvalidReplyError(
            f"{show(name)}: {show(changes.better)} clips better and {show(changes.worse)} worse, for "
            f"{before.right_at_1} of {clips} right before the server step and {after.right_at_1} after it"
        )


def _check_sums(name: str, score: ClassScores | SideScores, clips: int, max_loss: float) -> None:
    if abs(score.cosine) > clips * _COSINE_TOLERANCE:
        raise InvalidReplyError(f"{name}: cosines of {clips} clips cannot sum to {score.cosine:.6g}")
    if not -clips * _LOSS_TOLERANCE <= score.loss <= clips * (1.01 * max_loss + _LOSS_TOLERANCE):
        raise InvalidReplyError(f"{name}: losses of {clips} clips cannot sum to {score.loss:.6g}")
