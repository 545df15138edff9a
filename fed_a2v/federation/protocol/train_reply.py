"""A site's reply to registration or training: arrays, and a manifest that gives the meaning of each array.

The client encodes it with `pack_reply`, the server checks it against a `ReplySpec` with `decode_reply`. Both are in
this file, although it is long, because a change of the format is a change of the writer and of the checks.
"""

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

from fed_a2v.core.class_sums import ClassSums, symmetric, triangle_size
from fed_a2v.core.prototypes import Variance
from fed_a2v.core.statistics import AudioPrototypes, ClassStatistics, PooledMoments
from fed_a2v.federation.protocol import int8
from fed_a2v.federation.protocol.arrays import COUNTS, Array, FloatType, check_arrays, encode_weights, pack, read_floats
from fed_a2v.federation.protocol.errors import InvalidReplyError, as_invalid_reply, show
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

Task = Literal["register", "centre", "sums", "counts", "masked_centre", "masked_sums", "train"]
# Tasks of the registration, before the first round. `register`: prototypes. With share=statistics in two exchanges:
# `centre`, the mean of the clips in the public space, and `sums`, the class sums around the centre of all sites.
# With secure_sums=secagg in three: `counts`, the numbers of clips, and the same sums as vectors that are masked
# (`masked.py`). A reply to `masked_*` has the numbers of clips again, and no array.
SUMS_TASKS = ("centre", "sums", "counts", "masked_centre", "masked_sums")
REGISTRATION = ("register", *SUMS_TASKS)

# Limit on the magnitude of every weight, embedding and output; its square is the limit for variances. Frozen encoders
# give 1e-3 to 1e2; the limit prevents later overflow.
MAX_MAGNITUDE = 1e6
# Limits on class sums: relative error of float16, and deviations of the privacy noise that are not exceeded by chance.
ROUNDING, NOISE_LIMIT = 0.01, 8.0
_CHUNK = 1 << 16  # weights converted to float32 at a time


@dataclass(frozen=True)
class TrainReply:
    """The reply of one site in one round.

    Attributes:
        site: the site's name.
        round_number: the round of the request.
        task: one of `REGISTRATION`, before any training, or "train".
        num_examples: number of the site's training clips.
        weights: the adapters' weights; empty for a registration. In a decoded reply they are views of the received
            bytes, float16 or float32, because copies of all sites' weights would be most of the server's memory; but
            those sent as int8 are float32 copies.
        statistics: statistics of each class that the site shares.
        fingerprint: identifies the site's prototypes; while it is unchanged, they are not sent again.
        square_root: whether the embeddings are square roots of the encoder's output.
        losses: parts of the training loss by name, finite.
        seconds: time that the site took, in s.
        test_clips: number of the site's test clips of each class. It lets the server notice when a later evaluation
            lacks some of them.
        moments: mean and variance of all clips together; only in a registration that shares no class, and in the
            task "centre", as the (1, R) mean of rows in the public space.
        sums: class sums in the public space; in the task "sums", and in "train" unless the server has them.
        space: digest of the public space that the site used; None without sums.
    """

    site: str
    round_number: int
    task: Task
    num_examples: int
    weights: list[Tensor]
    statistics: list[ClassStatistics]
    fingerprint: str
    square_root: bool
    losses: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    test_clips: dict[str, int] = field(default_factory=dict)
    moments: PooledMoments | None = None
    sums: ClassSums | None = None
    space: str | None = None


@dataclass(frozen=True)
class ReplySpec:
    """The reply that the server expects from a site, and its limits.

    Attributes:
        site: name of the site.
        round_number: the round of the request.
        task: the requested task.
        weight_shapes: shapes of the adapters' weights, in order; not used for a registration.
        classes: names of all classes.
        audio_shape: (S, Da) of the audio embeddings; None: any shape, if all prototypes of the reply have the same.
        clip_shape: (Tc, Dc) of the CLIP adapter's output.
        t5_shape: (T, Dt) of the T5 adapter's output; None: there is no T5 adapter.
        square_root: whether the embeddings must be square roots; None: not known yet.
        prototypes: whether classes have prototypes; False allows none.
        sums: columns of the public space if classes have sums instead of prototypes; 0: they have none.
        space: digest of the public space that the site must have used; None without sums.
        sums_noise: deviations of the privacy noise on the class sums and on the scatter, for the limits on both; an
            infinite one of the scatter allows no scatter.
        centre_noise: deviation of the privacy noise on the sum of rows whose mean is the centre.
        groups: largest number of prototypes of a class; 0: each prototype is a single clip.
        min_clips: smallest number of clips of each prototype, of each class and of the moments of all clips.
        variances: the variances that prototypes may have: for each group, one for all groups of a class, or none.
        losses: names of the parts of the training loss; a reply to training has all of them, any other none.
        outputs: whether the classes of a reply to training have mean outputs of the adapters; False allows none.
        held_fingerprint: fingerprint of the site's prototypes in the bank; "" if the bank has none.
        held_classes: classes of the site with prototypes in the bank; only these may be sent without prototypes, and
            only under the same fingerprint.
        max_weight_rms: limit on the root mean square of all weights together.
        sent_weights: the weights as the site received them, if it sends int8 differences from them; empty: it sends
            the weights themselves.
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
    sums: int = 0
    space: str | None = None
    sums_noise: tuple[float, float] = (0.0, 0.0)
    centre_noise: float = 0.0
    groups: int = 8
    min_clips: int = 1
    variances: Variance = "groups"
    losses: Collection[str] = ()
    outputs: bool = True
    held_fingerprint: str = ""
    held_classes: Collection[str] = ()
    max_weight_rms: float = math.inf
    sent_weights: Sequence[Array] = ()

    @property
    def max_arrays(self) -> int:
        """Largest number of arrays in a reply: the weights, and five for each class."""
        return self.weight_arrays + 5 * len(self.classes)

    @property
    def weight_arrays(self) -> int:
        """Number of arrays of the weights in a reply to training."""
        return int8.ARRAYS if self.sent_weights else len(self.weight_shapes)

    def prototypes_of(self, clips: int) -> int:
        """Largest number of prototypes of a class with this many clips."""
        return max(1, min(self.groups, clips // self.min_clips)) if self.groups else clips


_Index = Annotated[int, Field(ge=0)]
# Because of rounding a loss may be just below zero.
_Loss = Annotated[float, Field(ge=-1e-3, le=MAX_LOSS)]
_LossName = Annotated[str, Field(pattern=r"^[\w ./-]{1,64}$")]
_Fingerprint = Annotated[str, Field(pattern=r"^[!-~]{1,128}$")]


class _PrototypeEntry(Strict):
    """Indices of the arrays of a class's prototypes; variances None: all zero, (1, S, Da): equal for all prototypes."""

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
    """Index of the array with the mean of all clips; their variance and number."""

    mean: _Index
    variance: Annotated[float, Field(ge=0)]
    count: Annotated[int, Field(ge=1)]


class _SumsEntry(Strict):
    """Indices of the array with a row for each class of the reply, in its order, and of the scatter, if it is sent."""

    classes: _Index
    scatter: _Index | None


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
    sums: _SumsEntry | None
    space: _Fingerprint | None


def encode_reply(
    reply: TrainReply, dtype: FloatType, received: Sequence[Array] = ()
) -> tuple[list[Array], dict[str, Scalar]]:
    """Arrays and metrics of a reply.

    Arrays are copies in native byte order. An array stays float32 if a finite value would overflow in `dtype`, or if a
    positive variance would become zero.

    Args:
        reply: the reply to encode.
        dtype: type of weights, prototypes and outputs in the message; counts are int64.
        received: the weights as the site received them, to send int8 differences from them; empty: send the weights
            themselves.

    Raises:
        ValueError: a loss, the time or the fingerprint is outside the limits of the manifest; the message names it. Or
            the classes are not those of the sums, in the order of the labels.
    """
    arrays = _pack_weights(reply, dtype, received)
    weights = len(arrays)

    def add(array: Array) -> int:
        arrays.append(array)
        return len(arrays) - 1

    def output(tensor: Tensor | None) -> int | None:
        return None if tensor is None else add(pack(tensor, dtype))

    def prototypes(audio: AudioPrototypes | None) -> _PrototypeEntry | None:
        if audio is None:
            return None
        variances = audio.variances
        if (variances == variances[:1]).all():  # the same for all prototypes: sent once
            variances = variances[:1]
        return _PrototypeEntry(
            means=add(pack(audio.means, dtype)),
            counts=add(audio.counts.detach().to("cpu", torch.int64, copy=True).contiguous().numpy()),
            variances=add(pack(variances, dtype, keep_positive=True)) if variances.any() else None,
        )

    def moments(pooled: PooledMoments | None) -> _MomentsEntry | None:
        if pooled is None:
            return None
        return _MomentsEntry(mean=add(pack(pooled.mean, dtype)), variance=pooled.variance, count=pooled.count)

    def sums(of_site: ClassSums | None) -> _SumsEntry | None:
        if of_site is None:
            return None
        present = of_site.counts > 0
        # The rows have no names: the order of the classes gives them theirs.
        if [each.count for each in reply.statistics] != of_site.counts[present].tolist():
            raise ValueError("the classes of the reply are not those of the sums, in the order of the labels")
        classes = add(pack(of_site.sums[present].float(), dtype))
        scatter = add(pack(of_site.scatter.float(), dtype)) if len(of_site.scatter) else None
        return _SumsEntry(classes=classes, scatter=scatter)

    manifest = _ReplyManifest(
        site=reply.site,
        round_number=reply.round_number,
        task=reply.task,
        weights=weights,
        fingerprint=reply.fingerprint,
        square_root=reply.square_root,
        losses=reply.losses,
        seconds=reply.seconds,
        test_clips=reply.test_clips,
        classes=[
            _ClassEntry(
                name=statistics.name,
                count=statistics.count,
                prototypes=prototypes(statistics.audio),
                clip=output(statistics.clip),
                t5=output(statistics.t5),
            )
            for statistics in reply.statistics
        ],
        moments=moments(reply.moments),
        sums=sums(reply.sums),
        space=reply.space,
    )
    return arrays, write_manifest(manifest)


def _pack_weights(reply: TrainReply, dtype: FloatType, received: Sequence[Array]) -> list[Array]:
    return int8.encode_differences(reply.weights, received) if received else encode_weights(reply.weights, dtype)


def pack_reply(
    reply: TrainReply, dtype: FloatType, received: Sequence[Array] = ()
) -> tuple[list[Array], dict[str, Scalar]]:
    """Arrays and metrics of a reply for Flower; see `encode_reply`.

    The weights are joined into one array and all other arrays into a second, because the server keeps the received
    bytes of the weights and frees the rest.
    """
    arrays, metrics = encode_reply(reply, dtype, received)
    count = int8.ARRAYS if received else len(reply.weights)
    return [join_arrays(part) for part in (arrays[:count], arrays[count:]) if part], metrics


@as_invalid_reply()
def decode_reply(
    arrays: Sequence[Array], metrics: Mapping[str, Scalar], num_examples: int, expected: ReplySpec
) -> TrainReply:
    """Check a reply against its specification.

    The weights are views of `arrays` and must not be changed; all other arrays are copied. Tensors keep the precision
    of the message, except that float64 becomes float32.

    A site need not share classes with too few clips, so the clips of the shared classes may be fewer than
    `num_examples`, but not more. Metrics other than the manifest are not read.

    Args:
        arrays: arrays of Flower's fit result, from `read_arrays`.
        metrics: its metrics.
        num_examples: its number of examples.
        expected: the request and its limits.

    Raises:
        InvalidReplyError: a check fails. No other exception is raised, whatever the input.
    """
    manifest = read_manifest(metrics, _ReplyManifest, len(expected.classes))
    check_origin(manifest, expected.site, expected.round_number)
    if manifest.task != expected.task:
        raise InvalidReplyError(f"reply to task {manifest.task!r}, expected {expected.task!r}")
    if expected.square_root not in (None, manifest.square_root):
        raise InvalidReplyError(
            f"square_root is {manifest.square_root}, expected {expected.square_root} as at the other sites"
        )
    if manifest.space != expected.space:
        raise InvalidReplyError(f"public space {show(manifest.space)}, expected {show(expected.space)}")
    check_arrays(arrays)
    weight_shapes = list(expected.weight_shapes) if expected.task == "train" else []
    weight_arrays = expected.weight_arrays if weight_shapes else 0
    if manifest.weights != weight_arrays:
        raise InvalidReplyError(f"{show(manifest.weights)} weights, expected {weight_arrays}")
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
        statistics=_read_statistics(arrays, manifest, expected),
        fingerprint=manifest.fingerprint,
        square_root=manifest.square_root,
        losses=dict(manifest.losses),
        seconds=manifest.seconds,
        test_clips=dict(manifest.test_clips),
        moments=None if manifest.moments is None else _read_moments(arrays, manifest.moments, expected),
        sums=None if manifest.sums is None else _read_sums(arrays, manifest, manifest.sums, expected),
        space=manifest.space,
    )


def _check_indices(manifest: _ReplyManifest, available: int) -> None:
    """Check that every array of the reply is used exactly once."""
    used = list(range(manifest.weights))
    for entry in manifest.classes:
        audio = entry.prototypes
        indices = [entry.clip, entry.t5, *((audio.means, audio.counts, audio.variances) if audio else ())]
        used += [index for index in indices if index is not None]
    if manifest.moments is not None:
        used.append(manifest.moments.mean)
    if manifest.sums is not None:
        used += [index for index in (manifest.sums.classes, manifest.sums.scatter) if index is not None]
    uses = Counter(used)
    for index, times in uses.items():
        if index >= available:
            raise InvalidReplyError(f"manifest uses array {show(index)}, the reply has {available} arrays")
        if times > 1:
            raise InvalidReplyError(f"manifest uses array {index} {times} times")
    if len(uses) != available:
        raise InvalidReplyError(f"the reply has {available} arrays, the manifest uses {len(uses)}")


def _check_classes(manifest: _ReplyManifest, num_examples: Any, expected: ReplySpec) -> None:
    """Check names and counts of the classes, and which arrays each class has."""
    if type(num_examples) is not int or not 1 <= num_examples <= MAX_COUNT:
        raise InvalidReplyError(f"num_examples is {show(num_examples)}, expected 1 to {MAX_COUNT}")
    known, stored = frozenset(expected.classes), frozenset(expected.held_classes)
    is_stored = manifest.fingerprint == expected.held_fingerprint
    outputs = expected.outputs and expected.task == "train"
    seen: set[str] = set()
    for entry in manifest.classes:
        name = show(entry.name)
        if entry.name not in known:
            raise InvalidReplyError(f"unknown class {name}")
        if entry.name in seen:
            raise InvalidReplyError(f"class {name} occurs twice")
        seen.add(entry.name)
        if entry.count > MAX_COUNT:
            raise InvalidReplyError(f"class {name} has {show(entry.count)} clips, the limit is {MAX_COUNT}")
        if entry.count < expected.min_clips:
            raise InvalidReplyError(f"class {name} has {entry.count} clips, share.min_clips is {expected.min_clips}")
        if expected.prototypes and entry.prototypes is None and not (is_stored and entry.name in stored):
            raise InvalidReplyError(f"class {name} has no prototypes, and the bank has none under its fingerprint")
        if not expected.prototypes and entry.prototypes is not None:
            raise InvalidReplyError(f"class {name} has prototypes that were not requested")
        if entry.prototypes is not None and entry.prototypes.variances is not None and expected.variances == "none":
            raise InvalidReplyError(f"class {name} has variances that were not requested")
        for kind, index, is_expected in (
            ("clip", entry.clip, outputs),
            ("t5", entry.t5, outputs and expected.t5_shape is not None),
        ):
            if (index is not None) != is_expected:
                raise InvalidReplyError(f"class {name} has {'no' if is_expected else 'a'} {kind} output")
    clips = sum(entry.count for entry in manifest.classes)
    if clips > num_examples:
        raise InvalidReplyError(f"the classes have {clips} clips, num_examples is {num_examples}")
    if manifest.task == "centre" and manifest.classes:
        raise InvalidReplyError(f"{len(manifest.classes)} classes in a reply to the task 'centre', expected none")
    if expected.sums and is_stored and seen != stored:
        raise InvalidReplyError(f"{len(seen)} classes, and under their fingerprint {len(stored)} are stored")
    has_sums = expected.sums > 0 and manifest.task != "centre" and bool(manifest.classes) and not is_stored
    if (manifest.sums is not None) != has_sums:
        raise InvalidReplyError(f"the reply has {'no' if has_sums else ''} class sums, task {manifest.task!r}")
    if manifest.moments is not None:
        if expected.task not in ("register", "centre") or manifest.classes:
            raise InvalidReplyError(
                f"moments of all clips together with {len(manifest.classes)} classes, task {manifest.task!r}"
            )
        if manifest.moments.count > num_examples:
            raise InvalidReplyError(f"moments of {show(manifest.moments.count)} clips, num_examples is {num_examples}")
        if manifest.moments.count < expected.min_clips:
            raise InvalidReplyError(
                f"moments of {manifest.moments.count} clips, share.min_clips is {expected.min_clips}"
            )


def _check_losses(manifest: _ReplyManifest, expected: ReplySpec) -> None:
    """Check the names of the losses, because each name becomes a column of the metrics."""
    names = set(expected.losses) if manifest.task == "train" else set()
    if manifest.losses.keys() != names:
        raise InvalidReplyError(f"losses are {show(sorted(manifest.losses))}, expected {show(sorted(names))}")


def _check_test_clips(clips: Mapping[str, int], expected: ReplySpec) -> None:
    if unknown := clips.keys() - frozenset(expected.classes):
        raise InvalidReplyError(f"test clips of unknown class {show(min(unknown))}")
    if (total := sum(clips.values())) > MAX_COUNT:
        raise InvalidReplyError(f"{show(total)} test clips, the limit is {MAX_COUNT}")


def _read_weights(arrays: Sequence[Array], shapes: Sequence[tuple[int, ...]], expected: ReplySpec) -> list[Tensor]:
    if shapes and expected.sent_weights:
        weights = int8.decode_differences(arrays, expected.sent_weights, MAX_MAGNITUDE)
    else:
        weights = [
            read_floats(array, tuple(shape), f"weight {position}", MAX_MAGNITUDE, copy=False)
            for position, (array, shape) in enumerate(zip(arrays, shapes, strict=True))
        ]
    size = sum(weight.numel() for weight in weights)
    # In chunks, because a whole float32 copy for each site would fragment the server's memory.
    chunks = (chunk for weight in weights for chunk in weight.reshape(-1).split(_CHUNK))
    norm = math.hypot(*(float(torch.linalg.vector_norm(chunk.float())) for chunk in chunks))
    if norm > expected.max_weight_rms * math.sqrt(size):
        rms = norm / math.sqrt(size)
        raise InvalidReplyError(
            f"weights have root mean square {rms:.3g}, aggregation.max_scale allows {expected.max_weight_rms:.3g}"
        )
    return weights


def _read_statistics(arrays: Sequence[Array], manifest: _ReplyManifest, expected: ReplySpec) -> list[ClassStatistics]:
    prompts = []
    audio_shape = expected.audio_shape
    for entry in manifest.classes:
        audio = None
        if entry.prototypes is not None:
            audio = _read_prototypes(arrays, entry, audio_shape, expected)
            audio_shape = (audio.means.shape[1], audio.means.shape[2])
        outputs = {
            kind: read_floats(arrays[index], shape, f"{kind} output of {show(entry.name)}", MAX_MAGNITUDE)
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
    indices, name = entry.prototypes, show(entry.name)
    assert indices is not None
    counts, max_groups = arrays[indices.counts], expected.prototypes_of(entry.count)
    if counts.dtype != COUNTS or counts.ndim != 1 or not 1 <= len(counts) <= max_groups:
        raise InvalidReplyError(
            f"prototype counts of {name} are {show(str(counts.dtype))} {show(counts.shape)}, "
            f"expected int64 (K,) with K up to {max_groups} for {entry.count} clips"
        )
    min_count, max_count = (expected.min_clips, MAX_COUNT) if expected.groups else (1, 1)
    if counts.min() < min_count or counts.max() > max_count:
        raise InvalidReplyError(
            f"prototypes of {name} have {counts.min()} to {counts.max()} clips, expected {min_count} to {max_count}"
        )
    if counts.sum() > entry.count:
        raise InvalidReplyError(f"prototypes of {name} cover {counts.sum()} clips of {entry.count}")
    means = arrays[indices.means]
    if means.ndim != 3 or means.size == 0:
        raise InvalidReplyError(f"prototypes of {name} have shape {show(means.shape)}, expected (K, S, Da)")
    shape = (len(counts), *(audio_shape or means.shape[1:]))
    if indices.variances is None:
        variances = torch.zeros(shape)
    else:
        sent = arrays[indices.variances]
        # A variance that is the same for all prototypes is sent once.
        rows = 1 if expected.variances == "class" or sent.shape[:1] == (1,) else len(counts)
        variances = read_floats(sent, (rows, *shape[1:]), f"variances of {name}", MAX_MAGNITUDE**2, min_value=0.0)
    return AudioPrototypes(
        means=read_floats(means, shape, f"prototypes of {name}", MAX_MAGNITUDE),
        counts=torch.from_numpy(counts.astype(np.int64)),
        variances=variances.expand(shape).contiguous(),
    )


def _read_sums(arrays: Sequence[Array], manifest: _ReplyManifest, entry: _SumsEntry, expected: ReplySpec) -> ClassSums:
    """The class sums of a site, which must be sums over as many rows of length 1 at most.

    A class sum is no longer than its number of clips, the trace of the scatter no larger than the number of all clips,
    and the scatter around the class means, `G - sum S_c S_c' / n_c`, has no negative eigenvalue. Noise and rounding
    add to each. With noise on the class sums the last one holds for `G` alone.
    """
    label_of = {name: label for label, name in enumerate(expected.classes)}
    labels = torch.tensor([label_of[of_class.name] for of_class in manifest.classes])
    counts = torch.tensor([of_class.count for of_class in manifest.classes])
    columns = expected.sums
    rows = read_floats(arrays[entry.classes], (len(labels), columns), "class sums", MAX_COUNT)
    class_noise, scatter_noise = expected.sums_noise
    if (entry.scatter is not None) != math.isfinite(scatter_noise):
        raise InvalidReplyError(f"the sums have {'a' if entry.scatter is not None else 'no'} scatter")
    scatter = torch.zeros(0, dtype=rows.dtype)
    if entry.scatter is not None:
        scatter = read_floats(arrays[entry.scatter], (triangle_size(columns),), "scatter", MAX_COUNT)
    longest = counts * (1 + ROUNDING) + NOISE_LIMIT * class_noise * math.sqrt(columns)
    if (too_long := rows.double().norm(dim=1) > longest).any():
        name = manifest.classes[int(too_long.nonzero()[0])].name
        raise InvalidReplyError(f"the sum of {show(name)} is longer than its number of clips")
    if len(scatter):
        clips, within = int(counts.sum()), symmetric(scatter.double(), columns)
        trace, tolerance = float(within.trace()), ROUNDING * clips + NOISE_LIMIT * scatter_noise * math.sqrt(columns)
        if trace > clips + tolerance:
            raise InvalidReplyError(f"the scatter of {clips} clips has the trace {trace:.4g}")
        if not class_noise:
            within = within - rows.double().T @ (rows.double() / counts[:, None])
        # A Cholesky factor exists just if all eigenvalues are positive, and takes a tenth of the time.
        if torch.linalg.cholesky_ex(within + 2 * tolerance * torch.eye(columns, dtype=within.dtype)).info:
            raise InvalidReplyError("the scatter is less than that of the class means: no clips have these sums")
    # In the type of the message, as those of all sites stay in memory; sums of them are computed in float64.
    whole = torch.zeros(len(label_of), columns, dtype=rows.dtype)
    whole[labels] = rows
    of_all = torch.zeros(len(label_of), dtype=torch.int64)
    of_all[labels] = counts
    return ClassSums(of_all, whole, scatter)


def _read_moments(arrays: Sequence[Array], entry: _MomentsEntry, expected: ReplySpec) -> PooledMoments:
    mean = arrays[entry.mean]
    if mean.ndim != 2 or mean.size == 0:
        raise InvalidReplyError(f"mean of all clips has shape {show(mean.shape)}, expected (S, Da)")
    if entry.variance > MAX_MAGNITUDE**2:
        raise InvalidReplyError(f"variance of all clips is {entry.variance:.3g}, the limit is {MAX_MAGNITUDE**2:g}")
    if expected.task == "centre":  # the mean of rows of length 1 in the public space
        read = read_floats(mean, (1, expected.sums), "mean of all clips", MAX_MAGNITUDE)
        noise = NOISE_LIMIT * expected.centre_noise * math.sqrt(expected.sums) / entry.count
        if (length := float(read.double().norm())) > 1 + ROUNDING + noise:
            raise InvalidReplyError(f"the mean of rows of length 1 has the length {length:.3g}")
        return PooledMoments(read, entry.variance, entry.count)
    shape = expected.audio_shape or mean.shape
    return PooledMoments(read_floats(mean, shape, "mean of all clips", MAX_MAGNITUDE), entry.variance, entry.count)
