"""An audio encoder of your own: the energy in a few bands of frequency, in each of a few stretches of the clip.

PYTHONPATH=examples fed-a2v train encoder=custom encoder._target_=band_energy_encoder.BandEnergyEncoder
"""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


class BandEnergyEncoder:
    """Logarithms of the energy in bands that are evenly spaced on a logarithmic scale.

    Args:
        stretches: S, tokens of a clip: parts of equal length, one after the other.
        bands: Da, width of a token.
    """

    name = "band_energy"
    sample_rate = 16_000  # the program resamples to it

    def __init__(self, stretches: int = 4, bands: int = 32) -> None:
        self.tokens = stretches
        self.width = bands
        # A part of the cache's key: it must change whenever the embeddings would.
        self.fingerprint = f"band-energy-1-{stretches}-{bands}"

    def encode(self, waveforms: FloatArray) -> FloatArray:
        """Embed waveforms of shape (B, samples) as (B, S, Da); a clip's embedding depends on no other clip."""
        rows = [[self._energies(part) for part in np.array_split(clip, self.tokens)] for clip in waveforms]
        return np.array(rows, dtype=np.float32).reshape(len(waveforms), self.tokens, self.width)

    def _energies(self, waveform: FloatArray) -> FloatArray:
        power = np.abs(np.fft.rfft(waveform)) ** 2
        edges = np.geomspace(50, self.sample_rate / 2, self.width + 1) / self.sample_rate * len(waveform)
        starts = np.minimum(edges[:-1].astype(int), len(power) - 1)
        energies: FloatArray = np.log(np.add.reduceat(power, starts) + 1e-8)
        return energies
