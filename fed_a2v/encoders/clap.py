"""encoder=clap: CLAP's audio model, loaded with transformers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fed_a2v.config.sections.data import EncoderSettings
from fed_a2v.encoders.audio_models import PretrainedEncoder, pool
from fed_a2v.encoders.pretrained import Pretrained


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

    @classmethod
    def text_vectors(cls, settings: EncoderSettings, texts: Sequence[str]) -> Tensor:
        """(K, Da) vectors of norm 1 of K texts by the model's text side, in the space of the embeddings.

        Texts are embedded one by one, so that a vector does not depend on the other texts.

        Raises:
            ModelError: the model is missing or of another type.
        """
        assert settings.model is not None
        source = Pretrained(settings.model, settings.revision, "", "encoder")
        tokenizer = source.read("AutoTokenizer")
        network = source.network("ClapModel", torch.float32, torch.device("cpu"))
        most = int(network.config.text_config.max_position_embeddings) - 2  # positions of RoBERTa start at 2
        with torch.inference_mode():
            rows = [
                network.text_projection(
                    network.text_model(
                        **tokenizer(text, truncation=True, max_length=most, return_tensors="pt")
                    ).pooler_output
                )
                for text in texts
            ]
        return F.normalize(torch.cat(rows), dim=-1).clone()

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


Encoder = ClapEncoder
