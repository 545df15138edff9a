"""A custom aggregation rule that remembers: averaging with momentum on the server.

PYTHONPATH=examples fed-a2v train aggregation=custom aggregation._target_=server_momentum.ServerMomentum
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fed_a2v.config.sections.federation import AggregationSettings
from fed_a2v.federation.server.aggregation.base import MeanRule


class ServerMomentum(MeanRule):
    """FedAvgM (Hsu et al. 2019): the change of a round is added to a velocity, as in SGD with momentum.

    Args:
        settings: `aggregation.arguments.momentum` is the share of the velocity that is kept, default 0.9.
    """

    def __init__(self, settings: AggregationSettings) -> None:
        super().__init__(settings)
        self.momentum = float(settings.arguments.get("momentum", 0.9))
        self.velocity: list[Tensor] | None = None

    def from_mean(self, mean: list[Tensor], sent: Sequence[Tensor]) -> list[Tensor]:
        """See `MeanRule`."""
        change = [new - old for new, old in zip(mean, sent, strict=True)]
        velocity = self.velocity or [torch.zeros_like(each) for each in change]
        self.velocity = [self.momentum * old + new for old, new in zip(velocity, change, strict=True)]
        return [weights + step for weights, step in zip(sent, self.velocity, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """The velocity, which a resumed run needs."""
        return {} if self.velocity is None else {"velocity": self.velocity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the result of `state_dict`."""
        self.velocity = state.get("velocity")
