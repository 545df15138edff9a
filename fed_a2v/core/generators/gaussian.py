"""A Gaussian per class in closed form: the strongest cheap baseline."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fed_a2v.core.generators.base import EpochLosses, Generator, as_rows
from fed_a2v.core.generators.parts.buffers import take_shapes
from fed_a2v.core.generators.parts.moments import SHRINKAGE, ClassMoments
from fed_a2v.core.prototype_bank import PrototypeBatch


class GaussianGenerator(Generator):
    """Class mean plus a draw from the class's low-rank covariance, shrunk to the pooled correlation.

    `x = mu_c + sqrt(1 - l) w R_c / sqrt(K - 1) + sqrt(l) sd_c * xi`, where R_c are the class's prototype
    offsets with the spread of the clips restored, w ~ N(0, I), and xi has the classes' pooled correlation
    (Ledoit & Wolf 2004). The condition only finds the class: the nearest known one is sampled.

    Args:
        input_dim, visual_dim, sequence_length: see `Generator`.
        shrinkage: l, the share of the variance that comes from the pooled correlation.
    """

    kind: ClassVar[str] = "gaussian"
    conditions: Tensor

    def __init__(
        self, input_dim: int, visual_dim: int = 768, sequence_length: int = 1, shrinkage: float = SHRINKAGE
    ) -> None:
        super().__init__(input_dim, visual_dim, sequence_length)
        if not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage={shrinkage}: must lie between 0 and 1")
        self.shrinkage = shrinkage
        self.moments = ClassMoments()
        self.register_buffer("conditions", torch.empty(0, visual_dim))

    def fit(
        self, rows: PrototypeBatch, conditions: Tensor, epochs: int, noise: float, random: torch.Generator
    ) -> list[EpochLosses]:
        """Measure the classes' moments; `epochs`, `noise` and `random` play no part in a closed form."""
        del epochs, noise, random
        self.moments.fit(rows)
        self.conditions = conditions.clone()
        return []

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        visual_condition: Tensor,
        device: torch.device | str | None = None,
        random: torch.Generator | None = None,
    ) -> Tensor:
        """See `Generator.sample`. Raises RuntimeError before the first `fit`."""
        if not len(self.conditions):
            raise RuntimeError("the generator has seen no class yet: call fit, or load a checkpoint")
        wanted = as_rows(visual_condition.to(self.conditions), num_samples, self.visual_dim)
        labels = torch.cdist(wanted, self.conditions).argmin(dim=1)
        return self._draw(labels, random or torch.default_generator).to(device or self.conditions.device)

    def _draw(self, labels: Tensor, random: torch.Generator) -> Tensor:
        rows = self.moments.draw(labels, self.shrinkage, random)
        return rows.view(-1, self.sequence_length, self.input_dim)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        # One row per known class: the number of classes is the checkpoint's.
        take_shapes(self, ["conditions"], state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)
