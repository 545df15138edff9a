"""Two VAEs of audio embeddings, one for each adapter of FLUX: conditioned on the class's CLIP, and on its T5 prompt."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fed_a2v.core.generators.base import EpochLosses, Generator, as_rows, at_least_one
from fed_a2v.core.generators.vae import ConditionedVAEGenerator
from fed_a2v.core.statistics import PrototypeBatch

KEYS = ("clip", "t5")


class VAEWithT5Generator(Generator):
    """A VAE conditioned on CLIP (V) and a second one conditioned on T5 (T), trained on the same rows, independently.

    Samples of the first fine-tune the CLIP adapter, those of the second the T5 adapter: see `sample_sides`. Where one
    set of samples is needed, such as in validation, the two alternate.

    In `fit`, `sample` and `sample_classes` a condition is the two parts side by side, (C, V + T), as
    `conditions_from` makes them: the mean tokens of each.

    Args:
        input_dim, visual_dim, hidden_dim, latent_dim, sequence_length: see `ConditionedVAEGenerator`; same for both.
        t5_dim: T, default 4096.
        condition_dim, closed_form, ema, loss, learning_rate, weight_decay, batch_size: see `ConditionedVAEGenerator`;
            same for both. Each has a copy of the loss.
    """

    kind: ClassVar[str] = "vae_t5"
    needs_t5: ClassVar[bool] = True

    def __init__(
        self,
        input_dim: int = 512,
        visual_dim: int = 768,
        hidden_dim: int = 1024,
        latent_dim: int = 256,
        sequence_length: int = 1,
        *,
        t5_dim: int = 4096,
        condition_dim: int = 64,
        closed_form: bool = False,
        ema: float = 0.0,
        loss: nn.Module | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        batch_size: int = 256,
    ) -> None:
        super().__init__(input_dim, visual_dim, sequence_length)
        at_least_one(t5_dim=t5_dim)
        self.t5_dim = t5_dim
        self.clip, self.t5 = (
            ConditionedVAEGenerator(
                input_dim,
                width,
                hidden_dim,
                latent_dim,
                sequence_length,
                condition_dim=condition_dim,
                closed_form=closed_form,
                ema=ema,
                loss=copy.deepcopy(loss),
                learning_rate=learning_rate,
                weight_decay=weight_decay,
                batch_size=batch_size,
            )
            for width in (visual_dim, t5_dim)
        )

    @property
    def dimensions(self) -> dict[str, int]:
        """See `Generator.dimensions`: the dimensions of both."""
        return self.clip.dimensions | {"t5_dim": self.t5_dim}

    def conditions_from(self, clip: Tensor, t5: Tensor | None) -> Tensor:
        """(C, V + T): the mean tokens of (C, Tc, V) CLIP and (C, T5 tokens, T) T5 prompts, side by side.

        Raises:
            ValueError: T5 prompts are missing.
        """
        if t5 is None:
            raise ValueError(
                f"a generator of type {self.kind} is conditioned on T5 prompts, but there are none; set adapters=flux"
            )
        return torch.cat([clip.mean(dim=1), t5.mean(dim=1)], dim=1)

    def fit(
        self, rows: PrototypeBatch, conditions: Tensor, epochs: int, noise: float, random: torch.Generator
    ) -> list[EpochLosses]:
        """See `Generator.fit`; the loss is the sum of both losses, whose terms are reported separately."""
        clip, t5 = self._parts(conditions)
        first = self.clip.fit(rows, clip, epochs, noise, random)
        second = self.t5.fit(rows, t5, epochs, noise, random)
        return [_joined(one, other) for one, other in zip(first, second, strict=True)]

    def steps_per_epoch(self, rows: PrototypeBatch) -> float:
        """See `Generator.steps_per_epoch`: the same for both."""
        return self.clip.steps_per_epoch(rows)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        visual_condition: Tensor,
        device: torch.device | str | None = None,
        random: torch.Generator | None = None,
    ) -> Tensor:
        """See `Generator.sample`; with both parts of the condition, samples of the two VAEs alternate.

        A condition of width V is a CLIP condition: all samples are then the first VAE's.
        """
        if visual_condition.shape[-1] == self.visual_dim:
            return self.clip.sample(num_samples, visual_condition, device, random)
        conditions = as_rows(visual_condition, num_samples, self.visual_dim + self.t5_dim)
        rows = self._alternating(conditions, lambda vae, part: vae.sample(len(part), part, part.device, random))
        return rows.to(device or rows.device)

    def sample_sides(self, conditions: Tensor, num_samples: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `Generator.sample_sides`: the first VAE's samples for CLIP, the second's for T5."""
        clip, t5 = self._parts(conditions)
        return (
            self.clip.sample_classes(clip, num_samples, random),
            self.t5.sample_classes(t5, num_samples, random),
        )

    def posterior(self, x: Tensor, visual_condition: Tensor) -> tuple[Tensor, Tensor]:
        """See `Generator.posterior`: the latents of both VAEs side by side, (B, 2 L)."""
        clip, t5 = self._parts(as_rows(visual_condition, len(x), self.visual_dim + self.t5_dim))
        (mu, logvar), (t5_mu, t5_logvar) = self.clip.posterior(x, clip), self.t5.posterior(x, t5)
        return torch.cat([mu, t5_mu], dim=1), torch.cat([logvar, t5_logvar], dim=1)

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, conditions: Tensor, noise: Tensor, random: torch.Generator) -> Tensor:
        """See `Generator.log_likelihood`: the mixture that `sample` draws from, both VAEs in equal parts."""
        parts = zip((self.clip, self.t5), self._parts(conditions), strict=True)
        densities = [vae.log_likelihood(x, part, noise, random) for vae, part in parts]
        return torch.logaddexp(*densities) - math.log(2)

    @torch.no_grad()
    def sample_raw(self, conditions: Tensor, random: torch.Generator) -> Tensor:
        """See `Generator.sample_raw`: samples of the two VAEs alternate."""
        return self._alternating(conditions, lambda vae, part: vae.sample_raw(part, random))

    def training_state(self) -> dict[str, Any]:
        """See `Generator.training_state`."""
        return {"clip": self.clip.training_state(), "t5": self.t5.training_state()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `Generator.load_training_state`."""
        self.clip.load_training_state(state["clip"])
        self.t5.load_training_state(state["t5"])

    @property
    def keys(self) -> tuple[str, ...]:
        """`clip` and `t5`."""
        return KEYS

    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """Checkpoints of both by key, with `key` and the keys of the `family`; type and dimensions are the pair's."""
        pair = {"generator_type": self.kind, "dimensions": self.dimensions, "family": list(KEYS)}
        vaes = zip(KEYS, (self.clip, self.t5), strict=True)
        return {key: vae.checkpoint() | pair | {"key": key} for key, vae in vaes}

    def load_checkpoints(self, checkpoints: Mapping[str, dict[str, Any]]) -> None:
        """Load the result of `checkpoints`."""
        self.clip.load_checkpoint(checkpoints["clip"])
        self.t5.load_checkpoint(checkpoints["t5"])

    def _alternating(self, conditions: Tensor, draw: Callable[[ConditionedVAEGenerator, Tensor], Tensor]) -> Tensor:
        """(B, S, Da) draws under (B, V + T) conditions, alternately of the first and the second VAE."""
        rows = conditions.new_empty(len(conditions), self.sequence_length, self.input_dim)
        for first, (vae, part) in enumerate(zip((self.clip, self.t5), self._parts(conditions), strict=True)):
            rows[first::2] = draw(vae, part[first::2])
        return rows

    def _parts(self, conditions: Tensor) -> tuple[Tensor, Tensor]:
        clip, t5 = conditions.split([self.visual_dim, self.t5_dim], dim=1)
        return clip, t5


def _joined(clip: EpochLosses, t5: EpochLosses) -> EpochLosses:
    """The sum of both losses; the names of the second one's terms start with `t5_`."""

    def merged(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
        return {**one, **{f"t5_{name}": value for name, value in other.items()}}

    if not clip.parts:  # a custom loss without terms
        return EpochLosses(clip.total + t5.total, {"clip": clip.total, "t5": t5.total}, {})
    per_class = {name: merged(terms, t5.per_class[name]) for name, terms in clip.per_class.items()}
    return EpochLosses(clip.total + t5.total, merged(clip.parts, t5.parts), per_class)
