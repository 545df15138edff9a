"""encoder=logmel: statistics of the log-mel spectrogram, without weights."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np

from fed_a2v.config.sections.data import EncoderSettings
from fed_a2v.encoders.audio import FloatArray

if TYPE_CHECKING:
    from scipy import sparse


def mel_filters(sample_rate: int, frame: int, bands: int) -> FloatArray:
    """Triangular filters (bands, frame // 2 + 1) for the spectrum of a frame, from 0 Hz to half the sample rate.

    The filters have equal width on Slaney's mel scale (Auditory Toolbox, 1998), which is linear up to 1000 Hz and
    logarithmic above, and equal area: the peak of each is 2 over its width in Hz. The values are those of
    `librosa.filters.mel`; like there, the triangles are converted to float32 before they are scaled to equal area.
    """
    linear, corner = 200 / 3, 1000.0  # Hz per mel, below the corner in Hz
    corner_mel, step = corner / linear, np.log(6.4) / 27  # above the corner, 27 mels are a factor of 6.4 in Hz
    highest = sample_rate / 2
    highest_mel = highest / linear if highest < corner else corner_mel + np.log(highest / corner) / step
    mels = np.linspace(0, highest_mel, bands + 2)
    edges = np.where(mels < corner_mel, linear * mels, corner * np.exp(step * (mels - corner_mel)))
    bins = np.fft.rfftfreq(frame, 1 / sample_rate)
    widths = np.diff(edges)[:, None]
    rising = (bins - edges[:-2, None]) / widths[:-1]
    falling = (edges[2:, None] - bins) / widths[1:]
    filters: FloatArray = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    filters *= 2 / (edges[2:] - edges[:-2])[:, None]
    return filters


class LogMelEncoder:
    """Statistics of the log-mel spectrogram: 128 bands x (mean, standard deviation, mean absolute delta, maximum).

    The encoder has no weights and needs no download. Sample rate 16 kHz, frames of 64 ms every 20 ms, one token of
    width 512. Each of the four statistics is divided by a constant, about its standard deviation over environmental
    sounds, so that all four have a similar scale.
    """

    name = "logmel"
    sample_rate = 16_000
    tokens = 1
    width = 512
    frame = 1024
    hop = 320
    bands = 128
    floor = 1e-8
    scales = (4.5, 1.8, 0.29, 3.1)
    fingerprint = "logmel-2"

    @classmethod
    def load(cls, settings: EncoderSettings) -> Self:
        """See `BuiltInEncoder`."""
        del settings
        return cls()

    @classmethod
    def known_shape(cls, settings: EncoderSettings) -> tuple[int, int] | None:
        """See `BuiltInEncoder`."""
        del settings
        return cls.tokens, cls.width

    @cached_property
    def _mel(self) -> sparse.csr_matrix:
        # Every bin is in at most two bands: the sparse product is faster than the dense one and, unlike a threaded
        # matrix product, gives the same bits for every number of threads.
        from scipy import sparse

        return sparse.csr_matrix(mel_filters(self.sample_rate, self.frame, self.bands))

    @cached_property
    def _window(self) -> FloatArray:
        return np.hanning(self.frame + 1)[:-1].astype(np.float32)

    def encode(self, waveforms: FloatArray) -> FloatArray:
        """Embed waveforms of shape (B, samples) as (B, 1, 512); B = 0 is allowed.

        Raises:
            ValueError: `waveforms` is not two-dimensional, or has no samples.
        """
        if waveforms.ndim != 2 or waveforms.shape[1] == 0:
            raise ValueError(f"waveforms have shape {waveforms.shape}; expected (clips, samples)")
        # One clip at a time: the spectrogram of one clip fits into the processor's cache, that of a batch does not.
        rows = [self._statistics(self.spectrogram(waveform)) for waveform in waveforms]
        return np.array(rows, dtype=np.float32).reshape(len(rows), self.tokens, self.width)

    def spectrogram(self, waveform: FloatArray) -> FloatArray:
        """Log-mel spectrogram (natural logarithm of power) of one waveform (samples,), as (bands, frames)."""
        from scipy import fft  # imported here because a site with cached embeddings does not need scipy

        padded = np.pad(waveform.astype(np.float32, copy=False), self.frame // 2)
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.frame)[:: self.hop]
        spectrum = fft.rfft(frames * self._window, axis=1)
        power = spectrum.real**2 + spectrum.imag**2
        log_mel: FloatArray = np.log(self._mel @ power.T + np.float32(self.floor))
        return log_mel

    def _statistics(self, log_mel: FloatArray) -> FloatArray:
        # A single frame has no delta: the mean of an empty array would be NaN.
        delta = np.abs(np.diff(log_mel, axis=1)) if log_mel.shape[1] > 1 else np.zeros_like(log_mel)
        statistics = (log_mel.mean(1), log_mel.std(1), delta.mean(1), log_mel.max(1))
        return np.concatenate([row / scale for row, scale in zip(statistics, self.scales, strict=True)])


Encoder = LogMelEncoder
