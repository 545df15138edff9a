"""Training of many small VAEs of the same shapes together, which `grouped.py` does.

The weights are stacked, and one batched product per layer takes the place of one product per generator
(`torch.func`). AdamW works element by element, so one optimiser of the stack equals one for each generator.

Shapes: G generators, N rows of each, D = S x Da.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fed_a2v.core.generators.parts.epoch_record import EpochRecord
from fed_a2v.core.generators.vae import ConditionedVAEGenerator, TrainingRows
from fed_a2v.core.losses import VAELossParts, loss_value
from fed_a2v.core.optimisers import AdamW

# Where a VAE stores the running average of a weight, and what AdamW stores for each.
AVERAGE = "averaged.networks."
ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class GroupTask:
    """Training data of one generator: (N, D) rows, their (N,) labels in the group and among all, its random source."""

    member: ConditionedVAEGenerator
    x: Tensor
    labels: Tensor
    all_labels: Tensor
    random: torch.Generator

    @property
    def stage(self) -> tuple[int, int, float]:
        """Numbers of rows, past epochs and past steps: generators can train together if all three are equal."""
        steps = next((float(state["step"]) for state in self.member.get_optimiser().state.values()), 0.0)
        return len(self.x), self.member.epoch, steps


class _BatchLoss(nn.Module):
    """The loss of a generator's batch as a module, so that `functional_call` can replace its weights."""

    def __init__(self, generator: ConditionedVAEGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, *parts: Tensor) -> Tensor | VAELossParts:
        *rows, latent_noise = parts
        return self.generator.batch_loss(TrainingRows(*rows), latent_noise)


class _Stack:
    """The weights, the linear part and the optimiser of G generators, as one tensor (G, ...) each.

    Matrices are transposed in memory, so that batched products and their gradients need no copies.
    """

    def __init__(self, members: Sequence[ConditionedVAEGenerator]) -> None:
        self.members = members
        first = members[0]
        all_names = dict(first.named_parameters())
        trained = [name for name, parameter in all_names.items() if parameter.requires_grad]
        self.weights = {name: self._gather(name).requires_grad_() for name in trained}
        fixed = [
            name for name, _ in first.named_buffers() if name in ("linear.loadings", "linear.rest", "linear.loudness")
        ]
        self.fixed = {name: torch.stack([member.get_buffer(name) for member in members]) for name in fixed}
        self.averages = {name: self._gather(AVERAGE + name) for name in trained if AVERAGE + name in all_names}
        self.optimiser = AdamW(
            self.weights.values(), lr=first.learning_rate, weight_decay=first.weight_decay, fused=True
        )
        for name, weight in self.weights.items():
            states = [member.get_optimiser().state[member.get_parameter(name)] for member in members]
            if states[0]:
                moments = {part: _stacked(state[part] for state in states) for part in ADAM_MOMENTS}
                self.optimiser.state[weight] = {"step": states[0]["step"].clone(), **moments}

    def losses(self, loss: _BatchLoss, *batch: Tensor) -> Tensor | VAELossParts:
        """The loss of each generator on its own part of `batch`, (G, ...) each."""

        def own_loss(weights: dict[str, Tensor], fixed: dict[str, Tensor], *part: Tensor) -> Tensor | VAELossParts:
            own = {f"generator.{name}": _turned(weight) for name, weight in weights.items()}
            own |= {f"generator.{name}": buffer for name, buffer in fixed.items()}
            result: Tensor | VAELossParts = functional_call(loss, own, part)
            return result

        losses: Tensor | VAELossParts = vmap(own_loss)(self.weights, self.fixed, *batch)
        return losses

    def step(self, loss: Tensor | VAELossParts) -> None:
        """One optimiser step of every generator, on its own loss."""
        self.optimiser.zero_grad(set_to_none=True)
        loss_value(loss).sum().backward()
        self.optimiser.step()
        with torch.no_grad():
            for name, average in self.averages.items():
                average.lerp_(self.weights[name], 1 - self.members[0].ema)

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the weights and the optimiser's state to every generator."""
        for number, member in enumerate(self.members):
            optimiser = member.get_optimiser()
            for name, weight in self.weights.items():
                parameter = member.get_parameter(name)
                parameter.copy_(_turned(weight[number]))
                if state := self.optimiser.state[weight]:
                    moments = {part: torch.empty_like(parameter) for part in ADAM_MOMENTS}
                    for part, moment in moments.items():
                        moment.copy_(_turned(state[part][number]))
                    optimiser.state[parameter] = {"step": state["step"].clone(), **moments}
            for name, average in self.averages.items():
                member.get_parameter(AVERAGE + name).copy_(_turned(average[number]))

    def _gather(self, name: str) -> Tensor:
        return _stacked(member.get_parameter(name) for member in self.members)


def train_together(tasks: Sequence[GroupTask], noise: float, records: Sequence[EpochRecord]) -> None:
    """Train the tasks' generators, all at the same stage, for an epoch for each of `records`."""
    members = [task.member for task in tasks]
    randoms = [task.random for task in tasks]
    parts = [task.member.prepare(task.x, task.labels) for task in tasks]
    rows_of_all = TrainingRows(*(torch.stack(part) for part in zip(*parts, strict=True)))
    labels = torch.stack([task.all_labels for task in tasks])
    each = torch.arange(len(tasks), device=labels.device).unsqueeze(1)
    first = members[0]
    if first.condition_map is None:
        rows_of_all = rows_of_all._replace(directions=rows_of_all.directions[..., :0])  # not used
    for member in members:
        member.train()
    stack, batch_loss = _Stack(members), _BatchLoss(first)
    for record in records:
        orders = [torch.randperm(labels.shape[1], generator=random, device=random.device) for random in randoms]
        for batch in torch.stack(orders).to(labels.device).split(first.batch_size, dim=1):
            rows = TrainingRows(*(part[each, batch] for part in rows_of_all))
            if noise > 0:
                inputs = rows.encoder_input
                rows = rows._replace(encoder_input=inputs + noise * _normals(inputs.shape[1:], inputs, randoms))
            latent_noise = _normals((batch.shape[1], first.latent_dim), rows.target, randoms)
            loss = stack.losses(batch_loss, *rows, latent_noise)
            stack.step(loss)
            record.add(loss, labels[each, batch])
        for member in members:
            member.epoch += 1
    stack.write_back()
    for member in members:
        member.eval()


def _stacked(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([_turned(tensor.detach()) for tensor in tensors])


def _turned(tensor: Tensor) -> Tensor:
    """A matrix transposed, anything else as it is."""
    return tensor.T if tensor.dim() == 2 else tensor


def _normals(shape: tuple[int, ...], like: Tensor, randoms: Sequence[torch.Generator]) -> Tensor:
    """(G, ...) standard normal numbers, each part from the random source of its generator."""
    out = torch.empty(len(randoms), *shape, dtype=like.dtype, device=randoms[0].device)
    for part, random in zip(out, randoms, strict=True):
        part.normal_(generator=random)
    return out.to(like.device)
