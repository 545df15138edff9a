"""A VAE of audio embeddings conditioned on the class's CLIP and T5 embeddings together, or on either alone."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fed_a2v.core.generators.base import SAME_CLASS_COSINE, as_rows, at_least_one
from fed_a2v.core.generators.vae import ConditionedVAEGenerator


class MultimodalVAEGenerator(ConditionedVAEGenerator):
    """Conditional VAE whose condition has two parts, CLIP (V) and T5 (T), of which one may be missing.

    The parts are centred, brought to the same length and mapped to `condition_dim` separately; the networks see the
    mean of those that are there. In training, one part of a row's condition is left out at random
    (`condition_dropout`, after the modality dropout of Neverova et al. 2016), so that each serves alone.

    In `fit` and `sample_classes` a condition is the two parts side by side, (C, V + T), as `conditions_from` makes
    them; a missing part is all zeros. Which parts there are must be the same for all classes of a `fit`.

    Args:
        input_dim, visual_dim, hidden_dim, latent_dim, sequence_length: see `ConditionedVAEGenerator`.
        t5_dim: T, default 4096.
        condition_dropout: probability with which a row in training sees one part only, default 0.3.
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
        if not 0 <= condition_dropout <= 1:
            raise ValueError(f"condition_dropout={condition_dropout}: must lie between 0 and 1")
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
            ValueError: a width does not fit.
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
        """Draw new audio embeddings of the class that the conditions stand for; at least one must be given.

        Args:
            num_samples: number of embeddings, each different.
            visual_condition: CLIP, in the shapes of `Generator.sample`; or both parts side by side, (..., V + T).
            device, random: see `Generator.sample`.
            t5_condition: T5, in the same shapes; (B, tokens, T) is averaged over the tokens.

        Returns:
            (num_samples, S, Da).

        Raises:
            ValueError: no condition, or one that does not fit.
        """
        return super().sample(num_samples, self._join(num_samples, visual_condition, t5_condition), device, random)

    def posterior(
        self, x: Tensor, visual_condition: Tensor | None = None, t5_condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `ConditionedVAEGenerator.posterior`; conditions as in `sample`."""
        return super().posterior(x, self._join(len(x), visual_condition, t5_condition))

    def _join(self, number: int, clip: Tensor | None, t5: Tensor | None) -> Tensor:
        """(number, V + T) rows with zeros for what is missing."""
        if t5 is None and clip is not None and clip.shape[-1] == self.visual_dim + self.t5_dim:
            return as_rows(clip, number, self.visual_dim + self.t5_dim)
        if clip is None and t5 is None:
            raise ValueError("give visual_condition, t5_condition, or both")
        parts = []
        for name, part, width in (("visual", clip, self.visual_dim), ("t5", t5, self.t5_dim)):
            if part is not None and part.shape[-1] != width:
                raise ValueError(f"{name}_condition has width {part.shape[-1]}, the generator {width}")
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
        """The parts of (B, V + T) conditions, centred and of length 1 (0 if missing); (B, 2) which are there."""
        parts, centres = self._parts(conditions), self._parts(self.condition_mean.unsqueeze(0))
        there = torch.stack([part.any(dim=1) for part in parts], dim=1)
        units = tuple(
            F.normalize(part - centre, dim=-1) * found.unsqueeze(1)
            for part, centre, found in zip(parts, centres, there.unbind(dim=1), strict=True)
        )
        return units, there

    def directions(self, conditions: Tensor) -> Tensor:
        """(B, V + T): a linear map of them is the mean of separate maps of the parts that are there."""
        (clip, t5), there = self._units(conditions)
        scaled = torch.cat([clip * math.sqrt(self.visual_dim), t5 * math.sqrt(self.t5_dim)], dim=1)
        return scaled * (2 / there.sum(dim=1, keepdim=True).clamp(min=1))

    def _drop_conditions(self, directions: Tensor, random: torch.Generator) -> Tensor:
        """Leave out one part of some rows that have both; the other then counts double."""
        clip, t5 = self._parts(directions)
        draws = torch.rand(2, len(directions), 1, generator=random, device=random.device).to(directions)
        hidden = (draws[0] < self.condition_dropout) & clip.any(dim=1, keepdim=True) & t5.any(dim=1, keepdim=True)
        first = draws[1] < 0.5
        weights = (torch.where(hidden, torch.where(chosen, 2.0, 0.0), 1.0) for chosen in (first, ~first))
        return torch.cat([part * weight for part, weight in zip((clip, t5), weights, strict=True)], dim=1)

    def _labels(self, conditions: Tensor) -> Tensor:
        """The known class of each (B, V + T) condition by the parts that both have, or -1."""
        if not len(self.conditions):
            return torch.full((len(conditions),), -1, device=conditions.device)
        distinct, inverse = conditions.unique(dim=0, return_inverse=True)
        (wanted, given), (known, had) = self._units(distinct), self._units(self.conditions)
        cosines = sum(one @ other.T for one, other in zip(wanted, known, strict=True))
        shared = given.float() @ had.float().T
        cosine, label = (cosines / shared.clamp(min=1)).max(dim=1)
        return torch.where(cosine >= SAME_CLASS_COSINE, label, -1)[inverse]
