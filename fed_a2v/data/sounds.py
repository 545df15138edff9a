"""Sounds as users give them, files or waveforms, as input of an encoder; and classes by name, and numbers.

`fed_a2v.load` and `fed_a2v.adapter` use it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fed_a2v.core.names import clean_name, nearest
from fed_a2v.data.audio import FloatArray, check_samples, fit_clip, read_clip
from fed_a2v.data.errors import BadClipError
from fed_a2v.encoders.audio import AudioEncoder
from fed_a2v.errors import UserError

# Sounds per batch of the encoder.
BATCH = 16
# Maximum number of channels of a waveform; a longer axis is that of the samples.
MOST_CHANNELS = 64

Sound = str | Path | np.ndarray | Tensor
SOUNDS = "expected a file, a waveform (samples,) of numpy or torch with its rate, or a list of either"


class RunError(UserError, ValueError):
    """The run lacks the requested item, or cannot use the given one; the message says what it has or expects."""


def are_embeddings(given: object) -> TypeGuard[Tensor | NDArray[Any]]:
    """Whether an argument is embeddings (B, S, Da) and no sound: a waveform has at most two dimensions."""
    return isinstance(given, np.ndarray | Tensor) and given.ndim == 3


def as_list(sounds: Sound | Iterable[Sound]) -> list[Sound]:
    """One sound, or several, as a list.

    Raises:
        RunError: neither.
    """
    if isinstance(sounds, Sound):
        return [sounds]
    try:
        each = list(sounds)
    except TypeError as error:
        raise RunError(f"{type(sounds).__name__} is no sound: {SOUNDS}") from error
    for sound in each:
        if not isinstance(sound, Sound):
            raise RunError(f"a list with {type(sound).__name__} is no list of sounds: {SOUNDS}")
    return each


def as_waveform(sound: Sound, rate: float | None, sample_rate: int, seconds: float) -> FloatArray:
    """A sound as input of an encoder: mono, at its rate, cropped or padded to a length.

    Args:
        sound: a file, or a waveform, see `mono`.
        rate: sample rate of a waveform in Hz; a file has its own.
        sample_rate: that of the encoder.
        seconds: length of the result.

    Returns:
        (round(seconds * sample_rate),).

    Raises:
        BadClipError: a sound cannot be read, is empty, has NaN or infinite samples, or is not a waveform.
        RunError: a waveform without `rate`.
    """
    if isinstance(sound, str | Path):
        return read_clip(Path(sound).expanduser(), sample_rate, seconds)
    if not isinstance(rate, int | float | np.number) or isinstance(rate, bool) or not rate > 0:
        raise RunError(f"a waveform needs its rate in Hz, not {rate!r}: (waveform, rate=44_100)")
    return fit_clip(mono(np.asarray(sound)), rate, sample_rate, seconds)  # type: ignore[arg-type]


def embed_sounds(
    encoder: AudioEncoder, seconds: float, sounds: Sound | Iterable[Sound], rate: float | None = None
) -> Tensor:
    """(B, S, Da) embeddings of a sound or several, as the encoder gives them.

    Args:
        encoder: the frozen audio encoder.
        seconds: length that sounds are cropped or padded to.
        sounds: see `as_waveform`.
        rate: see `as_waveform`.

    Raises:
        BadClipError, RunError: see `as_waveform` and `as_list`.
    """
    each, embedded = as_list(sounds), [torch.empty(0, encoder.tokens, encoder.width)]
    for start in range(0, len(each), BATCH):
        waveforms = [as_waveform(sound, rate, encoder.sample_rate, seconds) for sound in each[start : start + BATCH]]
        embedded.append(torch.from_numpy(encoder.encode(np.stack(waveforms))))
    return torch.cat(embedded)


def mono(waveform: NDArray[Any]) -> FloatArray:
    """A waveform as (samples,) float32 between -1 and 1: the mean of its channels, the shorter axis.

    Args:
        waveform: (samples,), (samples, channels) as from soundfile, or (channels, samples) as from librosa and
            torchaudio. Integers are relative to the full scale of their type, as in a WAV file.

    Raises:
        BadClipError: another shape, no samples, as many channels as samples, another type, or NaN or infinite samples.
    """
    shape, kind = waveform.shape, waveform.dtype
    if waveform.ndim not in (1, 2) or not waveform.size or (waveform.ndim == 2 and not _is_sound(shape)):
        raise BadClipError(
            f"a waveform has shape {shape}; expected (samples,), (samples, channels) or (channels, samples) with 1 to "
            f"{MOST_CHANNELS} channels, fewer than samples"
        )
    if kind.kind in "iu" and kind.itemsize <= 4:
        scale = 2.0 ** (8 * kind.itemsize - 1)
        waveform = (waveform.astype(np.float64) - (scale if kind.kind == "u" else 0.0)) / scale
    elif kind.kind != "f":
        raise BadClipError(f"a waveform has type {kind}; expected floats, or integers of 8 to 32 bits")
    with np.errstate(over="ignore"):
        waveform = waveform.astype(np.float32)
    if not np.isfinite(waveform).all():
        raise BadClipError(f"a waveform of shape {shape} has NaN or infinite samples")
    check_samples(waveform, f"a waveform of shape {shape}")
    return waveform if waveform.ndim == 1 else waveform.mean(axis=int(np.argmin(shape)))


def _is_sound(shape: tuple[int, ...]) -> bool:
    """Whether the shorter of two axes can be that of the channels."""
    return min(shape) <= MOST_CHANNELS and shape[0] != shape[1]


def find_class(name: str, classes: Sequence[str]) -> str:
    """The class in `classes` with this name; case, spaces, hyphens and underscores do not matter.

    Raises:
        RunError: there is none; names the nearest one.
    """
    if not isinstance(name, str):
        raise RunError(f"a class is named by text, not by {type(name).__name__}; the classes are {', '.join(classes)}")
    by_clean_name = {clean_name(known): known for known in classes}
    if clean_name(name) in by_clean_name:
        return by_clean_name[clean_name(name)]
    near = nearest(clean_name(name), by_clean_name, cutoff=0.6)
    hint = f"did you mean {by_clean_name[near]!r}?" if near else f"the classes are {', '.join(classes)}"
    raise RunError(f"no class {name!r} in this run; {hint}")


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """A whole number, at least `least`.

    Raises:
        RunError: it is not; names it.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or (least is not None and value < least):
        raise RunError(f"{name}={value!r}: expected a whole number" + ("" if least is None else f", {least} or more"))
    return int(value)
