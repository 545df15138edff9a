"""What a site answers when it registers or has trained: arrays, and the manifest that says which is what."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from flwr.common import Scalar
from pydantic import Field
from torch import Tensor

from fed_a2v.core.prototype_bank import AudioPrototypes, ClassStatistics, PooledMoments
from fed_a2v.core.prototypes import Variance
from fed_a2v.federation.protocol.arrays import COUNTS, Array, FloatType, check_arrays, encode_weights, pack, read_floats
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
from fed_a2v.federation.protocol.packing import join_arrays

Task = Literal["register", "train"]

_PIECE = 1 << 14  # numbers converted at a time


@dataclass(frozen=True)
class TrainReply:
    """What one site answers in one round.

    Attributes:
        site: the site's name.
        round_number: the round it answers.
        task: "register" (prototypes only, before any training) or "train".
        num_examples: clips that the site trains on.
        weights: the adapters' weights; empty when it registers. Those of a decoded reply are views of the
            bytes received, float16 or float32: copies of all sites' weights would be most of the server's memory.
        prompts: one entry for each class that the site shares.
        fingerprint: identifies the site's prototypes; while it is unchanged, they need not travel again.
        square_root: whether the embeddings are square roots of what the encoder gave.
        losses: parts of the training loss by name, finite.
        seconds: time spent at the site.
        test_clips: clips of each class that the site has for the evaluation, so that those that fail in it are missed.
        moments: of all its clips together; only when a site registers that shares no class.
    """

    site: str
    round_number: int
    task: Task
    num_examples: int
    weights: list[Tensor]
    prompts: list[ClassStatistics]
    fingerprint: str
    square_root: bool
    losses: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    test_clips: dict[str, int] = field(default_factory=dict)
    moments: PooledMoments | None = None


@dataclass(frozen=True)
class ReplySpec:
    """What the server expects of a reply, and its limits: what was asked for, and no more.

    Attributes:
        site: the site that was asked.
        round_number: the round it was asked in.
        task: what it was asked to do.
        weight_shapes: shapes of the adapters' weights, in order; not used when a site registers.
        classes: the known class names.
        audio_shape: (S, Da) of the audio embeddings; None: any, as long as the reply's prototypes agree.
        clip_shape: (Tc, Dc) of the CLIP adapter's output.
        t5_shape: (T, Dt) of the T5 adapter's output; None: there is no T5 adapter.
        square_root: whether the embeddings must be square roots; None: not known yet.
        prototypes: whether classes come with prototypes; else none may.
        groups: prototypes of a class at most; 0: each prototype is a single clip.
        min_clips: clips behind each prototype, each class and the moments of all clips, at least.
        variances: those that prototypes may come with: of each group, or one for all groups of a class, or none.
        losses: names of the parts of the training loss; a reply that has trained names all of them, any other none.
        outputs: whether classes come with mean outputs of the adapters once these are trained; else none may.
        held_fingerprint: fingerprint of the site's prototypes in the bank; "" if it holds none.
        held_classes: classes of the site whose prototypes the bank holds; only these may come without, and
            only under the same fingerprint.
        max_magnitude: limit on the magnitude of every weight, embedding and output; its square is the limit
            for variances. Frozen encoders give 1e-3 to 1e2; the limit stops what would overflow later.
        max_weight_rms: limit on the root mean square of all weights together.
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
    prototypes: bool = True
    groups: int = 8
    min_clips: int = 1
    variances: Variance = "groups"
    losses: Collection[str] = ()
    outputs: bool = True
    held_fingerprint: str = ""
    held_classes: Collection[str] = ()
    max_magnitude: float = 1e6
    max_weight_rms: float = math.inf
    max_count: int = MAX_COUNT

    @property
    def max_arrays(self) -> int:
        """Arrays that a reply may have: the weights, and five for each class."""
        return len(self.weight_shapes) + 5 * len(self.classes)

    def prototypes_of(self, clips: int) -> int:
        """Prototypes that a class of so many clips may have."""
        return max(1, min(self.groups, clips // self.min_clips)) if self.groups else clips


_Index = Annotated[int, Field(ge=0)]
# Rounding may bring what cannot be negative just below zero.
_Loss = Annotated[float, Field(ge=-1e-3, le=MAX_LOSS)]
_LossName = Annotated[str, Field(pattern=r"^[\w ./-]{1,64}$")]
_Fingerprint = Annotated[str, Field(pattern=r"^[!-~]{1,128}$")]


class _PrototypeEntry(Strict):
    """Where the prototypes of a class stand in the list of arrays; variances None: all zero, (1, S, Da): all alike."""

    means: _Index
    counts: _Index
    variances: _Index | None


class _ClassEntry(Strict):
    name: str
    count: Annotated[int, Field(ge=1)]
    prototypes: _PrototypeEntry | None
    clip: _Index | None
    t5: _Index | None


class _MomentsEntry(Strict):
    """Where the mean of all clips stands in the list of arrays, their variance and number."""

    mean: _Index
    variance: Annotated[float, Field(ge=0)]
    count: Annotated[int, Field(ge=1)]


class _ReplyManifest(Manifest):
    task: Task
    weights: _Index
    fingerprint: _Fingerprint
    square_root: bool
    losses: Annotated[dict[_LossName, _Loss], Field(max_length=64)]
    seconds: Annotated[float, Field(ge=0, le=1e9)]
    test_clips: dict[str, Annotated[int, Field(ge=1)]]
    classes: list[_ClassEntry]
    moments: _MomentsEntry | None


def encode_reply(reply: TrainReply, dtype: FloatType) -> tuple[list[Array], dict[str, Scalar]]:
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
        return None if tensor is None else add(pack(tensor, dtype))

    def prototypes(audio: AudioPrototypes | None) -> _PrototypeEntry | None:
        if audio is None:
            return None
        return _PrototypeEntry(
            means=add(pack(audio.means, dtype)),
            counts=add(audio.counts.detach().to("cpu", torch.int64, copy=True).contiguous().numpy()),
            variances=add(pack(_unlike(audio.variances), dtype, keep_positive=True)) if audio.variances.any() else None,
        )

    def moments(pooled: PooledMoments | None) -> _MomentsEntry | None:
        if pooled is None:
            return None
        return _MomentsEntry(mean=add(pack(pooled.mean, dtype)), variance=pooled.variance, count=pooled.count)

    manifest = _ReplyManifest(
        site=reply.site,
        round_number=reply.round_number,
        task=reply.task,
        weights=len(reply.weights),
        fingerprint=reply.fingerprint,
        square_root=reply.square_root,
        losses=reply.losses,
        seconds=reply.seconds,
        test_clips=reply.test_clips,
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
        moments=moments(reply.moments),
    )
    return arrays, write_manifest(manifest)


def pack_reply(reply: TrainReply, dtype: FloatType) -> tuple[list[Array], dict[str, Scalar]]:
    """Arrays and metrics of a reply as Flower takes them; see `encode_reply`.

    The weights are joined into one array and all else into another: the server keeps the weights as they came, and
    lets go of the rest.
    """
    arrays, metrics = encode_reply(reply, dtype)
    count = len(reply.weights)
    return [join_arrays(part) for part in (arrays[:count], arrays[count:]) if part], metrics


@only_bad_reply()
def decode_reply(
    arrays: Sequence[Array], metrics: Mapping[str, Scalar], num_examples: int, expected: ReplySpec
) -> TrainReply:
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
        InvalidReplyError: anything is wrong with it. No other exception escapes, whatever the input.
    """
    manifest = read_manifest(metrics, _ReplyManifest, len(expected.classes))
    check_origin(manifest, expected.site, expected.round_number)
    if manifest.task != expected.task:
        raise InvalidReplyError(f"answers task {manifest.task!r}, asked was {expected.task!r}")
    if expected.square_root not in (None, manifest.square_root):
        raise InvalidReplyError(f"square_root is {manifest.square_root}, the other sites have {expected.square_root}")
    check_arrays(arrays)
    weight_shapes = list(expected.weight_shapes) if expected.task == "train" else []
    if manifest.weights != len(weight_shapes):
        raise InvalidReplyError(f"{show(manifest.weights)} weights, expected {len(weight_shapes)}")
    _check_indices(manifest, len(arrays))
    _check_classes(manifest, num_examples, expected)
    _check_losses(manifest, expected)
    _check_test_clips(manifest.test_clips, expected)
    return TrainReply(
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
        test_clips=dict(manifest.test_clips),
        moments=None if manifest.moments is None else _read_moments(arrays, manifest.moments, expected),
    )


def _check_indices(manifest: _ReplyManifest, available: int) -> None:
    """Every array has exactly one use."""
    used = list(range(manifest.weights))
    for entry in manifest.classes:
        audio = entry.prototypes
        of_class = [entry.clip, entry.t5, *((audio.means, audio.counts, audio.variances) if audio else ())]
        used += [index for index in of_class if index is not None]
    if manifest.moments is not None:
        used.append(manifest.moments.mean)
    uses = Counter(used)
    for index, times in uses.items():
        if index >= available:
            raise InvalidReplyError(f"manifest names array {show(index)}, the reply has {available}")
        if times > 1:
            raise InvalidReplyError(f"manifest uses array {index} {times} times")
    if len(uses) != available:
        raise InvalidReplyError(f"the reply has {available} arrays, the manifest uses {len(uses)}")


def _check_classes(manifest: _ReplyManifest, num_examples: Any, expected: ReplySpec) -> None:
    """Names, counts, and which arrays each class must and must not have."""
    if type(num_examples) is not int or not 1 <= num_examples <= expected.max_count:
        raise InvalidReplyError(f"num_examples is {show(num_examples)}, expected 1 to {expected.max_count}")
    known, held = frozenset(expected.classes), frozenset(expected.held_classes)
    unchanged = manifest.fingerprint == expected.held_fingerprint
    outputs = expected.outputs and expected.task == "train"
    seen: set[str] = set()
    for entry in manifest.classes:
        name = show(entry.name)
        if entry.name not in known:
            raise InvalidReplyError(f"unknown class {name}")
        if entry.name in seen:
            raise InvalidReplyError(f"class {name} comes twice")
        seen.add(entry.name)
        if entry.count > expected.max_count:
            raise InvalidReplyError(f"class {name} has {show(entry.count)} clips, the limit is {expected.max_count}")
        if entry.count < expected.min_clips:
            raise InvalidReplyError(f"class {name} has {entry.count} clips, share.min_clips is {expected.min_clips}")
        if expected.prototypes and entry.prototypes is None and not (unchanged and entry.name in held):
            raise InvalidReplyError(f"class {name} has no prototypes, and the bank holds none under its fingerprint")
        if not expected.prototypes and entry.prototypes is not None:
            raise InvalidReplyError(f"class {name} has prototypes, and nobody asked for any")
        if entry.prototypes is not None and entry.prototypes.variances is not None and expected.variances == "none":
            raise InvalidReplyError(f"class {name} has variances, and nobody asked for any")
        for kind, index, wanted in (
            ("clip", entry.clip, outputs),
            ("t5", entry.t5, outputs and expected.t5_shape is not None),
        ):
            if (index is not None) != wanted:
                raise InvalidReplyError(f"class {name} has {'no' if wanted else 'a'} {kind} output")
    clips = sum(entry.count for entry in manifest.classes)
    if clips > num_examples:
        raise InvalidReplyError(f"the classes have {clips} clips, num_examples is {num_examples}")
    if manifest.moments is not None:
        if expected.task == "train" or manifest.classes:
            raise InvalidReplyError(
                f"moments of all clips beside {len(manifest.classes)} classes, task {manifest.task!r}"
            )
        if manifest.moments.count > num_examples:
            raise InvalidReplyError(f"moments of {show(manifest.moments.count)} clips, num_examples is {num_examples}")
        if manifest.moments.count < expected.min_clips:
            raise InvalidReplyError(
                f"moments of {manifest.moments.count} clips, share.min_clips is {expected.min_clips}"
            )


def _check_losses(manifest: _ReplyManifest, expected: ReplySpec) -> None:
    """The losses are those that training gives: others would be columns that a site invents."""
    wanted = set(expected.losses) if manifest.task == "train" else set()
    if manifest.losses.keys() != wanted:
        raise InvalidReplyError(f"losses are {show(sorted(manifest.losses))}, expected {show(sorted(wanted))}")


def _check_test_clips(clips: Mapping[str, int], expected: ReplySpec) -> None:
    if unknown := clips.keys() - frozenset(expected.classes):
        raise InvalidReplyError(f"test clips of unknown class {show(min(unknown))}")
    if (total := sum(clips.values())) > expected.max_count:
        raise InvalidReplyError(f"{show(total)} test clips, the limit is {expected.max_count}")


def _read_weights(arrays: Sequence[Array], shapes: Sequence[tuple[int, ...]], expected: ReplySpec) -> list[Tensor]:
    weights = [
        read_floats(array, tuple(shape), f"weight {position}", expected.max_magnitude, copy=False)
        for position, (array, shape) in enumerate(zip(arrays, shapes, strict=True))
    ]
    size = sum(weight.numel() for weight in weights)
    # Piece by piece: a whole copy in single precision for each site would tear the server's memory into holes.
    pieces = (piece for weight in weights for piece in weight.reshape(-1).split(_PIECE))
    norm = math.hypot(*(float(torch.linalg.vector_norm(piece.float())) for piece in pieces))
    if norm > expected.max_weight_rms * math.sqrt(size):
        rms = norm / math.sqrt(size)
        raise InvalidReplyError(
            f"weights have root mean square {rms:.3g}, aggregation.max_scale allows {expected.max_weight_rms:.3g}"
        )
    return weights


def _read_prompts(arrays: Sequence[Array], manifest: _ReplyManifest, expected: ReplySpec) -> list[ClassStatistics]:
    prompts = []
    audio_shape = expected.audio_shape
    for entry in manifest.classes:
        audio = None
        if entry.prototypes is not None:
            audio = _read_prototypes(arrays, entry, audio_shape, expected)
            audio_shape = (audio.means.shape[1], audio.means.shape[2])
        outputs = {
            kind: read_floats(arrays[index], shape, f"{kind} output of {show(entry.name)}", expected.max_magnitude)
            for kind, index, shape in (
                ("clip", entry.clip, expected.clip_shape),
                ("t5", entry.t5, expected.t5_shape),
            )
            if index is not None and shape is not None
        }
        prompts.append(ClassStatistics(entry.name, entry.count, audio, **outputs))
    return prompts


def _read_prototypes(
    arrays: Sequence[Array], entry: _ClassEntry, audio_shape: tuple[int, int] | None, expected: ReplySpec
) -> AudioPrototypes:
    where, name = entry.prototypes, show(entry.name)
    assert where is not None
    counts, most = arrays[where.counts], expected.prototypes_of(entry.count)
    if counts.dtype != COUNTS or counts.ndim != 1 or not 1 <= len(counts) <= most:
        raise InvalidReplyError(
            f"prototype counts of {name} are {show(str(counts.dtype))} {show(counts.shape)}, "
            f"expected int64 (K,) with K up to {most} for {entry.count} clips"
        )
    lowest, highest = (expected.min_clips, expected.max_count) if expected.groups else (1, 1)
    if counts.min() < lowest or counts.max() > highest:
        raise InvalidReplyError(
            f"prototypes of {name} have {counts.min()} to {counts.max()} clips, expected {lowest} to {highest}"
        )
    if counts.sum() > entry.count:
        raise InvalidReplyError(f"prototypes of {name} cover {counts.sum()} clips of {entry.count}")
    means = arrays[where.means]
    if means.ndim != 3 or means.size == 0:
        raise InvalidReplyError(f"prototypes of {name} have shape {show(means.shape)}, expected (K, S, Da)")
    shape = (len(counts), *(audio_shape or means.shape[1:]))
    limit = expected.max_magnitude
    if where.variances is None:
        variances = torch.zeros(shape)
    else:
        given = arrays[where.variances]
        rows = 1 if expected.variances == "class" or given.shape[:1] == (1,) else len(counts)
        variances = read_floats(given, (rows, *shape[1:]), f"variances of {name}", limit**2, lowest=0.0)
    return AudioPrototypes(
        means=read_floats(means, shape, f"prototypes of {name}", limit),
        counts=torch.from_numpy(counts.astype(np.int64)),
        variances=variances.expand(shape).contiguous(),
    )


def _unlike(variances: Tensor) -> Tensor:
    """(K, S, Da) variances, or (1, S, Da) where all are alike: once is enough."""
    return variances[:1] if bool((variances == variances[:1]).all()) else variances


def _read_moments(arrays: Sequence[Array], entry: _MomentsEntry, expected: ReplySpec) -> PooledMoments:
    mean, limit = arrays[entry.mean], expected.max_magnitude
    if mean.ndim != 2 or mean.size == 0:
        raise InvalidReplyError(f"mean of all clips has shape {show(mean.shape)}, expected (S, Da)")
    if entry.variance > limit**2:
        raise InvalidReplyError(f"variance of all clips is {entry.variance:.3g}, the limit is {limit**2:g}")
    shape = expected.audio_shape or mean.shape
    return PooledMoments(read_floats(mean, shape, "mean of all clips", limit), entry.variance, entry.count)
