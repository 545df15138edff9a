"""Noise that knows nothing of classes: the placebo among the generators.

Whoever fine-tunes on more rows takes the same number of steps on other data. What noise gains over fine-tuning on
prototypes alone is owed to that, and not to anything a generator has learned.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fed_a2v.core.generators.base import EpochLosses, Generator
from fed_a2v.core.prototype_bank import PrototypeBatch


class NoiseGenerator(Generator):
    """Gaussian noise with the mean and the deviation of all rows together, whatever the condition.

    Args:
        input_dim, visual_dim, sequence_length: see `Generator`.
    """

    kind: ClassVar[str] = "noise"
    mean: Tensor
    std: Tensor

    def __init__(self, input_dim: int, visual_dim: int = 768, sequence_length: int = 1) -> None:
        super().__init__(input_dim, visual_dim, sequence_length)
        self.register_buffer("mean", torch.zeros(sequence_length, input_dim))
        self.register_buffer("std", torch.ones(sequence_length, input_dim))

    def fit(
        self, rows: PrototypeBatch, conditions: Tensor, epochs: int, noise: float, random: torch.Generator
    ) -> list[EpochLosses]:
        """Measure the rows' mean and deviation; nothing else plays a part."""
        del conditions, epochs, noise, random
        self.mean.copy_(rows.embeddings.mean(dim=0))
        self.std.copy_(rows.embeddings.std(dim=0, correction=0))
        return []

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        visual_condition: Tensor,
        device: torch.device | str | None = None,
        random: torch.Generator | None = None,
    ) -> Tensor:
        """See `Generator.sample`."""
        del visual_condition
        source = random or torch.default_generator
        drawn = torch.randn(num_samples, *self.mean.shape, generator=source, device=source.device)
        return (self.mean + self.std * drawn.to(self.mean)).to(device or self.mean.device)
