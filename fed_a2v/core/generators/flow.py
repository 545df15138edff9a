"""Flow matching: a network that moves noise along straight lines to embeddings of a class."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from fed_a2v.core.generators.base import EpochLosses, at_least_one
from fed_a2v.core.generators.parts.class_conditional import TrainingData
from fed_a2v.core.generators.parts.draws import normal, normal_like, uniform
from fed_a2v.core.generators.parts.networks import perceptron, update_average
from fed_a2v.core.generators.parts.reduced import ReducedGenerator
from fed_a2v.core.optimisers import Adam, AdamW

# Width of the sine features of the time.
TIME_DIM = 32


class FlowGenerator(ReducedGenerator):
    """Conditional flow matching (Lipman et al. 2023) in the main directions of the standardised embeddings.

    The network learns the velocity `x1 - x0` at `(1 - t) x0 + t x1`, from noise x0 to a row x1 of the class.
    Samples follow the velocity from noise in Heun steps, with a running average of the weights.

    Args:
        input_dim: Da.
        visual_dim: V, default 768.
        sequence_length: S, default 1.
        reduced_dim: main directions that are learned.
        whiten: give every main direction unit variance. Without it, samples of signed embeddings, whose spread within a
            class is in few directions, have too much spread in the others.
        hidden_dim: width of the three hidden layers.
        condition_dim: width to which the condition is mapped.
        steps: Heun steps of a sample, with two evaluations of the network each.
        ema: decay of the running average of the weights.
        learning_rate, weight_decay: learning rate and weight decay of AdamW.
        batch_size: rows per optimiser step, of all classes together.
        calibrate: move the samples of known classes to their moments.
    """

    kind: ClassVar[str] = "flow"
    counters: ClassVar[tuple[str, ...]] = ("epoch", "updates")

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
        super().__init__(input_dim, visual_dim, sequence_length, reduced_dim, whiten, calibrate, batch_size, ema)
        at_least_one(hidden_dim=hidden_dim, steps=steps, batch_size=batch_size)
        self.hidden_dim = hidden_dim
        self.steps = steps
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.network = _Velocity(self.reduced_dim, visual_dim, hidden_dim, condition_dim)
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        self.updates = 0

    @property
    def dimensions(self) -> dict[str, int]:
        """See `Generator.dimensions`."""
        return super().dimensions | {"hidden_dim": self.hidden_dim, "reduced_dim": self.reduced_dim}

    def _train_reduced(self, data: TrainingData) -> list[EpochLosses]:
        directions = self.directions(self.conditions)[data.labels]
        errors = data.x.new_zeros(data.epochs, len(data.x))
        for epoch, batches in enumerate(self._shuffled(data)):
            for batch in batches:
                errors[epoch, batch] = self._step(data.x[batch], directions[batch], data.noise, data.random)
        return _losses(errors, data.labels, data.names)

    def _step(self, rows: Tensor, directions: Tensor, noise: float, random: torch.Generator) -> Tensor:
        """One optimiser step; the (B,) squared errors, detached."""
        optimiser = self.get_optimiser()
        start = normal_like(rows, random)
        time = uniform((len(rows), 1), rows, random)
        noisy = rows + noise * normal_like(rows, random) if noise > 0 else rows
        velocity = self.network((1 - time) * start + time * noisy, time, self.network.condition(directions))
        error = (velocity - (rows - start)).square().mean(dim=1)
        optimiser.zero_grad(set_to_none=True)
        error.mean().backward()
        optimiser.step()
        self.updates += 1
        # At first the average follows more closely: otherwise it would keep much of the random first weights.
        update_average(self.averaged, self.network, min(self.ema, self.updates / (9 + self.updates)))
        squared: Tensor = error.detach()
        return squared

    def _draw_reduced(self, directions: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        del labels
        z = normal((len(directions), self.reduced_dim), directions, random)
        condition = self.averaged.condition(directions)

        def velocity(z: Tensor, time: float) -> Tensor:
            out: Tensor = self.averaged(z, z.new_full((len(z), 1), time), condition)
            return out

        times = torch.linspace(0, 1, self.steps + 1, device=z.device).tolist()
        for now, then in pairwise(times):
            first = velocity(z, now)
            second = velocity(z + (then - now) * first, then)
            z = z + (then - now) * 0.5 * (first + second)
        return z

    def _new_optimisers(self) -> dict[str, Adam]:
        weights = self.network.parameters()
        return {"optimiser": AdamW(weights, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)}


class _Velocity(nn.Module):
    """The velocity of (B, k) points at a time and under a condition."""

    def __init__(self, width: int, visual_dim: int, hidden: int, condition_dim: int) -> None:
        super().__init__()
        self.condition = nn.Linear(visual_dim, condition_dim)
        inputs = width + condition_dim + TIME_DIM
        self.layers = perceptron(inputs, hidden, hidden, hidden, width, activation=nn.SiLU())

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
