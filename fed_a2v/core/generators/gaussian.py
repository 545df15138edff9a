"""A Gaussian per class in closed form: the strongest cheap baseline."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fed_a2v.core.generators.base import EpochLosses, at_most_one
from fed_a2v.core.generators.parts.class_conditional import ClassConditionalGenerator
from fed_a2v.core.generators.parts.moments import SHRINKAGE
from fed_a2v.core.statistics import PrototypeBatch


class GaussianGenerator(ClassConditionalGenerator):
    """Class mean plus a draw from the class's low-rank covariance, shrunk to the pooled correlation.

    `x = mu_c + sqrt(1 - l) w R_c / sqrt(K - 1) + sqrt(l) sd_c * xi`, where R_c are the offsets of the class's
    prototypes with the spread of the clips restored, w ~ N(0, I), and xi has the pooled correlation of the classes
    (Ledoit & Wolf 2004). The condition only finds the class: the nearest known one is sampled.

    Args:
        input_dim, visual_dim, sequence_length: see `Generator`.
        shrinkage: l, the share of the variance that comes from the pooled correlation.
    """

    kind: ClassVar[str] = "gaussian"
    draws_unknown: ClassVar[bool] = False
    draws_moments: ClassVar[bool] = True

    def __init__(
        self, input_dim: int, visual_dim: int = 768, sequence_length: int = 1, shrinkage: float = SHRINKAGE
    ) -> None:
        super().__init__(input_dim, visual_dim, sequence_length)
        at_most_one(shrinkage=shrinkage)
        self.shrinkage = shrinkage

    def fit(
        self, rows: PrototypeBatch, conditions: Tensor, epochs: int, noise: float, random: torch.Generator
    ) -> list[EpochLosses]:
        """Measure the classes' moments; `epochs`, `noise` and `random` have no effect."""
        del epochs, noise, random
        self.moments.fit(rows)
        self.conditions = conditions.clone()
        return []

    def _draw(self, conditions: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        del conditions
        return self.moments.draw(labels, self.shrinkage, random)
