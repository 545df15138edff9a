"""Reading sound files as mono waveforms of one sample rate and length, for the data sets and `fed_a2v.load`."""

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

# Read this much beyond the end of the crop, because the resampler's filter needs the samples that follow.
MARGIN_SECONDS = 0.1
# Audio samples are between -1 and 1; a file with samples of a hundred times that is damaged.
LOUDEST = 100.0

# libsndfile's containers and their suffixes, without those whose suffixes other data have, such as Matlab's.
_CONTAINERS = {
    **{"WAV": (".wav", ".wave"), "RF64": (".rf64",), "W64": (".w64",), "FLAC": (".flac",), "CAF": (".caf",)},
    **{"OGG": (".ogg", ".oga", ".opus"), "MP3": (".mp3", ".mp2"), "AIFF": (".aif", ".aiff", ".aifc")},
    **{"AU": (".au", ".snd"), "VOC": (".voc",), "NIST": (".sph", ".nist"), "SVX": (".iff", ".8svx")},
}
# Suffixes of the files that this machine's libsndfile reads, in lower case.
SUFFIXES = tuple(suffix for name in soundfile.available_formats() for suffix in _CONTAINERS.get(name, ()))
# Suffixes of audio and video files that no libsndfile reads.
OTHER_SUFFIXES = (
    *(".mp4", ".m4a", ".m4v", ".aac", ".webm", ".weba", ".mkv", ".mka", ".mov", ".avi", ".mpg", ".mpeg", ".flv"),
    *(".3gp", ".wma", ".wmv", ".ogv", ".amr", ".ac3", ".ape", ".wv"),
)

# libsndfile's log line about a header whose number of bytes differs from that of the file. From _UNTIL_END on, the
# number stands for "until the end of the file".
_WRONG_SIZE = re.compile(r"^ *(?:data|SSND|BODY|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNTIL_END = 0x7FFF0000
# libsndfile's number of frames if the header has none.
UNKNOWN_FRAMES = 2**63 - 1


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read from its start without seeking, which a FLAC without a length in its header requires."""

    def seekable(self) -> bool:
        return False


def read_clip(path: Path, sample_rate: int, seconds: float) -> FloatArray:
    """Read a sound file as mono, resampled, and cropped or padded with zeros at its end.

    Args:
        path: the file, in any format that libsndfile reads (`SUFFIXES`).
        sample_rate: sample rate of the result, in Hz.
        seconds: length of the result.

    Returns:
        (round(seconds * sample_rate),) float32.

    Raises:
        BadClipError: the file is missing, unreadable, empty or truncated, or has NaN, infinite or too large samples.
    """
    if not path.is_file():
        raise BadClipError(f"{path}: no such file")
    try:
        with _Stream(path) as file:
            rate, needed = file.samplerate, round((seconds + MARGIN_SECONDS) * file.samplerate)
            samples = file.read(frames=min(needed, file.frames), dtype="float32", always_2d=True)
            declared = _declared_frames(file)
    except (soundfile.SoundFileError, RuntimeError, OSError, ValueError, MemoryError) as error:
        reason = str(error) or "it is damaged or truncated"
        raise BadClipError(f"{path} is not a readable sound file: {reason}") from error
    if len(samples) == 0:
        raise BadClipError(f"{path} has no samples")
    # The tolerance is for MP3 files, whose last frames may be missing.
    if len(samples) < min(declared, needed) - MARGIN_SECONDS * rate:
        raise BadClipError(
            f"{path} is truncated: its header declares {declared / rate:.2f} s, it has {len(samples) / rate:.2f} s"
        )
    check_samples(samples, str(path))
    return fit_clip(samples.mean(axis=1), rate, sample_rate, seconds)


def check_waveform(waveform: object, samples: int, what: str) -> FloatArray:
    """Return a waveform as float32.

    Raises:
        BadClipError: `waveform`, called `what` in the message, is not an array of floating-point numbers of shape
            (samples,), or has NaN, infinite or too large samples.
    """
    try:
        array = np.asarray(waveform)
    except (ValueError, TypeError) as error:  # a ragged list, a tensor on a GPU
        raise BadClipError(f"{what} is not an array: {error}") from error
    if array.shape != (samples,) or array.dtype.kind != "f":
        raise BadClipError(
            f"{what} is {array.dtype} of shape {array.shape}; expected float32 of shape ({samples},), which is the "
            "seconds times the sample rate"
        )
    check_samples(array, what)
    return array.astype(np.float32, copy=False)


def _declared_frames(file: soundfile.SoundFile) -> int:
    """The number of frames by the file's header; 0 if the header has none."""
    wrong_size = _WRONG_SIZE.search(file.extra_info)
    if wrong_size is None:
        return 0 if file.frames == UNKNOWN_FRAMES else int(file.frames)
    # libsndfile reports the frames that exist; the header's bytes over the file's scale them to the declared frames.
    declared, present = map(int, wrong_size.groups())
    return int(file.frames) * declared // present if present < declared < _UNTIL_END else int(file.frames)


def check_samples(samples: NDArray[Any], what: str) -> None:
    """Check that samples, called `what` in the message, are plausible audio.

    Raises:
        BadClipError: a sample is NaN, infinite, or above `LOUDEST`.
    """
    if not np.isfinite(samples).all():
        raise BadClipError(f"{what} has NaN or infinite samples")
    if (peak := np.abs(samples).max(initial=0)) > LOUDEST:
        raise BadClipError(f"{what} has samples of up to {peak:.3g}, but audio is between -1 and 1; rescale it")


def fit_clip(waveform: FloatArray, rate: int, sample_rate: int, seconds: float) -> FloatArray:
    """Resample a mono waveform (samples,) from `rate` to `sample_rate`; crop or pad it with zeros to `seconds`."""
    if rate != sample_rate:
        waveform = soxr.resample(waveform, rate, sample_rate)
    length = round(seconds * sample_rate)
    return np.pad(waveform[:length], (0, max(0, length - len(waveform)))).astype(np.float32, copy=False)
