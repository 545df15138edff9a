"""Training of several sites' adapters together: weights in one stack, each layer one batched product.

It is `train_epochs` for G sites with gradients derived by hand: no graph of autograd is recorded, all gradients are
written into one buffer, and one call of AdamW, which works element by element, moves all weights of all sites. The
result differs from that of `train_epochs` by rounding only.

Shapes: G sites, B rows in the largest batch, S audio tokens of width Da; T prompt tokens of width D; H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.adamw import adamw

from fed_a2v.core.adapter_gradients import write_gradients
from fed_a2v.core.adapters import Adapters, PromptAdapter
from fed_a2v.core.losses import TERMS, AdapterLoss
from fed_a2v.core.training import AdamWSettings, TrainingTask, epoch_steps

# Bytes of the sites that train together, their weights, gradients, moments and outputs: enough that the calls of
# functions no longer count.
STACK_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}


def sites_at_once(adapters: Adapters, rows: int) -> int:
    """Number of sites that train together in batches of so many rows, at least one: their memory is `STACK_BYTES`."""
    weights = sum(parameter.numel() for parameter in adapters.parameters())
    # Of the outputs of a side, the loss and its gradient hold about ten copies; the sides follow one another.
    outputs = max(side.centre.numel() for side in (adapters.clip, adapters.t5) if isinstance(side, PromptAdapter))
    kind = next(adapters.parameters()).device.type
    return max(1, STACK_BYTES.get(kind, STACK_BYTES["cpu"]) // (16 * weights + 40 * rows * outputs))


class _Batch(NamedTuple):
    """Rows of one step: (A, B, S, Da) normalised inputs, (A, B) labels and weights of the rows in their site's mean."""

    inputs: Tensor
    labels: Tensor
    weights: Tensor


class StackedAdapters:
    """Buffers for the training of up to G sites; they are used again by the next group of sites.

    Args:
        example: adapters with the shapes, the prompts and the device of all sites.
        sites: G.
    """

    def __init__(self, example: Adapters, sites: int) -> None:
        sizes = [parameter.numel() for parameter in example.parameters()]
        places = [sum(sizes[:number]) for number in range(len(sizes))]
        device = next(example.parameters()).device
        # Weights, gradients, and AdamW's moments: (G, all weights of a site) each.
        self.buffers = [torch.zeros(sites, sum(sizes), device=device) for _ in range(4)]
        self.sites, self.example = sites, example
        self.slices = {
            name: (place, parameter.shape)
            for (name, parameter), place in zip(example.named_parameters(), places, strict=True)
        }

    def train(
        self, tasks: Sequence[TrainingTask], loss: AdapterLoss, optimiser: AdamWSettings, proximal: float = 0.0
    ) -> list[dict[str, float]]:
        """Train the adapters of up to G sites; afterwards their weights are views of the stack.

        Args:
            tasks: of each site, at least one.
            loss: loss of the adapters.
            optimiser: settings of AdamW; `chunk_size` has no effect.
            proximal: see `train_epochs`.

        Returns:
            For each site what `train_epochs` returns.
        """
        size = optimiser.batch_size
        # In order of their numbers of steps: those that still train are the first rows of the stack.
        order = sorted(range(len(tasks)), key=lambda number: -tasks[number].steps(size))
        ordered = [tasks[number] for number in order]
        steps = [task.steps(size) for task in ordered]
        inputs, labels = torch.cat([self._normalised(task) for task in ordered]), torch.cat([t.labels for t in ordered])
        starts = [sum(len(task.audio) for task in ordered[:number]) for number in range(len(ordered))]
        sources = [task.batches(size) for task in ordered]
        weights, _, *moments = (buffer[: len(ordered)] for buffer in self.buffers)
        for row, task in zip(weights, ordered, strict=True):
            torch.cat([parameter.detach().flatten() for parameter in task.adapters.parameters()], out=row)
        initial = weights.clone() if proximal else None
        for moment in moments:
            moment.zero_()
        history = torch.zeros(steps[0], len(ordered), len(TERMS), device=weights.device)
        active, sides = 0, {}
        for step in range(steps[0]):
            if active != (active := sum(number > step for number in steps)):
                sides = {kind: self._side(kind, active) for kind in loss.parts}
            rows = [start + next(source) for start, source in zip(starts[:active], sources, strict=False)]
            batch = _padded(rows, inputs, labels)
            for kind, (own, into) in sides.items():
                of_loss = partial(loss.gradient, kind, labels=batch.labels, weights=batch.weights)
                terms = write_gradients(own, into, getattr(self.example, kind), batch.inputs, of_loss)
                history[step, :active] += terms / len(sides)
            self._move(active, step, optimiser, proximal, initial)
        losses: list[dict[str, float]] = [{} for _ in tasks]
        for place, number in enumerate(order):
            task = tasks[number]
            task.adapters.adopt([view[place] for view in self._views(0, len(tasks)).values()], task.adapters.fixed())
            last = min(steps[place], epoch_steps(len(task.audio), 1, size))
            parts = history[steps[place] - last : steps[place], place].mean(dim=0).tolist()
            total = sum(getattr(loss.weights, name) * value for name, value in zip(TERMS, parts, strict=True))
            losses[number] = {"loss": total, **dict(zip(TERMS, parts, strict=True))}
        return losses

    def _normalised(self, task: TrainingTask) -> Tensor:
        """The inputs without the weights of the adapters' first layer norm, which are the same for both sides."""
        return F.layer_norm(task.adapters.standardised(task.audio), (task.audio.shape[-1],))

    def _views(self, buffer: int, sites: int) -> dict[str, Tensor]:
        """The first rows of a buffer by the names of the weights, (A, ...) each."""
        rows = self.buffers[buffer][:sites]
        return {
            name: rows[:, place : place + shape.numel()].view(sites, *shape)
            for name, (place, shape) in self.slices.items()
        }

    def _side(self, kind: str, sites: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and gradients of the CLIP or T5 adapters of the first sites, by their names in `PromptAdapter`."""
        weights, gradients = (
            {
                name.removeprefix(f"{kind}."): view
                for name, view in self._views(number, sites).items()
                if name.startswith(f"{kind}.")
            }
            for number in (0, 1)
        )
        return weights, gradients

    def _move(self, active: int, step: int, settings: AdamWSettings, proximal: float, initial: Tensor | None) -> None:
        """One step of AdamW for the sites that train."""
        weights, gradients, *moments = (buffer[:active] for buffer in self.buffers)
        if initial is not None:
            gradients.add_(weights - initial[:active], alpha=proximal)
        adamw(
            [weights],
            [gradients],
            [moments[0]],
            [moments[1]],
            [],
            [torch.tensor(float(step), device=weights.device)],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            eps=1e-8,
            maximize=False,
        )


def _padded(rows: Sequence[Tensor], inputs: Tensor, labels: Tensor) -> _Batch:
    """The rows of each site's batch; smaller batches are filled up with rows that have no weight."""
    longest = max(map(len, rows))
    index = torch.stack([F.pad(each, (0, longest - len(each))) for each in rows])
    weights = torch.zeros(index.shape)
    for weight, each in zip(weights, rows, strict=True):
        weight[: len(each)] = 1 / len(each)
    return _Batch(inputs[index], labels[index], weights.to(inputs.device))
