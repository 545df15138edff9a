"""Pretrained audio encoders, loaded with transformers: the Audio Spectrogram Transformer (AST) and CLAP.

`fed_a2v.encoders.audio.load_encoder` creates them for encoder=ast and encoder=clap.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fed_a2v.config.sections.data import EncoderSettings
from fed_a2v.encoders.pretrained import ModelError, Pretrained, pick_device

logger = logging.getLogger("fed_a2v")

FloatArray = NDArray[np.float32]

# Half a quantisation step of 16-bit audio: smaller values are indistinguishable from digital silence.
SILENCE = 2.0**-16


def real_part(waveform: FloatArray) -> FloatArray:
    """The waveform (samples,) without the silence at its end; unchanged if it is silent throughout.

    Clips are padded with zeros to a common length, by `read_clip` or, as in ESC-50, in the data set itself.
    """
    audible = np.flatnonzero(np.abs(waveform) > SILENCE)
    return waveform[: audible[-1] + 1] if len(audible) else waveform


def pool(tokens: Tensor, count: int) -> Tensor:
    """Average (R, D) tokens over `count` segments of the sequence, as (count, D).

    Neighbouring segments overlap if R is not a multiple of `count`.
    """
    pooled: Tensor = F.adaptive_avg_pool1d(tokens.T[None], count)[0].T
    return pooled


class PretrainedEncoder(ABC):
    """Base of the encoders by transformers; the weights are loaded when the first clip is embedded.

    A clip's embedding never depends on other clips: on the CPU the batch size is 1, which costs little there and
    gives the same bits whatever else is embedded. Of a clip longer than the model's window only the beginning is
    used.

    Args:
        settings: `tokens` is `cls`, `mean`, a number of averages over the clip without its padding, or `full`.

    Raises:
        ModelError: transformers is not installed, the model is missing or of another type, or the device does not
            exist.
    """

    name: str
    model_type: str
    sample_rate: int
    tokens: int
    width: int
    # Increase it whenever a change of this code changes the embeddings.
    version = 1

    def __init__(self, settings: EncoderSettings) -> None:
        assert settings.model is not None
        assert settings.batch_size is not None
        self.settings = settings
        self.source = Pretrained(settings.model, settings.revision, "", "encoder")
        self.config = self.source.read("AutoConfig")
        if self.config.model_type != self.model_type:
            raise ModelError(
                f"encoder.model={settings.model} is a model of type {self.config.model_type!r}; encoder={self.name} "
                f"needs {self.model_type!r}"
            )
        self.extractor = self.source.read("AutoFeatureExtractor")
        self.sample_rate = int(self.extractor.sampling_rate)
        self.device = pick_device(str(settings.device))
        self.batch_size = settings.batch_size if self.device.type == "cuda" else 1
        self.dtype = getattr(torch, str(settings.precision))
        assert settings.tokens is not None
        self.tokens, self.width = self.shape(self.config, settings.tokens)
        self._warned = False

    @cached_property
    def fingerprint(self) -> str:
        """The model's file hash or commit, and the settings that affect the embeddings."""
        settings = self.settings
        return f"{self.name}-{self.version} {self.source.identity()} {settings.tokens} {settings.precision}"

    @classmethod
    @abstractmethod
    def shape(cls, config: Any, tokens: str | int) -> tuple[int, int]:
        """(S, Da) from the model's configuration and `encoder.tokens`."""

    @property
    @abstractmethod
    def window(self) -> int:
        """Length of the model's input in samples."""

    @abstractmethod
    def embed(self, features: Tensor, samples: list[int]) -> Tensor:
        """Embed B clips as (B, S, Da).

        Args:
            features: (B, ...) the extractor's features.
            samples: B lengths of the clips in samples, without padding.
        """

    def encode(self, waveforms: FloatArray) -> FloatArray:
        """Embed waveforms of shape (B, samples) as (B, S, Da) float32; B = 0 is allowed.

        Raises:
            ValueError: `waveforms` is not two-dimensional, or has no samples.
            ModelError: the weights are missing.
        """
        if waveforms.ndim != 2 or waveforms.shape[1] == 0:
            raise ValueError(f"waveforms have shape {waveforms.shape}; expected (clips, samples)")
        embeddings = np.zeros((len(waveforms), self.tokens, self.width), np.float32)
        for start in range(0, len(waveforms), self.batch_size):
            clips = [self._cropped(waveform) for waveform in waveforms[start : start + self.batch_size]]
            features = torch.stack([self._features(clip) for clip in clips]).to(self.device, self.dtype)
            with torch.inference_mode():
                embedded = self.embed(features, [len(clip) for clip in clips])
            embeddings[start : start + len(clips)] = embedded.float().cpu().numpy()
        return embeddings

    def _cropped(self, waveform: FloatArray) -> FloatArray:
        clip = real_part(waveform)
        if len(clip) > self.window and not self._warned:
            self._warned = True
            logger.warning(
                "%s uses the first %.4g s of a clip; this clip has %.4g s",
                self.name,
                self.window / self.sample_rate,
                len(clip) / self.sample_rate,
            )
        return clip[: self.window]

    def _features(self, clip: FloatArray) -> Tensor:
        # One clip at a time: CLAP's extractor treats a random clip of a batch as longer than the window.
        extracted = self.extractor(clip, sampling_rate=self.sample_rate, return_tensors="pt")
        features: Tensor = extracted[self.extractor.model_input_names[0]][0]
        return features


class ASTEncoder(PretrainedEncoder):
    """AST (Gong et al. 2021): a vision transformer over the log-mel spectrogram, 16 x 16 patches with stride 10 x 10.

    The spectrogram has a fixed length, 1024 frames of 10 ms in the published models; shorter clips are padded. `mean`
    and numbers average the patches over frequency and then over time, without the patches of padding. `full` is the
    class token, the distillation token, and all patches, including those of padding.
    """

    name = "ast"
    model_type = "audio-spectrogram-transformer"
    # Frame and hop of the extractor in samples at 16 kHz; they do not depend on the sample rate.
    frame, hop = 400, 160

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__(settings)
        self.bands, self.times = self.grid(self.config)

    @staticmethod
    def grid(config: Any) -> tuple[int, int]:
        """Numbers of patches in frequency and in time."""
        bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        return bands, (config.max_length - config.patch_size) // config.time_stride + 1

    @classmethod
    def shape(cls, config: Any, tokens: str | int) -> tuple[int, int]:
        """See `PretrainedEncoder`."""
        bands, times = cls.grid(config)
        sizes = {"cls": 1, "mean": 1, "full": 2 + bands * times}
        return tokens if isinstance(tokens, int) else sizes[tokens], int(config.hidden_size)

    @property
    def window(self) -> int:
        """See `PretrainedEncoder`."""
        return self.frame + self.hop * (int(self.config.max_length) - 1)

    @cached_property
    def _network(self) -> Any:
        return self.source.network("ASTModel", self.dtype, self.device)

    def _features(self, clip: FloatArray) -> Tensor:
        # The extractor needs at least one frame.
        return super()._features(np.pad(clip, (0, max(0, self.frame - len(clip)))))

    def embed(self, features: Tensor, samples: list[int]) -> Tensor:
        """See `PretrainedEncoder`."""
        hidden: Tensor = self._network(input_values=features).last_hidden_state
        if self.settings.tokens == "cls":
            return hidden[:, :1]
        if self.settings.tokens == "full":
            return hidden
        over_time = hidden[:, 2:].unflatten(1, (self.bands, self.times)).mean(dim=1)
        rows = zip(over_time, samples, strict=True)
        return torch.stack([pool(row[: self._patches(count)], self.tokens) for row, count in rows])

    def _patches(self, samples: int) -> int:
        """Patches in time that are within the clip; at least one."""
        frames = 1 + max(0, samples - self.frame) // self.hop
        return max(1, (frames - int(self.config.patch_size)) // int(self.config.time_stride) + 1)


class ClapEncoder(PretrainedEncoder):
    """CLAP (Wu et al. 2023): a Swin transformer (HTS-AT) whose output is in a space shared with a text model.

    A short clip is repeated as often as it fits into the window, 10 s in the published models, and then padded. `cls`
    is the output of `get_audio_features`. `mean`, numbers and `full` use the tokens before the last pooling, averaged
    over frequency and projected into the shared space. `mean` and numbers average over the first occurrence of the
    clip, without its repetitions and padding. All tokens have norm 1.
    """

    name = "clap"
    model_type = "clap"

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__(settings)
        self.times = self.length(self.config)

    @staticmethod
    def length(config: Any) -> int:
        """Tokens in time: those of the last stage's grid, whose frequency strips are concatenated in time."""
        audio = config.audio_config
        strips = audio.spec_size // audio.num_mel_bins
        stride = int(np.broadcast_to(audio.patch_stride, 2)[1])
        return int(strips * (audio.spec_size // stride // 2 ** (len(audio.depths) - 1)))

    @classmethod
    def shape(cls, config: Any, tokens: str | int) -> tuple[int, int]:
        """See `PretrainedEncoder`."""
        sizes = {"cls": 1, "mean": 1, "full": cls.length(config)}
        return tokens if isinstance(tokens, int) else sizes[tokens], int(config.audio_config.projection_dim)

    @property
    def window(self) -> int:
        """See `PretrainedEncoder`."""
        return int(self.extractor.nb_max_samples)

    @cached_property
    def _network(self) -> Any:
        return self.source.network("ClapModel", self.dtype, self.device)

    def embed(self, features: Tensor, samples: list[int]) -> Tensor:
        """See `PretrainedEncoder`."""
        network = self._network
        # No clip is longer than the window, so a model with feature fusion never fuses.
        longer = torch.zeros(len(features), 1, dtype=torch.bool, device=features.device)
        output = network.audio_model(input_features=features, is_longer=longer)
        if self.settings.tokens == "cls":
            pooled = output.pooler_output[:, None]
        else:
            over_time = output.last_hidden_state.mean(dim=2).transpose(1, 2)
            rows = zip(over_time, samples, strict=True)
            pooled = torch.stack([pool(row[: self._first_occurrence(count)], self.tokens) for row, count in rows])
        return F.normalize(network.audio_projection(pooled), dim=-1)

    def _first_occurrence(self, samples: int) -> int:
        """Tokens in time that the clip fills without its repetitions; at least one, all for `full`."""
        if self.settings.tokens == "full":
            return self.times
        return max(1, min(self.times, int(self.times * samples / self.window)))
