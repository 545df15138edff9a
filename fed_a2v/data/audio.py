"""Sound files as waveforms of one rate and length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from fed_a2v.data.errors import BadClipError

FloatArray = NDArray[np.float32]

# Read beyond the end of the crop, so that the resampler's filter sees what follows.
MARGIN_SECONDS = 0.1


def read_clip(path: Path, sample_rate: int, seconds: float) -> FloatArray:
    """Read a WAV, FLAC or OGG file as mono, resampled, cropped or padded with zeros at its end.

    Args:
        path: the file.
        sample_rate: wanted, in Hz.
        seconds: wanted length.

    Returns:
        (round(seconds * sample_rate),) float32.

    Raises:
        BadClipError: the file is missing, unreadable or empty, or holds NaN or infinite samples.
    """
    if not path.is_file():
        raise BadClipError(f"{path}: no such file")
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            samples = file.read(frames=round((seconds + MARGIN_SECONDS) * rate), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, OSError, ValueError, MemoryError) as error:
        raise BadClipError(f"{path} is not a readable sound file: {error}") from error
    if len(samples) == 0:
        raise BadClipError(f"{path} holds no samples")
    if not np.isfinite(samples).all():
        raise BadClipError(f"{path} holds NaN or infinite samples")
    return fit_clip(samples.mean(axis=1), rate, sample_rate, seconds)


def fit_clip(waveform: FloatArray, rate: int, sample_rate: int, seconds: float) -> FloatArray:
    """Resample a mono waveform (samples,) from `rate` to `sample_rate`; crop or pad it with zeros to `seconds`."""
    if rate != sample_rate:
        waveform = soxr.resample(waveform, rate, sample_rate)
    length = round(seconds * sample_rate)
    return np.pad(waveform[:length], (0, max(0, length - len(waveform)))).astype(np.float32, copy=False)
