"""A custom audio encoder with pretrained weights: the LSTM of Resemblyzer, which was trained to tell speakers apart.

    pip install --no-deps Resemblyzer==0.1.4      # 16 MB; its code is not imported, so it needs nothing else
    PYTHONPATH=examples fed-a2v train encoder=custom encoder._target_=speaker_encoder.SpeakerEncoder

The weights are Resemble AI's, Apache-2.0: "Generalized End-To-End Loss for Speaker Verification" (Wan et al., 2018).
"""

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fed_a2v.encoders.logmel import mel_filters

FloatArray = NDArray[np.float32]
DIGEST = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"


def weights() -> dict[str, torch.Tensor]:
    """The LSTM's weights in the installed package; nothing is unpickled."""
    try:
        path = Path(str(distribution("Resemblyzer").locate_file("resemblyzer/pretrained.pt")))
    except PackageNotFoundError as error:
        raise ModuleNotFoundError("the weights are missing: pip install --no-deps Resemblyzer==0.1.4") from error
    if hashlib.sha256(path.read_bytes()).hexdigest() != DIGEST:
        raise ValueError(f"{path} is not the file of Resemblyzer 0.1.4")
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    return {name.removeprefix("lstm."): value for name, value in state.items() if name.startswith("lstm.")}


class SpeakerEncoder:
    """Mean and deviation of the LSTM's output over windows of 1.6 s of a mel spectrogram, which overlap by half."""

    name = "speaker"
    sample_rate = 16_000  # in Hz; clips are resampled to it
    tokens, width = 1, 2 * 256
    fingerprint = f"speaker-1 {DIGEST}"  # a part of the cache's key
    frame, hop, window = 400, 160, 160  # samples, samples, frames

    def __init__(self) -> None:
        self.lstm = torch.nn.LSTM(40, 256, num_layers=3, batch_first=True).requires_grad_(False)
        self.lstm.load_state_dict(weights())
        self.filters = mel_filters(self.sample_rate, self.frame, 40).T

    def encode(self, waveforms: FloatArray) -> FloatArray:
        """Embed waveforms of shape (B, samples) as (B, 1, 512), one by one: no clip depends on another."""
        rows = [self._statistics(self._mel(waveform)) for waveform in waveforms]
        return np.array(rows, np.float32).reshape(-1, self.tokens, self.width)

    def _mel(self, waveform: FloatArray) -> torch.Tensor:
        """(frames, 40) mel spectrogram at the loudness that the weights were trained on, -30 dBFS."""
        waveform = waveform * 10**-1.5 / max(np.sqrt(np.mean(waveform**2)), 1e-5)
        least = self.hop * self.window  # samples of a window
        padded = np.pad(waveform, (self.frame // 2, self.frame // 2 + max(0, least - len(waveform))))
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.frame)[:: self.hop]
        power = np.abs(np.fft.rfft(frames * np.hanning(self.frame + 1)[:-1])) ** 2
        return torch.from_numpy((power @ self.filters).astype(np.float32))

    def _statistics(self, mel: torch.Tensor) -> FloatArray:
        windows = mel.unfold(0, self.window, self.window // 2).transpose(1, 2)
        outputs = self.lstm(windows)[0].flatten(0, 1)
        row: FloatArray = torch.cat([outputs.mean(dim=0), outputs.std(dim=0)]).numpy()
        return row
