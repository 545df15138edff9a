"""A custom generator: the mean of a class is a linear function of its condition; samples add Gaussian noise.

PYTHONPATH=examples fed-a2v train generator=custom generator._target_=linear_generator.LinearGenerator
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fed_a2v.core.generators.base import EpochLosses, Generator, as_rows
from fed_a2v.core.statistics import PrototypeBatch


class LinearGenerator(Generator):
    """Ridge regression from the condition to the audio embedding, and noise with the spread of its residuals.

    Args:
        input_dim, visual_dim, sequence_length: see `Generator`; the server sets them from the data.
        ridge: weight of the penalty, in units of the mean squared length of a condition.
    """

    kind: ClassVar[str] = "linear"  # type of the generator in checkpoints and in the log
    weight: Tensor
    spread: Tensor

    def __init__(self, input_dim: int, visual_dim: int, sequence_length: int, ridge: float = 0.01) -> None:
        super().__init__(input_dim, visual_dim, sequence_length)
        self.ridge = ridge
        # Checkpoints contain parameters and buffers, and the next round continues with them.
        self.register_buffer("weight", torch.zeros(visual_dim + 1, sequence_length * input_dim))
        self.register_buffer("spread", torch.ones(sequence_length * input_dim))

    def fit(
        self, rows: PrototypeBatch, conditions: Tensor, epochs: int, noise: float, random: torch.Generator
    ) -> list[EpochLosses]:
        """Solve for the weights: N prototypes `rows` of C classes, with (C, V) `conditions`."""
        inputs = with_one(conditions)[rows.labels]
        embeddings = rows.embeddings.flatten(1)
        penalty = self.ridge * len(inputs) * inputs.square().sum(dim=1).mean() * torch.eye(inputs.shape[1])
        self.weight.copy_(torch.linalg.solve(inputs.T @ inputs + penalty.to(inputs), inputs.T @ embeddings))
        # A prototype is the mean of a group of clips: the variance within the group is part of the spread, too.
        left = (embeddings - inputs @ self.weight).square() + rows.variances.flatten(1)
        self.spread.copy_(left.mean(dim=0).sqrt())
        return []  # a closed form has no epochs, and so no losses

    def sample(
        self,
        num_samples: int,
        visual_condition: Tensor,
        device: torch.device | str | None = None,
        random: torch.Generator | None = None,
    ) -> Tensor:
        """Draw `num_samples` embeddings of the class that `visual_condition` stands for, (num_samples, S, Da)."""
        inputs = with_one(as_rows(visual_condition.to(self.weight), num_samples, self.visual_dim))
        noise = torch.randn(num_samples, len(self.spread), generator=random).to(self.weight)
        rows = inputs @ self.weight + noise * self.spread
        return rows.view(num_samples, self.sequence_length, self.input_dim).to(device or rows.device)


def with_one(conditions: Tensor) -> Tensor:
    """Conditions of unit length, each with a one appended for the constant of the regression."""
    return F.pad(F.normalize(conditions, dim=-1), (0, 1), value=1.0)
