"""A VAE of audio embeddings conditioned on the class's CLIP and T5 embeddings together, or on either alone."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fed_a2v.core.generators.base import as_rows, at_least_one, at_most_one
from fed_a2v.core.generators.parts.draws import uniform
from fed_a2v.core.generators.vae import ConditionedVAEGenerator


class MultimodalVAEGenerator(ConditionedVAEGenerator):
    """Conditional VAE whose condition has two parts, CLIP (V) and T5 (T), of which one may be missing.

    The parts are centred, brought to the same length and mapped to `condition_dim` separately; the networks get the
    mean of the present parts. In training, one part of a row's condition is left out at random
    (`condition_dropout`, after the modality dropout of Neverova et al. 2016), so that each is sufficient alone.

    In `fit` and `sample_classes` a condition is the two parts side by side, (C, V + T), as `conditions_from` makes
    them; a missing part is all zeros. All classes of a `fit` must have the same parts.

    Args:
        input_dim, visual_dim, hidden_dim, latent_dim, sequence_length: see `ConditionedVAEGenerator`.
        t5_dim: T, default 4096.
        condition_dropout: probability that a row in training has one part only, default 0.3.
        condition_dim, closed_form, ema, loss, learning_rate, weight_decay, batch_size: see `ConditionedVAEGenerator`.
    """

    kind: ClassVar[str] = "multimodal"

    def __init__(
        self,
        input_dim: int = 512,
        visual_dim: int = 768,
        hidden_dim: int = 1024,
        latent_dim: int = 256,
        sequence_length: int = 1,
        *,
        t5_dim: int = 4096,
        condition_dropout: float = 0.3,
        condition_dim: int = 64,
        closed_form: bool = False,
        ema: float = 0.0,
        loss: nn.Module | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        batch_size: int = 256,
    ) -> None:
        at_least_one(visual_dim=visual_dim, t5_dim=t5_dim)
        at_most_one(condition_dropout=condition_dropout)
        super().__init__(
            input_dim,
            visual_dim + t5_dim,
            hidden_dim,
            latent_dim,
            sequence_length,
            condition_dim=condition_dim,
            closed_form=closed_form,
            ema=ema,
            loss=loss,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            batch_size=batch_size,
        )
        self.visual_dim = visual_dim
        self.t5_dim = t5_dim
        self.condition_dropout = condition_dropout

    @property
    def dimensions(self) -> dict[str, int]:
        """See `Generator.dimensions`."""
        return super().dimensions | {"t5_dim": self.t5_dim}

    def conditions_from(self, clip: Tensor, t5: Tensor | None) -> Tensor:
        """(C, V + T): the mean tokens of (C, Tc, V) CLIP and (C, T5 tokens, T) T5 prompts, side by side.

        Raises:
            ValueError: a width is wrong.
        """
        return self._join(len(clip), clip, t5)

    def forward(
        self, x: Tensor, visual_condition: Tensor | None = None, t5_condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `ConditionedVAEGenerator.forward`; conditions as in `sample`."""
        return super().forward(x, self._join(len(x), visual_condition, t5_condition))

    def sample(
        self,
        num_samples: int,
        visual_condition: Tensor | None = None,
        device: torch.device | str | None = None,
        random: torch.Generator | None = None,
        *,
        t5_condition: Tensor | None = None,
    ) -> Tensor:
        """Sample new audio embeddings of the class that the conditions stand for; at least one must be given.

        Args:
            num_samples: number of embeddings, each different.
            visual_condition: CLIP, in the shapes of `Generator.sample`; or both parts side by side, (..., V + T).
            device, random: see `Generator.sample`.
            t5_condition: T5, in the same shapes; (B, tokens, T) is averaged over the tokens.

        Returns:
            (num_samples, S, Da).

        Raises:
            ValueError: no condition, or one of the wrong shape.
        """
        return super().sample(num_samples, self._join(num_samples, visual_condition, t5_condition), device, random)

    def posterior(
        self, x: Tensor, visual_condition: Tensor | None = None, t5_condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `ConditionedVAEGenerator.posterior`; conditions as in `sample`."""
        return super().posterior(x, self._join(len(x), visual_condition, t5_condition))

    def _join(self, number: int, clip: Tensor | None, t5: Tensor | None) -> Tensor:
        """(number, V + T) rows with zeros for a missing part."""
        if t5 is None and clip is not None and clip.shape[-1] == self.visual_dim + self.t5_dim:
            return as_rows(clip, number, self.visual_dim + self.t5_dim)
        if clip is None and t5 is None:
            raise ValueError("give visual_condition, t5_condition, or both")
        parts = []
        for name, part, width in (("visual", clip, self.visual_dim), ("t5", t5, self.t5_dim)):
            if part is not None and part.shape[-1] != width:
                raise ValueError(f"{name}_condition has width {part.shape[-1]}, but the generator needs {width}")
            parts.append(
                torch.zeros(number, width, device=self.condition_mean.device)
                if part is None
                else as_rows(part.to(self.condition_mean), number, width)
            )
        return torch.cat(parts, dim=1)

    def _parts(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        clip, t5 = joined.split([self.visual_dim, self.t5_dim], dim=1)
        return clip, t5

    def _units(self, conditions: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The parts of (B, V + T) conditions, centred and of length 1 (0 if missing), and their (B, 2) presence."""
        parts, centres = self._parts(conditions), self._parts(self.condition_mean.unsqueeze(0))
        present = torch.stack([part.any(dim=1) for part in parts], dim=1)
        units = tuple(
            F.normalize(part - centre, dim=-1) * mask.unsqueeze(1)
            for part, centre, mask in zip(parts, centres, present.unbind(dim=1), strict=True)
        )
        return units, present

    def directions(self, conditions: Tensor) -> Tensor:
        """(B, V + T) directions, of which a linear map is the mean of separate maps of the present parts."""
        (clip, t5), present = self._units(conditions)
        scaled = torch.cat([clip * math.sqrt(self.visual_dim), t5 * math.sqrt(self.t5_dim)], dim=1)
        return scaled * (2 / present.sum(dim=1, keepdim=True).clamp(min=1))

    def _drop_conditions(self, directions: Tensor, random: torch.Generator) -> Tensor:
        """Leave out one part of some rows that have both; the other one then has weight 2."""
        clip, t5 = self._parts(directions)
        draws = uniform((2, len(directions), 1), directions, random)
        dropped = (draws[0] < self.condition_dropout) & clip.any(dim=1, keepdim=True) & t5.any(dim=1, keepdim=True)
        clip_stays = draws[1] < 0.5
        weights = (torch.where(dropped, torch.where(stays, 2.0, 0.0), 1.0) for stays in (clip_stays, ~clip_stays))
        return torch.cat([part * weight for part, weight in zip((clip, t5), weights, strict=True)], dim=1)

    def _cosines(self, conditions: Tensor) -> Tensor:
        """The mean of the cosines of the parts that both conditions have."""
        (requested, given), (known, available) = self._units(conditions), self._units(self.conditions)
        clip, t5 = (one @ other.T for one, other in zip(requested, known, strict=True))
        return (clip + t5) / (given.float() @ available.float().T).clamp(min=1)
