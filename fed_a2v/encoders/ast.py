"""encoder=ast: the Audio Spectrogram Transformer, loaded with transformers."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fed_a2v.config.sections.data import EncoderSettings
from fed_a2v.encoders.audio_models import FloatArray, PretrainedEncoder, pool
from fed_a2v.encoders.pretrained import Pretrained


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

    @classmethod
    def label_weight(cls, settings: EncoderSettings) -> Tensor:
        """(K, Da) weight of the classifier on the model's K labels, as a linear map of the class token.

        The classifier takes the mean of class and distillation token through a layer norm and a dense layer. Of the
        norm, the gain and the subtraction of the token's mean are part of the weight; the division by its deviation
        changes the length of the logits only.

        Raises:
            ModelError: the model is missing, or has no classifier.
        """
        assert settings.model is not None
        source = Pretrained(settings.model, settings.revision, "", "encoder")
        head = source.network("ASTForAudioClassification", torch.float32, torch.device("cpu")).classifier
        weight: Tensor = head.dense.weight * head.layernorm.weight
        return weight - weight.mean(dim=1, keepdim=True)

    @classmethod
    def label_names(cls, settings: EncoderSettings) -> list[str]:
        """Names of the model's K labels, in the order of `label_weight`.

        Raises:
            ModelError: the model is missing.
        """
        assert settings.model is not None
        names = Pretrained(settings.model, settings.revision, "", "encoder").read("AutoConfig").id2label
        return [str(names[label]) for label in sorted(names)]

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


Encoder = ASTEncoder
