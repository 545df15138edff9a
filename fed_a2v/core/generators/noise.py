"""Noise that is the same for all classes: the placebo that other generators are compared with.

Fine-tuning with samples takes as many steps as without, on other rows. A gain of noise over fine-tuning on prototypes
alone comes from that alone, and not from anything that a generator has learned.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fed_a2v.core.generators.base import EpochLosses, Generator
from fed_a2v.core.generators.parts.draws import normal
from fed_a2v.core.statistics import PrototypeBatch


class NoiseGenerator(Generator):
    """Gaussian noise with the mean and the deviation of all rows, independent of the condition.

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
        """Measure mean and deviation of the rows; the other arguments have no effect."""
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
        noise = normal((num_samples, *self.mean.shape), self.mean, random or torch.default_generator)
        return (self.mean + self.std * noise).to(device or self.mean.device)
