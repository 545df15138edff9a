"""Base of the pretrained audio encoders, which transformers loads; `ast.py` and `clap.py` derive their classes."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, Self

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

    @classmethod
    def load(cls, settings: EncoderSettings) -> Self:
        """See `BuiltInEncoder`."""
        return cls(settings)

    @classmethod
    def known_shape(cls, settings: EncoderSettings) -> tuple[int, int] | None:
        """See `BuiltInEncoder`; None also if the configuration is that of another type of model."""
        assert settings.model is not None
        assert settings.tokens is not None
        source = Pretrained(settings.model, settings.revision, "", "encoder")
        try:
            return cls.shape(source.read("AutoConfig", local_files_only=True), settings.tokens)
        except (ModelError, AttributeError):  # AttributeError: the configuration is that of another type of model
            return None

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
