"""Embedding prompts with CLIP's and T5's text models in the same way as Stable Diffusion and FLUX.

`fed_a2v.encoders.text` computes class prompts with this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fed_a2v.config.sections.data import TextModelSettings
from fed_a2v.encoders.pretrained import ModelError, Pretrained, pick_device

FloatArray = NDArray[np.float32]

NETWORKS = {"clip": "CLIPTextModel", "t5": "T5EncoderModel"}


class TextModel:
    """A frozen text model; the weights are loaded when the first prompt is embedded.

    Prompts are padded to a fixed number of tokens, without an attention mask, because the image models were trained
    that way. The batch size is 1, so that a prompt's embedding does not depend on other prompts.

    Args:
        kind: `clip`: the pooled output for one token (FLUX), else the last hidden state (Stable Diffusion);
            `t5`: the last hidden state (FLUX).
        settings: which model.
        device: "auto", "cpu", "cuda", ...
    """

    def __init__(self, kind: Literal["clip", "t5"], settings: TextModelSettings, device: str) -> None:
        self.kind = kind
        self.settings = settings
        self.device = device
        self.source = Pretrained(settings.model, settings.revision, settings.subfolder, f"targets.{kind}")

    def version_key(self) -> tuple[object, ...]:
        """Everything that the embeddings depend on, as a cache key for this machine."""
        return (self.kind, self.source.version_key(), self.settings.precision)

    def embed(self, prompts: Sequence[str], tokens: int) -> FloatArray:
        """Embed P prompts as (P, tokens, width) float32.

        Raises:
            ModelError: the model is missing or of another type, has too few positions, or returns NaN or infinity.
        """
        pooled = self.kind == "clip" and tokens == 1
        length = self._positions if pooled else tokens
        if length > self._positions:
            raise ModelError(
                f"adapters.{self.kind}_tokens={tokens}: set at most {self._positions}, as {self.settings.model} has"
            )
        rows = [self._row(prompt, length, pooled) for prompt in prompts]
        embedded = np.stack(rows).astype(np.float32)
        if not np.isfinite(embedded).all():
            bad = prompts[int(np.flatnonzero(~np.isfinite(embedded).all(axis=(1, 2)))[0])]
            raise ModelError(
                f"{self.settings.model} returns NaN or infinity for {bad!r}: "
                f"set targets.{self.kind}.precision=float32 or bfloat16"
            )
        return embedded

    def too_long(self, prompts: Iterable[str], tokens: int) -> list[str]:
        """The prompts that `embed` truncates because they have more tokens."""
        length = self._positions if self.kind == "clip" and tokens == 1 else tokens
        return [prompt for prompt in prompts if len(self._tokenizer(prompt)["input_ids"]) > length]

    def _row(self, prompt: str, length: int, pooled: bool) -> FloatArray:
        batch = self._tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            output = self._network(batch["input_ids"].to(self._network.device))
        row: FloatArray = (output.pooler_output if pooled else output.last_hidden_state[0]).float().cpu().numpy()
        return row

    @cached_property
    def _positions(self) -> int:
        # T5 has relative positions, and so no maximum.
        return int(getattr(self._network.config, "max_position_embeddings", 2**30))

    @cached_property
    def _tokenizer(self) -> Any:
        # An image pipeline has the tokenizers in folders of their own: that of text_encoder_2 is tokenizer_2.
        folder = self.settings.subfolder.replace("text_encoder", "tokenizer")
        return self.source.read("AutoTokenizer", subfolder=folder)

    @cached_property
    def _network(self) -> Any:
        dtype: torch.dtype = getattr(torch, self.settings.precision)
        return self.source.network(NETWORKS[self.kind], dtype, pick_device(self.device))
