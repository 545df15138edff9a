"""A custom aggregation rule: the geometric median of the sites' adapters.

PYTHONPATH=examples fed-a2v train aggregation=custom aggregation._target_=geometric_median.GeometricMedian
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fed_a2v.config.sections.federation import AggregationSettings
from fed_a2v.federation.server.aggregation.base import AggregationRule


class GeometricMedian(AggregationRule):
    """The point with the least sum of distances to the sites (Pillutla et al. 2022, "Robust aggregation").

    Computed by the smoothed Weiszfeld algorithm; all sites have the same weight.

    Args:
        settings: `aggregation.arguments.steps` is the number of iterations, default 8.
    """

    def __init__(self, settings: AggregationSettings) -> None:
        super().__init__(settings)
        self.steps = int(settings.arguments.get("steps", 8))

    def combine(self, sites: Iterable[Sequence[Tensor]], clips: Sequence[int], sent: Sequence[Tensor]) -> list[Tensor]:
        """See `AggregationRule`."""
        unpacked = [[weight.float() for weight in weights] for weights in sites]
        rows = torch.stack([torch.cat([weight.flatten() for weight in weights]) for weights in unpacked])
        median = rows.mean(dim=0)
        for _ in range(self.steps):
            factors = 1 / torch.linalg.vector_norm(rows - median, dim=1).clamp(min=1e-6)
            median = factors @ rows / factors.sum()
        parts = median.split([weight.numel() for weight in unpacked[0]])
        return [part.view(weight.shape) for part, weight in zip(parts, unpacked[0], strict=True)]
