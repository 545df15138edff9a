"""What crosses the wire, and the checks it must pass.

A site's reply is one list of numpy arrays, the adapter weights first and the arrays of each class behind them, and
a JSON manifest (`metrics["manifest"]`) that says which array is what. Shapes and types travel with the arrays. The
server knows what it may expect (`Expected`); whatever differs is refused with a `BadReplyError`, whose reason is one
short line, safe to log. Nothing is ever unpickled, and no declared size is believed.
"""

from __future__ import annotations

import io
import json
import math
import reprlib
import warnings
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import numpy as np
import torch
from flwr.common import Parameters, Scalar
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from fed_a2v.core.prompts import AudioPrototypes, ClassPrompts

SCHEMA_VERSION = 1
MANIFEST = "manifest"

Array = NDArray[Any]
Task = Literal["introduce", "train"]
FloatType = Literal["float16", "float32"]

_TORCH_TYPES = {"float16": torch.float16, "float32": torch.float32}
_FLOATS = frozenset(np.dtype(name) for name in ("float16", "float32", "float64"))
_COUNTS = np.dtype("int64")
_MANIFEST_BASE, _MANIFEST_ENTRY = 16384, 512  # characters at most, in all and for each class; 150 are usual
_MAX_HEADER = 1024  # characters; numpy writes about 70
_MAX_REASON = 200
_PIECE = 1 << 14  # numbers converted at a time
_MAX_COUNT = 10**9  # clips
_MAX_LOSS = 1e12  # per clip
_COSINE_TOLERANCE = 1.001  # a float32 cosine may exceed 1 by rounding


class BadReplyError(ValueError):
    """A message from the other side is not what it should be. `str(error)` is one short line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason[:_MAX_REASON])


@dataclass(frozen=True)
class SiteReply:
    """What one site answers in one round.

    Attributes:
        site: the site's name.
        round_number: the round it answers.
        task: "introduce" (prototypes only, before any training) or "train".
        num_examples: clips that the site trains on.
        weights: the adapters' weights; empty when it introduces itself. Those of a decoded reply are views of the
            bytes received, float16 or float32: copies of all sites' weights would be most of the server's memory.
        prompts: one entry for each class that the site shares.
        fingerprint: identifies the site's prototypes; while it is unchanged, they need not travel again.
        square_root: whether the embeddings are square roots of what the encoder gave.
        losses: parts of the training loss by name, finite.
        seconds: time spent at the site.
    """

    site: str
    round_number: int
    task: Task
    num_examples: int
    weights: list[Tensor]
    prompts: list[ClassPrompts]
    fingerprint: str
    square_root: bool
    losses: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Expected:
    """What the server expects of a reply, and its limits.

    Attributes:
        site: the site that was asked.
        round_number: the round it was asked in.
        task: what it was asked to do.
        weight_shapes: shapes of the adapters' weights, in order; not used when a site introduces itself.
        classes: the known class names.
        audio_shape: (S, Da) of the audio embeddings; None: any, as long as the reply's prototypes agree.
        clip_shape: (Tc, Dc) of the CLIP adapter's output.
        t5_shape: (T, Dt) of the T5 adapter's output; None: there is no T5 adapter.
        square_root: whether the embeddings must be square roots; None: not known yet.
        held_fingerprint: fingerprint of the site's prototypes in the bank; "" if it holds none.
        held_classes: classes of the site whose prototypes the bank holds; only these may come without, and
            only under the same fingerprint.
        max_magnitude: limit on the magnitude of every weight, embedding and output; its square is the limit
            for variances. Frozen encoders give 1e-3 to 1e2; the limit stops what would overflow later.
        max_weight_rms: limit on the root mean square of all weights together; trained adapters have about
            0.01 to 1.
        max_prototypes: prototypes per class at most.
        max_count: clips per class, and in all, at most.
    """

    site: str
    round_number: int
    task: Task
    weight_shapes: Sequence[tuple[int, ...]]
    classes: Collection[str]
    audio_shape: tuple[int, int] | None
    clip_shape: tuple[int, int]
    t5_shape: tuple[int, int] | None
    square_root: bool | None = None
    held_fingerprint: str = ""
    held_classes: Collection[str] = ()
    max_magnitude: float = 1e6
    max_weight_rms: float = 100.0
    max_prototypes: int = 4096
    max_count: int = _MAX_COUNT


# ---------------------------------------------------------------------------------------------- the manifest

_Index = Annotated[int, Field(ge=0)]
_Loss = Annotated[float, Field(ge=-_MAX_LOSS, le=_MAX_LOSS)]
_LossName = Annotated[str, Field(pattern=r"^[\w ./-]{1,64}$")]
_Fingerprint = Annotated[str, Field(pattern=r"^[!-~]{1,128}$")]


class _Strict(BaseModel):
    """No conversions (True is not 1, "1" is not 1), no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _PrototypeEntry(_Strict):
    """Where the prototypes of a class stand in the list of arrays; variances None: all zero."""

    means: _Index
    counts: _Index
    variances: _Index | None


class _ClassEntry(_Strict):
    name: str
    count: Annotated[int, Field(ge=1)]
    prototypes: _PrototypeEntry | None
    clip: _Index | None
    t5: _Index | None


class _ReplyManifest(_Strict):
    schema_version: int
    site: str
    round_number: int
    task: Task
    weights: _Index
    fingerprint: _Fingerprint
    square_root: bool
    losses: Annotated[dict[_LossName, _Loss], Field(max_length=64)]
    seconds: Annotated[float, Field(ge=0, le=1e9)]
    classes: list[_ClassEntry]


# ---------------------------------------------------------------------------------------------- fit replies


def encode_reply(reply: SiteReply, dtype: FloatType) -> tuple[list[Array], dict[str, Scalar]]:
    """Arrays and metrics of a reply.

    Arrays are copies in native byte order. One whose finite values would overflow in `dtype`, or positive
    variances that would become zero, stay in float32.

    Args:
        reply: what the site has to say.
        dtype: type of weights, prototypes and outputs on the wire; counts are int64.

    Raises:
        ValueError: a loss, the time or the fingerprint is not what a manifest may hold; the message names it.
    """
    arrays = encode_weights(reply.weights, dtype)

    def add(array: Array) -> int:
        arrays.append(array)
        return len(arrays) - 1

    def output(tensor: Tensor | None) -> int | None:
        return None if tensor is None else add(_pack(tensor, dtype))

    def prototypes(audio: AudioPrototypes | None) -> _PrototypeEntry | None:
        if audio is None:
            return None
        return _PrototypeEntry(
            means=add(_pack(audio.means, dtype)),
            counts=add(audio.counts.detach().to("cpu", torch.int64, copy=True).contiguous().numpy()),
            variances=add(_pack(audio.variances, dtype, keep_positive=True)) if audio.variances.any() else None,
        )

    manifest = _ReplyManifest(
        schema_version=SCHEMA_VERSION,
        site=reply.site,
        round_number=reply.round_number,
        task=reply.task,
        weights=len(reply.weights),
        fingerprint=reply.fingerprint,
        square_root=reply.square_root,
        losses=reply.losses,
        seconds=reply.seconds,
        classes=[
            _ClassEntry(
                name=prompt.name,
                count=prompt.count,
                prototypes=prototypes(prompt.audio),
                clip=output(prompt.clip),
                t5=output(prompt.t5),
            )
            for prompt in reply.prompts
        ],
    )
    return arrays, {MANIFEST: manifest.model_dump_json()}


@contextmanager
def _only_bad_reply() -> Iterator[None]:
    """The last resort: whatever the checks below did not foresee is a bad reply, too, and no crash."""
    try:
        yield
    except BadReplyError:
        raise
    except Exception as error:
        raise BadReplyError(f"unreadable: {type(error).__name__}") from error


@_only_bad_reply()
def decode_reply(
    arrays: Sequence[Array], metrics: Mapping[str, Scalar], num_examples: int, expected: Expected
) -> SiteReply:
    """Check a reply against what is expected.

    The weights are views of `arrays`, not to be changed; all else is copied. Tensors keep the precision in which they
    came, save that float64 becomes float32.

    Classes with too few clips may stay unshared, so the clips of the shared classes may be fewer than
    `num_examples`, never more. Metrics other than the manifest are not read.

    Args:
        arrays: the arrays of the fit result, as `read_arrays` gives them.
        metrics: its metrics.
        num_examples: its number of examples.
        expected: what the server asked for.

    Raises:
        BadReplyError: anything is wrong with it. No other exception escapes, whatever the input.
    """
    manifest = _read_manifest(metrics, _ReplyManifest, len(expected.classes))
    _check_origin(manifest.site, manifest.round_number, expected.site, expected.round_number)
    if manifest.task != expected.task:
        raise BadReplyError(f"answers task {manifest.task!r}, asked was {expected.task!r}")
    if expected.square_root not in (None, manifest.square_root):
        raise BadReplyError(f"square_root is {manifest.square_root}, the other sites have {expected.square_root}")
    _check_arrays(arrays)
    weight_shapes = list(expected.weight_shapes) if expected.task == "train" else []
    if manifest.weights != len(weight_shapes):
        raise BadReplyError(f"{_show(manifest.weights)} weights, expected {len(weight_shapes)}")
    _check_indices(manifest, len(arrays))
    _check_classes(manifest, num_examples, expected)
    return SiteReply(
        site=manifest.site,
        round_number=manifest.round_number,
        task=manifest.task,
        num_examples=num_examples,
        weights=_read_weights(arrays[: manifest.weights], weight_shapes, expected),
        prompts=_read_prompts(arrays, manifest, expected),
        fingerprint=manifest.fingerprint,
        square_root=manifest.square_root,
        losses=dict(manifest.losses),
        seconds=manifest.seconds,
    )


@_only_bad_reply()
def claimed_site(metrics: Mapping[str, Scalar], classes: Collection[str]) -> str:
    """The site that a reply or its scores name as their sender; nothing else is checked yet.

    Raises:
        BadReplyError: no sender can be read.
    """
    return _read_manifest(metrics, _Sender, 2 * len(classes)).site


def read_arrays(parameters: Parameters) -> list[Array]:
    """The arrays of Flower's parameters, without believing what they say about their size.

    Each array is a read-only view of the bytes received, so that none is allocated. Only what this program
    sends is read: npy format 1.0, little-endian float16, float32, float64 and int64. Object arrays, archives
    and truncated arrays are refused.

    Raises:
        BadReplyError: names the first array that is not as it should be.
    """
    if not isinstance(parameters, Parameters) or not isinstance(parameters.tensors, list):
        raise BadReplyError("the reply has no list of arrays")
    if parameters.tensor_type != "numpy.ndarray":
        raise BadReplyError(f"arrays are {_show(parameters.tensor_type)}, expected 'numpy.ndarray'")
    return [_read_npy(tensor, position) for position, tensor in enumerate(parameters.tensors)]


def _read_npy(tensor: Any, position: int) -> Array:
    if type(tensor) is not bytes:
        raise BadReplyError(f"array {position} is not bytes")
    try:
        # A header longer than this slice reads as truncated, and numpy stops there.
        file = io.BytesIO(tensor[: 2 * _MAX_HEADER])
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version of the format")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=_MAX_HEADER)
    except Exception as error:  # the header is parsed as a Python literal: many kinds of error
        raise BadReplyError(f"array {position} has no readable npy header") from error
    if dtype not in _FLOATS and dtype != _COUNTS:
        raise BadReplyError(f"array {position} has type {_show(str(dtype))}")
    if any(type(size) is not int or size < 0 for size in shape):
        raise BadReplyError(f"array {position} declares shape {_show(shape)}")
    declared, present = math.prod(shape) * dtype.itemsize, len(tensor) - file.tell()
    if declared != present:
        raise BadReplyError(f"array {position} declares {_show(declared)} bytes and has {present}")
    try:
        return np.ndarray(shape, dtype, buffer=tensor, offset=file.tell(), order="F" if by_columns else "C")
    except Exception as error:  # e.g. too many axes, or an empty array with an axis beyond the address space
        raise BadReplyError(f"array {position} declares shape {_show(shape)}") from error


# ---------------------------------------------------------------------------------------------- the way down


def encode_weights(tensors: Sequence[Tensor], dtype: FloatType) -> list[Array]:
    """Copies of weights as numpy arrays of `dtype`; one that would overflow there stays in float32."""
    return [_pack(tensor, dtype) for tensor in tensors]


@_only_bad_reply()
def decode_weights(arrays: Sequence[Array], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The weights that the server sent, as float32 copies.

    Raises:
        BadReplyError: their number, a shape or a type differs, or a value is not finite.
    """
    _check_arrays(arrays)
    if len(arrays) != len(shapes):
        raise BadReplyError(f"{len(arrays)} weights, expected {len(shapes)}")
    return [
        _floats(array, tuple(shape), f"weight {position}", limit=math.inf).float()
        for position, (array, shape) in enumerate(zip(arrays, shapes, strict=True))
    ]


def payload_bytes(arrays: Iterable[Array]) -> int:
    """Bytes of the arrays' contents, without the 128 or so of each one's header."""
    return sum(array.nbytes for array in arrays)


# ---------------------------------------------------------------------------------------------- evaluation


class ClassScores(_Strict):
    """Sums over the clips of one class. Plain Python numbers only.

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
    """

    clips: Annotated[int, Field(ge=1)]
    right_at_1: Annotated[int, Field(ge=0)]
    right_at_5: Annotated[int, Field(ge=0)]
    cosine: float
    loss: float
    right_among: Annotated[int, Field(ge=0)] = 0
    right_calibrated: Annotated[int, Field(ge=0)] = 0
    predicted: dict[str, Annotated[int, Field(ge=1)]] = {}


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


class _Sender(_Strict):
    """The one field that all manifests share."""

    model_config = ConfigDict(extra="ignore")

    site: str


class _ScoresManifest(_Strict):
    schema_version: int
    site: str
    round_number: int
    models: dict[str, dict[str, ClassScores]]


def encode_scores(site: str, round_number: int, scores: Mapping[str, Scores]) -> dict[str, Scalar]:
    """Evaluation metrics of a site: the scores of each model ("before" and "after" the server step)."""
    manifest = _ScoresManifest(
        schema_version=SCHEMA_VERSION,
        site=site,
        round_number=round_number,
        models={model: score.classes for model, score in scores.items()},
    )
    return {MANIFEST: manifest.model_dump_json()}


@_only_bad_reply()
def decode_scores(
    metrics: Mapping[str, Scalar],
    num_examples: int,
    site: str,
    round_number: int,
    classes: Collection[str],
    models: Collection[str] = ("before", "after"),
    confusion: bool = False,
) -> dict[str, Scores]:
    """Check the scores of a site and return them by model.

    Args:
        metrics: metrics of the evaluation result.
        num_examples: its number of examples; every model must have been scored on just as many clips.
        site: the site that was asked.
        round_number: the round it was asked in.
        classes: the known class names.
        models: the models it was asked to score, no more and no fewer.
        confusion: whether it was asked which classes were predicted.

    Raises:
        BadReplyError: anything is wrong with them. No other exception escapes, whatever the input.
    """
    entries = len(classes) * len(models)
    if confusion:  # a class has no more entries than clips
        entries += min(len(classes) ** 2, num_examples) if type(num_examples) is int else 0
    manifest = _read_manifest(metrics, _ScoresManifest, entries)
    _check_origin(manifest.site, manifest.round_number, site, round_number)
    if manifest.models.keys() != set(models):
        raise BadReplyError(f"scores for models {_show(sorted(manifest.models))}, asked was {_show(sorted(models))}")
    known = frozenset(classes)
    for by_class in manifest.models.values():
        for name, score in by_class.items():
            _check_score(name, score, known)
    scores = {model: Scores(by_class) for model, by_class in manifest.models.items()}
    for model, result in scores.items():
        if type(num_examples) is not int or result.clips != num_examples:
            raise BadReplyError(f"{model}: scored {result.clips} clips, num_examples is {_show(num_examples)}")
    return scores


def _check_score(name: str, score: ClassScores, known: frozenset[str]) -> None:
    if name not in known:
        raise BadReplyError(f"unknown class {_show(name)}")
    if score.clips > _MAX_COUNT:
        raise BadReplyError(f"{_show(name)}: {_show(score.clips)} clips, the limit is {_MAX_COUNT}")
    if not score.right_at_1 <= score.right_at_5 <= score.clips:
        raise BadReplyError(
            f"{_show(name)}: {_show(score.right_at_1)} right at 1, {_show(score.right_at_5)} at 5, "
            f"{score.clips} clips: must not decrease"
        )
    if max(score.right_among, score.right_calibrated) > score.clips:
        raise BadReplyError(
            f"{_show(name)}: {_show(max(score.right_among, score.right_calibrated))} right of {score.clips} clips"
        )
    if score.predicted:
        if unknown := score.predicted.keys() - known:
            raise BadReplyError(f"{_show(name)}: predicted is unknown class {_show(min(unknown))}")
        if sum(score.predicted.values()) != score.clips or score.predicted.get(name, 0) < score.right_at_1:
            raise BadReplyError(
                f"{_show(name)}: {_show(sum(score.predicted.values()))} predictions, {_show(score.predicted.get(name))}"
                f" of them right, for {score.clips} clips, {score.right_at_1} right"
            )
    if abs(score.cosine) > score.clips * _COSINE_TOLERANCE:
        raise BadReplyError(f"{_show(name)}: cosines of {score.clips} clips cannot sum to {score.cosine:.6g}")
    if abs(score.loss) > score.clips * _MAX_LOSS:
        raise BadReplyError(f"{_show(name)}: losses of {score.clips} clips sum to {score.loss:.6g}")


# ---------------------------------------------------------------------------------------------- the checks

_Manifest = TypeVar("_Manifest", bound=_Strict)


def _read_manifest(metrics: Mapping[str, Scalar], kind: type[_Manifest], entries: int) -> _Manifest:
    """The manifest in `metrics`: JSON of this schema version with exactly the keys and types of `kind`.

    Its length is limited by the number of `entries` it may have: a long one with a fault in every entry would
    take seconds to refuse.
    """
    text = metrics.get(MANIFEST) if isinstance(metrics, Mapping) else None
    if type(text) is not str:
        raise BadReplyError(f"no manifest: metrics[{MANIFEST!r}] must be a string")
    limit = _MANIFEST_BASE + _MANIFEST_ENTRY * entries
    if len(text) > limit:
        raise BadReplyError(f"manifest of {len(text)} characters, the limit is {limit}")
    try:
        tree = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise BadReplyError("manifest is nested too deep") from error
    except BadReplyError:
        raise
    except ValueError as error:
        raise BadReplyError("manifest is not valid JSON") from error
    if not isinstance(tree, dict):
        raise BadReplyError("manifest is not a JSON object")
    version = tree.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise BadReplyError(f"manifest has schema version {_show(version)}, this program has {SCHEMA_VERSION}")
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(_key, first["loc"][:4]))
        raise BadReplyError(f"manifest {where}: {first['msg']}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise BadReplyError(f"manifest has the key {_show(name)} twice")
    return unique


def _refuse_constant(token: str) -> NoReturn:
    raise BadReplyError(f"manifest contains {token}")


def _check_origin(site: str, round_number: int, expected_site: str, expected_round: int) -> None:
    if site != expected_site:
        raise BadReplyError(f"reply of site {_show(site)}, asked was {_show(expected_site)}")
    if round_number != expected_round:
        raise BadReplyError(f"reply to round {_show(round_number)}, asked was round {expected_round}")


def _check_arrays(arrays: Any) -> None:
    # Not isinstance: a masked array or a matrix is an ndarray that behaves otherwise.
    if not isinstance(arrays, list) or any(type(array) is not np.ndarray for array in arrays):
        raise BadReplyError("the reply is not a list of numpy arrays")


def _check_indices(manifest: _ReplyManifest, available: int) -> None:
    """Every array has exactly one use."""
    used = list(range(manifest.weights))
    for entry in manifest.classes:
        audio = entry.prototypes
        of_class = [entry.clip, entry.t5, *((audio.means, audio.counts, audio.variances) if audio else ())]
        used += [index for index in of_class if index is not None]
    uses = Counter(used)
    for index, times in uses.items():
        if index >= available:
            raise BadReplyError(f"manifest names array {_show(index)}, the reply has {available}")
        if times > 1:
            raise BadReplyError(f"manifest uses array {index} {times} times")
    if len(uses) != available:
        raise BadReplyError(f"the reply has {available} arrays, the manifest uses {len(uses)}")


def _check_classes(manifest: _ReplyManifest, num_examples: Any, expected: Expected) -> None:
    """Names, counts, and which arrays each class must and must not have."""
    if type(num_examples) is not int or not 1 <= num_examples <= expected.max_count:
        raise BadReplyError(f"num_examples is {_show(num_examples)}, expected 1 to {expected.max_count}")
    known, held = frozenset(expected.classes), frozenset(expected.held_classes)
    unchanged = manifest.fingerprint == expected.held_fingerprint
    trained = expected.task == "train"
    seen: set[str] = set()
    for entry in manifest.classes:
        name = _show(entry.name)
        if entry.name not in known:
            raise BadReplyError(f"unknown class {name}")
        if entry.name in seen:
            raise BadReplyError(f"class {name} comes twice")
        seen.add(entry.name)
        if entry.count > expected.max_count:
            raise BadReplyError(f"class {name} has {_show(entry.count)} clips, the limit is {expected.max_count}")
        if entry.prototypes is None and not (unchanged and entry.name in held):
            raise BadReplyError(f"class {name} has no prototypes, and the bank holds none under its fingerprint")
        for kind, index, wanted in (
            ("clip", entry.clip, trained),
            ("t5", entry.t5, trained and expected.t5_shape is not None),
        ):
            if (index is not None) != wanted:
                raise BadReplyError(f"class {name} has {'no' if wanted else 'a'} {kind} output")
    clips = sum(entry.count for entry in manifest.classes)
    if clips > num_examples:
        raise BadReplyError(f"the classes have {clips} clips, num_examples is {num_examples}")


def _read_weights(arrays: Sequence[Array], shapes: Sequence[tuple[int, ...]], expected: Expected) -> list[Tensor]:
    weights = [
        _floats(array, tuple(shape), f"weight {position}", expected.max_magnitude, copy=False)
        for position, (array, shape) in enumerate(zip(arrays, shapes, strict=True))
    ]
    size = sum(weight.numel() for weight in weights)
    # Piece by piece: a whole copy in single precision for each site would tear the server's memory into holes.
    pieces = (piece for weight in weights for piece in weight.reshape(-1).split(_PIECE))
    norm = math.hypot(*(float(torch.linalg.vector_norm(piece.float())) for piece in pieces))
    if norm > expected.max_weight_rms * math.sqrt(size):
        rms = norm / math.sqrt(size)
        raise BadReplyError(f"weights have root mean square {rms:.3g}, the limit is {expected.max_weight_rms:g}")
    return weights


def _read_prompts(arrays: Sequence[Array], manifest: _ReplyManifest, expected: Expected) -> list[ClassPrompts]:
    prompts = []
    audio_shape = expected.audio_shape
    for entry in manifest.classes:
        audio = None
        if entry.prototypes is not None:
            audio = _read_prototypes(arrays, entry, audio_shape, expected)
            audio_shape = (audio.means.shape[1], audio.means.shape[2])
        outputs = {
            kind: _floats(arrays[index], shape, f"{kind} output of {_show(entry.name)}", expected.max_magnitude)
            for kind, index, shape in (
                ("clip", entry.clip, expected.clip_shape),
                ("t5", entry.t5, expected.t5_shape),
            )
            if index is not None and shape is not None
        }
        prompts.append(ClassPrompts(entry.name, entry.count, audio, **outputs))
    return prompts


def _read_prototypes(
    arrays: Sequence[Array], entry: _ClassEntry, audio_shape: tuple[int, int] | None, expected: Expected
) -> AudioPrototypes:
    where, name = entry.prototypes, _show(entry.name)
    assert where is not None
    counts = arrays[where.counts]
    if counts.dtype != _COUNTS or counts.ndim != 1 or not 1 <= len(counts) <= expected.max_prototypes:
        raise BadReplyError(
            f"prototype counts of {name} are {_show(str(counts.dtype))} {_show(counts.shape)}, "
            f"expected int64 (K,) with K up to {expected.max_prototypes}"
        )
    if counts.min() < 1 or counts.max() > expected.max_count:
        raise BadReplyError(f"a prototype of {name} has {counts.min()} clips or {counts.max()}")
    if counts.sum() > entry.count:
        raise BadReplyError(f"prototypes of {name} cover {counts.sum()} clips of {entry.count}")
    means = arrays[where.means]
    if means.ndim != 3 or means.size == 0:
        raise BadReplyError(f"prototypes of {name} have shape {_show(means.shape)}, expected (K, S, Da)")
    shape = (len(counts), *(audio_shape or means.shape[1:]))
    limit = expected.max_magnitude
    if where.variances is None:
        variances = torch.zeros(shape)
    else:
        variances = _floats(arrays[where.variances], shape, f"variances of {name}", limit**2, lowest=0.0)
    return AudioPrototypes(
        means=_floats(means, shape, f"prototypes of {name}", limit),
        counts=torch.from_numpy(counts.astype(np.int64)),
        variances=variances,
    )


def _floats(
    array: Array, shape: tuple[int, ...], what: str, limit: float, lowest: float | None = None, copy: bool = True
) -> Tensor:
    """`array` as a tensor, if it has this shape and all its values are finite and within the limits.

    float16 and float32 stay as they are; of those `copy=False` gives a view. float64 becomes float32.
    """
    if array.dtype not in _FLOATS:
        raise BadReplyError(f"{what}: type {_show(str(array.dtype))}, expected a float")
    if array.shape != shape:
        raise BadReplyError(f"{what}: shape {_show(array.shape)}, expected {_show(shape)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of read-only memory: nobody writes into a view
        tensor = torch.from_numpy(np.array(array, order="C") if copy else array)
    # A float64 beyond float32 becomes infinite, and is refused below.
    tensor = tensor.float() if tensor.dtype == torch.float64 else tensor
    if tensor.numel() == 0:
        return tensor
    low, high = (float(value) for value in torch.aminmax(tensor))  # one pass; both are nan if any value is
    if not (math.isfinite(low) and math.isfinite(high)):
        raise BadReplyError(f"{what}: not finite")
    if max(-low, high) > limit:
        raise BadReplyError(f"{what}: magnitude {max(-low, high):.3g}, the limit is {limit:g}")
    if lowest is not None and low < lowest:
        raise BadReplyError(f"{what}: smallest value {low:.3g}, expected at least {lowest:g}")
    return tensor


def _pack(tensor: Tensor, dtype: FloatType, *, keep_positive: bool = False) -> Array:
    """A copy of a tensor as a contiguous array of `dtype`, or of float32 where `dtype` would not hold it."""
    tensor = tensor.detach()
    packed = tensor.to("cpu", _TORCH_TYPES[dtype], copy=True).contiguous()
    if dtype == "float16" and not _fits(tensor, packed, keep_positive):
        packed = tensor.to("cpu", torch.float32, copy=True).contiguous()
    array: Array = packed.numpy()
    return array


def _fits(tensor: Tensor, half: Tensor, keep_positive: bool) -> bool:
    if half.numel() == 0:
        return True
    low, high = (float(value) for value in torch.aminmax(half))
    overflows = math.isinf(low) or math.isinf(high)
    vanishes = keep_positive and int(torch.count_nonzero(half)) != int(torch.count_nonzero(tensor))
    return not overflows and not vanishes


def _key(name: object) -> str:
    """A key or an index of a manifest, as it stands if it is short and plain."""
    text = str(name)
    return text if len(text) <= 40 and text.replace("_", "").isalnum() else _show(text)


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 40


def _show(value: object) -> str:
    """A short one-line repr of a value that a stranger wrote."""
    return _brief.repr(value)
