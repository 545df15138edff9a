"""Sound files as waveforms of one rate and length."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from fed_a2v.data.errors import BadClipError

FloatArray = NDArray[np.float32]

# Read beyond the end of the crop, so that the resampler's filter sees what follows.
MARGIN_SECONDS = 0.1
# A sound lies between -1 and 1; of what is a hundred times as loud nothing is known but that it is none.
LOUDEST = 100.0

# The containers that libsndfile can tell, and how their files end; Matlab's and the like end as other data do.
_CONTAINERS = {
    **{"WAV": (".wav", ".wave"), "RF64": (".rf64",), "W64": (".w64",), "FLAC": (".flac",), "CAF": (".caf",)},
    **{"OGG": (".ogg", ".oga", ".opus"), "MP3": (".mp3", ".mp2"), "AIFF": (".aif", ".aiff", ".aifc")},
    **{"AU": (".au", ".snd"), "VOC": (".voc",), "NIST": (".sph", ".nist"), "SVX": (".iff", ".8svx")},
}
# How the files end that this machine's libsndfile reads, in lower case.
SUFFIXES = tuple(suffix for name in soundfile.available_formats() for suffix in _CONTAINERS.get(name, ()))
# And those of sounds and videos that no libsndfile reads.
OTHER_SUFFIXES = (
    *(".mp4", ".m4a", ".m4v", ".aac", ".webm", ".weba", ".mkv", ".mka", ".mov", ".avi", ".mpg", ".mpeg", ".flv"),
    *(".3gp", ".wma", ".wmv", ".ogv", ".amr", ".ac3", ".ape", ".wv"),
)

# What libsndfile says of a header that promises more bytes than the file has; so many stand for "until it ends".
_PROMISE = re.compile(r"^ *(?:data|SSND|BODY|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNTIL_IT_ENDS = 0x7FFF0000
# The number of frames of a file whose header does not say it.
UNKNOWN = 2**63 - 1


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read from its beginning and never sought in: so is a FLAC that was written without a length."""

    def seekable(self) -> bool:
        return False


def read_clip(path: Path, sample_rate: int, seconds: float) -> FloatArray:
    """Read a sound file as mono, resampled, cropped or padded with zeros at its end.

    Args:
        path: the file, of any kind that libsndfile reads (`SUFFIXES`).
        sample_rate: wanted, in Hz.
        seconds: wanted length.

    Returns:
        (round(seconds * sample_rate),) float32.

    Raises:
        BadClipError: the file is missing, unreadable, empty or cut short, or holds NaN, infinite or absurd samples.
    """
    if not path.is_file():
        raise BadClipError(f"{path}: no such file")
    try:
        with _Stream(path) as file:
            rate, wanted = file.samplerate, round((seconds + MARGIN_SECONDS) * file.samplerate)
            samples = file.read(frames=min(wanted, file.frames), dtype="float32", always_2d=True)
            promised = _promised(file)
    except (soundfile.SoundFileError, RuntimeError, OSError, ValueError, MemoryError) as error:
        reason = str(error) or "it is damaged or cut short"
        raise BadClipError(f"{path} is not a readable sound file: {reason}") from error
    if len(samples) == 0:
        raise BadClipError(f"{path} holds no samples")
    # The last frames of an MP3 may be missing without harm.
    if len(samples) < min(promised, wanted) - MARGIN_SECONDS * rate:
        raise BadClipError(
            f"{path} is cut short: its header promises {promised / rate:.2f} s, {len(samples) / rate:.2f} s are there"
        )
    check_samples(samples, str(path))
    return fit_clip(samples.mean(axis=1), rate, sample_rate, seconds)


def check_waveform(waveform: object, samples: int, what: str) -> FloatArray:
    """A waveform as float32.

    Raises:
        BadClipError: `waveform`, called `what` in the message, has another shape than (samples,), is no array of
            floating-point numbers, or holds NaN, infinite or absurd ones.
    """
    try:
        array = np.asarray(waveform)
    except (ValueError, TypeError) as error:  # a ragged list, a tensor on a GPU
        raise BadClipError(f"{what} is no array: {error}") from error
    if array.shape != (samples,) or array.dtype.kind != "f":
        raise BadClipError(
            f"{what} is {array.dtype} of shape {array.shape}; float32 of shape ({samples},), seconds times the sample "
            "rate, is needed"
        )
    check_samples(array, what)
    return array.astype(np.float32, copy=False)


def _promised(file: soundfile.SoundFile) -> int:
    """How many frames there are by the file's header; of a stream whose header does not say, those that are there."""
    said = _PROMISE.search(file.extra_info)
    if said is None:
        return 0 if file.frames == UNKNOWN else int(file.frames)
    promised, there = map(int, said.groups())
    return int(file.frames) * promised // there if there < promised < _UNTIL_IT_ENDS else int(file.frames)


def check_samples(samples: NDArray[Any], what: str) -> None:
    """Check that samples, called `what` in the message, can be those of a sound.

    Raises:
        BadClipError: some are NaN, infinite, or far beyond full scale.
    """
    if not np.isfinite(samples).all():
        raise BadClipError(f"{what} holds NaN or infinite samples")
    if (peak := np.abs(samples).max(initial=0)) > LOUDEST:
        raise BadClipError(f"{what} holds samples of up to {peak:.3g}, where a sound lies between -1 and 1; rescale it")


def fit_clip(waveform: FloatArray, rate: int, sample_rate: int, seconds: float) -> FloatArray:
    """Resample a mono waveform (samples,) from `rate` to `sample_rate`; crop or pad it with zeros to `seconds`."""
    if rate != sample_rate:
        waveform = soxr.resample(waveform, rate, sample_rate)
    length = round(seconds * sample_rate)
    return np.pad(waveform[:length], (0, max(0, length - len(waveform)))).astype(np.float32, copy=False)
