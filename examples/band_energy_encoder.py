"""A custom audio encoder: mean and standard deviation of the energy in frequency bands.

PYTHONPATH=examples fed-a2v train encoder=custom encoder._target_=band_energy_encoder.BandEnergyEncoder
"""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


class BandEnergyEncoder:
    """Log energy in frequency bands: mean and standard deviation over the frames of a stretch.

    Args:
        stretches: S, number of tokens of a clip: consecutive parts of equal length.
        bands: number of bands, evenly spaced on a logarithmic scale; Da, the width of a token, is twice this number.
    """

    name = "band_energy"
    sample_rate = 16_000  # in Hz; clips are resampled to it
    frame = 1024  # samples, 64 ms
    floor = 0.1  # energy below which a band counts as silent

    def __init__(self, stretches: int = 1, bands: int = 48) -> None:
        self.tokens = stretches
        self.bands = bands
        self.width = 2 * bands
        # A part of the cache's key: it must change whenever the embeddings would.
        self.fingerprint = f"band-energy-1-{stretches}-{bands}"

    def encode(self, waveforms: FloatArray) -> FloatArray:
        """Embed waveforms of shape (B, samples) as (B, S, Da); a clip's embedding must not depend on other clips."""
        rows = [[self._energies(part) for part in np.array_split(clip, self.tokens)] for clip in waveforms]
        return np.array(rows, dtype=np.float32).reshape(len(waveforms), self.tokens, self.width)

    def _energies(self, waveform: FloatArray) -> FloatArray:
        padded = np.pad(waveform, (0, -len(waveform) % self.frame))
        power = np.abs(np.fft.rfft(padded.reshape(-1, self.frame) * np.hanning(self.frame))) ** 2
        starts = np.geomspace(1, power.shape[1] - self.bands, self.bands).astype(int) + np.arange(self.bands) - 1
        energies = np.log(np.add.reduceat(power, starts, axis=1) + self.floor)
        both: FloatArray = np.concatenate([energies.mean(axis=0), energies.std(axis=0)])
        return both
