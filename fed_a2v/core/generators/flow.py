"""Flow matching: a network that carries noise to embeddings of a class along straight lines."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fed_a2v.core.generators.base import EpochLosses, at_least_one
from fed_a2v.core.generators.parts.reduced import CalibratedGenerator
from fed_a2v.core.optimisers import AdamW
from fed_a2v.core.prototype_bank import PrototypeBatch

TIME_DIM = 32


class FlowGenerator(CalibratedGenerator):
    """Conditional flow matching (Lipman et al. 2023) in the main directions of the standardised embeddings.

    The network learns the velocity `x1 - x0` at `(1 - t) x0 + t x1`, from noise x0 to a row x1 of the class.
    Samples follow the velocity from noise in Heun steps, with a running average of the weights.

    Args:
        input_dim: Da.
        visual_dim: V, default 768.
        sequence_length: S, default 1.
        reduced_dim: main directions that are learned.
        whiten: give every main direction unit variance. Without it signed embeddings, whose spread within a class
            lies in few directions, get too much of it in the others.
        hidden_dim: width of the three hidden layers.
        condition_dim: width to which the condition is mapped.
        steps: Heun steps of a sample; two evaluations of the network each.
        ema: decay of the running average of the weights.
        learning_rate, weight_decay: of AdamW.
        batch_size: rows of all classes together.
        calibrate: move the samples of known classes to their moments.
    """

    kind: ClassVar[str] = "flow"

    def __init__(
        self,
        input_dim: int = 512,
        visual_dim: int = 768,
        sequence_length: int = 1,
        *,
        reduced_dim: int = 64,
        whiten: bool = True,
        hidden_dim: int = 256,
        condition_dim: int = 64,
        steps: int = 12,
        ema: float = 0.995,
        learning_rate: float = 2e-3,
        weight_decay: float = 1e-2,
        batch_size: int = 128,
        calibrate: bool = True,
    ) -> None:
        super().__init__(input_dim, visual_dim, sequence_length, reduced_dim, whiten, calibrate)
        at_least_one(hidden_dim=hidden_dim, steps=steps, batch_size=batch_size)
        if not 0 <= ema < 1:
            raise ValueError(f"ema={ema}: must lie in [0, 1)")
        self.hidden_dim = hidden_dim
        self.steps = steps
        self.ema = ema
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.network = _Velocity(self.reduced_dim, visual_dim, hidden_dim, condition_dim)
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        self.updates = 0
        self._optimiser: AdamW | None = None

    @property
    def dimensions(self) -> dict[str, int]:
        """See `Generator.dimensions`."""
        return super().dimensions | {"hidden_dim": self.hidden_dim, "reduced_dim": self.reduced_dim}

    def training_state(self) -> dict[str, Any]:
        """See `Generator.training_state`."""
        optimiser = None if self._optimiser is None else self._optimiser.state_dict()
        return {"epoch": self.epoch, "updates": self.updates, "optimiser": optimiser}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `Generator.load_training_state`."""
        self.epoch, self.updates = state["epoch"], state["updates"]
        self._optimiser = None
        if state["optimiser"] is not None:
            self.get_optimiser().load_state_dict(state["optimiser"])

    def steps_per_epoch(self, rows: PrototypeBatch) -> float:
        """See `Generator.steps_per_epoch`."""
        return self.moments.batches(rows, self.batch_size)

    def _train(
        self,
        z: Tensor,
        labels: Tensor,
        names: tuple[str, ...],
        epochs: int,
        noise: float,
        random: torch.Generator,
    ) -> list[EpochLosses]:
        directions = self.directions(self.conditions)[labels]
        errors = z.new_zeros(epochs, len(z))
        for epoch in range(epochs):
            order = torch.randperm(len(z), generator=random, device=random.device).to(z.device)
            for batch in order.split(self.batch_size):
                errors[epoch, batch] = self._step(z[batch], directions[batch], noise, random)
        return _losses(errors, labels, names)

    def _step(self, data: Tensor, directions: Tensor, noise: float, random: torch.Generator) -> Tensor:
        """One optimiser step; the (B,) squared errors, detached."""
        optimiser = self.get_optimiser()
        start = _normal(data.shape, data, random)
        time = torch.rand(len(data), 1, generator=random, device=random.device).to(data)
        noisy = data + noise * _normal(data.shape, data, random) if noise > 0 else data
        velocity = self.network((1 - time) * start + time * noisy, time, self.network.condition(directions))
        error = (velocity - (data - start)).square().mean(dim=1)
        optimiser.zero_grad(set_to_none=True)
        error.mean().backward()
        optimiser.step()
        with torch.no_grad():
            # In the beginning the average follows more closely, or it would remember the first weights.
            self.updates += 1
            decay = min(self.ema, self.updates / (9 + self.updates))
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.network.parameters()), 1 - decay)
        squared: Tensor = error.detach()
        return squared

    def _draw(self, directions: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        del labels
        z = _normal((len(directions), self.reduced_dim), directions, random)
        condition = self.averaged.condition(directions)
        times = torch.linspace(0, 1, self.steps + 1, device=z.device).tolist()
        for now, then in pairwise(times):
            first = self._velocity(z, now, condition)
            second = self._velocity(z + (then - now) * first, then, condition)
            z = z + (then - now) * 0.5 * (first + second)
        return z

    def _velocity(self, z: Tensor, time: float, condition: Tensor) -> Tensor:
        out: Tensor = self.averaged(z, z.new_full((len(z), 1), time), condition)
        return out

    def get_optimiser(self) -> AdamW:
        """The optimiser, which keeps its state over the rounds."""
        if self._optimiser is None:
            self._optimiser = AdamW(
                self.network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
            )
        return self._optimiser


class _Velocity(nn.Module):
    """The velocity of (B, k) points at a time and under a condition."""

    def __init__(self, width: int, visual_dim: int, hidden: int, condition_dim: int) -> None:
        super().__init__()
        self.condition = nn.Linear(visual_dim, condition_dim)
        inputs = width + condition_dim + TIME_DIM
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, width),
        )

    def forward(self, z: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """(B, k) velocity; `time` is (B, 1) from 0 (noise) to 1 (data), `condition` as mapped by `condition`."""
        frequencies = torch.exp(torch.linspace(0, math.log(100), TIME_DIM // 2, device=z.device))
        angles = time * frequencies
        out: Tensor = self.layers(torch.cat([z, condition, angles.sin(), angles.cos()], dim=1))
        return out


def _losses(errors: Tensor, labels: Tensor, names: tuple[str, ...]) -> list[EpochLosses]:
    """(epochs, N) errors of the rows as losses by epoch and class."""
    counts = torch.bincount(labels, minlength=len(names)).clamp(min=1)
    by_class = errors.new_zeros(len(errors), len(names)).index_add_(1, labels, errors) / counts
    totals = errors.mean(dim=1).tolist()
    return [
        EpochLosses(total, {"velocity": total}, {n: {"velocity": e} for n, e in zip(names, row, strict=True)})
        for total, row in zip(totals, by_class.tolist(), strict=True)
    ]


def _normal(shape: tuple[int, ...], like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=random, device=random.device, dtype=like.dtype).to(like.device)
