"""Training loops of the adapters.

`train_epochs` is called by sites and by `fed-a2v compare`, `train_steps` by the server step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from fed_a2v.core.adapters import AdapterOutput, Adapters
from fed_a2v.core.losses import AdapterLoss
from fed_a2v.core.optimisers import AdamW


@dataclass(frozen=True)
class AdamWSettings:
    """Settings of the adapters' optimiser, whose state starts from zero in every call, as averaging moves the weights.

    Attributes:
        learning_rate: learning rate of AdamW.
        weight_decay: decoupled weight decay of AdamW.
        batch_size: rows of an optimiser step.
        chunk_size: rows of one forward pass; 0: the whole batch. The accumulated gradients are the same except for
            rounding, in less memory: 64 rows of T5 outputs, 17 x 4096, take 18 MB for each copy.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 32
    chunk_size: int = 0


class Mixture(NamedTuple):
    """Real and synthetic rows, with a fixed share of synthetic ones in every batch.

    Attributes:
        synthetic: (N,) mask of the synthetic rows.
        share: their share of a batch, between 0 and 1.
    """

    synthetic: Tensor
    share: float


class SyntheticRows(NamedTuple):
    """(N, S, Da) samples with their (N,) labels, and separate samples of the same rows' classes for the T5 adapter."""

    audio: Tensor
    labels: Tensor
    t5_audio: Tensor | None


class TrainingRows(NamedTuple):
    """Rows to train the adapters on.

    Attributes:
        audio: (N, S, Da).
        labels: (N,) class indices.
        mixture: which rows are synthetic; None if rows are of one kind.
        t5_audio: (N, S, Da) inputs of the T5 adapter if it has separate samples.
    """

    audio: Tensor
    labels: Tensor
    mixture: Mixture | None
    t5_audio: Tensor | None


def mixed_rows(audio: Tensor, labels: Tensor, synthetic: SyntheticRows | None, share: float) -> TrainingRows:
    """Real and synthetic rows together.

    Args:
        audio: (N, S, Da) real rows.
        labels: (N,).
        synthetic: synthetic rows, with the same numbering of labels, or None.
        share: share of the synthetic rows in every batch; 1: the synthetic rows alone.
    """
    if synthetic is None:
        return TrainingRows(audio, labels, None, None)
    if share == 1:
        return TrainingRows(synthetic.audio, synthetic.labels, None, synthetic.t5_audio)
    is_synthetic = torch.arange(len(labels) + len(synthetic.labels), device=labels.device) >= len(labels)
    return TrainingRows(
        torch.cat([audio, synthetic.audio]),
        torch.cat([labels, synthetic.labels]),
        Mixture(is_synthetic, share),
        None if synthetic.t5_audio is None else torch.cat([audio, synthetic.t5_audio]),
    )


@dataclass(frozen=True)
class TrainingTask:
    """What a site trains on.

    Attributes:
        adapters: the global adapters; training changes their weights.
        audio: (N, S, Da).
        labels: (N,) index into the class prompts.
        epochs: passes over the clips.
        random: source of the shuffling.
        more_steps: optimiser steps after the epochs, on the batches of further epochs.
    """

    adapters: Adapters
    audio: Tensor
    labels: Tensor
    epochs: int
    random: torch.Generator
    more_steps: int = 0

    def steps(self, batch_size: int) -> int:
        """Number of optimiser steps."""
        return epoch_steps(len(self.audio), self.epochs, batch_size) + self.more_steps

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """The row indices of each step, in batches over the shuffled rows."""
        return islice(self._passes(batch_size), self.steps(batch_size))

    def _passes(self, batch_size: int) -> Iterator[Tensor]:
        """Batch after batch, in a new order in each pass over the rows, without end."""
        while True:
            order = torch.randperm(len(self.audio), generator=self.random, device=self.random.device)
            yield from order.to(self.audio.device).split(batch_size)


def train_epochs(
    adapters: Adapters,
    audio: Tensor,
    labels: Tensor,
    loss: AdapterLoss,
    epochs: int,
    optimiser: AdamWSettings,
    random: torch.Generator,
    proximal: float = 0.0,
    more_steps: int = 0,
) -> dict[str, float]:
    """Train on a site's own clips, in batches over its shuffled classes.

    Args:
        adapters: changed in place.
        audio: (N, S, Da).
        labels: (N,) index into the class prompts.
        loss: loss of the adapters.
        epochs: passes over the clips.
        optimiser: settings of AdamW.
        random: source of the shuffling.
        proximal: weight of FedProx's term, proximal / 2 * |w - w_global|^2 (Li et al. 2020).
        more_steps: optimiser steps after the epochs, on the batches of further epochs.

    Returns:
        Mean loss of the last epoch's steps, under `loss`, and its parts.
    """
    batches = TrainingTask(adapters, audio, labels, epochs, random, more_steps).batches(optimiser.batch_size)
    history = _train(adapters, (audio,), labels, loss, None, labels, optimiser, batches, proximal)
    return _mean(history[-epoch_steps(len(audio), 1, optimiser.batch_size) :])


def epoch_steps(clips: int, epochs: int, batch_size: int) -> int:
    """Number of optimiser steps of `epochs` passes over `clips` clips; the last batch of a pass may be smaller."""
    return epochs * -(-clips // batch_size)


def train_steps(
    adapters: Adapters,
    audio: Tensor,
    labels: Tensor,
    loss: AdapterLoss,
    steps: int,
    optimiser: AdamWSettings,
    random: torch.Generator,
    targets: AdapterOutput | None = None,
    one_target_a_row: bool = False,
    mixture: Mixture | None = None,
    t5_audio: Tensor | None = None,
) -> dict[str, float]:
    """Train for a fixed number of optimiser steps on rows balanced over the classes.

    The number of steps, not of epochs, is fixed: otherwise more rows would mean more training, and settings would not
    be comparable.

    Args:
        adapters: changed in place.
        audio: (N, S, Da).
        labels: (N,) index into the class prompts.
        loss: loss of the adapters.
        steps: number of optimiser steps.
        optimiser: settings of AdamW.
        random: source of the order of the rows.
        targets: (C, T, D) each, targets of MSE and cosine; default: the class prompts.
        one_target_a_row: `targets` are (N, T, D), one for each row instead of each class.
        mixture: which rows are synthetic, and their share of every batch; default: no distinction.
        t5_audio: (N, S, Da) of the same classes, inputs of the T5 adapter; default: `audio`.

    Returns:
        Mean loss over all steps, under `loss`, and its parts.
    """
    number = steps * optimiser.batch_size
    order = balanced_order(labels, number, random) if mixture is None else mixed_order(labels, mixture, number, random)
    batches = iter(order.split(optimiser.batch_size))
    target_rows = torch.arange(len(audio), device=audio.device) if one_target_a_row else labels
    inputs = (audio,) if t5_audio is None else (audio, t5_audio)
    return _mean(_train(adapters, inputs, labels, loss, targets, target_rows, optimiser, batches, 0.0))


def balanced_order(labels: Tensor, number: int, random: torch.Generator) -> Tensor:
    """`number` row indices with every class equally often, and the rows of a class equally often.

    Each pass has every class once, in random order, and every row of a class is used before any is repeated. So rare
    classes count as much as common ones, and no row is left out while another repeats.
    """
    classes = labels.unique().cpu()
    passes = -(-number // len(classes))
    columns = [_cycle(torch.nonzero(labels.cpu() == label).flatten(), passes, random) for label in classes]
    table = torch.stack(columns, dim=1)
    within = torch.rand(table.shape, generator=random).argsort(dim=1)
    return table.gather(1, within).flatten()[:number].to(labels.device)


def mixed_order(labels: Tensor, mixture: Mixture, number: int, random: torch.Generator) -> Tensor:
    """`balanced_order` with a fixed share of synthetic rows, whatever the numbers of real and synthetic rows.

    The share is kept to within one row in every run of successive rows, so in every batch, and in the rows of each
    class. As in `balanced_order`, each pass has every class once, so the classes take turns to give a synthetic row.
    Every row of a class and kind is used before any is repeated; a class with one kind only always gives that.
    """
    device, labels, synthetic = labels.device, labels.cpu(), mixture.synthetic.cpu()
    classes = labels.unique()
    passes, size = -(-number // len(classes)), len(classes)
    # Positions in the order that are synthetic, evenly spaced. Both the positions and the turns of the classes follow
    # from this one product, so they agree however it is rounded.
    due = (torch.arange(passes * size + 1, dtype=torch.float64) * mixture.share + 1e-9).floor()
    is_synthetic = due.diff().bool().view(passes, size)
    places = torch.nonzero(is_synthetic.flatten()).flatten()
    turn = torch.zeros(passes, size, dtype=torch.bool)
    turn[places // size, torch.arange(len(places)) % size] = True
    # The classes of a pass in random order, but those whose turn it is at the synthetic positions.
    chosen = (torch.rand(passes, size, generator=random) - turn.float()).argsort(dim=1)
    class_at = torch.empty_like(chosen).scatter_(1, (~is_synthetic).int().argsort(dim=1, stable=True), chosen)
    order = torch.empty(passes, size, dtype=torch.int64)
    for class_number, label in enumerate(classes):
        of_class = labels == label
        for kind in (False, True):
            positions = (class_at == class_number) & (is_synthetic == kind)
            rows = torch.nonzero(of_class & (synthetic == kind)).flatten()
            rows = rows if len(rows) else torch.nonzero(of_class).flatten()
            order[positions] = _cycle(rows, int(positions.sum()), random)
    return order.flatten()[:number].to(device)


def _cycle(rows: Tensor, number: int, random: torch.Generator) -> Tensor:
    """`number` of the (N,) `rows`, in random order, each before any is repeated."""
    passes = -(-number // len(rows))
    return torch.cat([rows[:0], *(rows[torch.randperm(len(rows), generator=random)] for _ in range(passes))])[:number]


@torch.no_grad()
def loss_on(adapters: Adapters, audio: Tensor, labels: Tensor, loss: AdapterLoss, chunk_size: int = 0) -> float:
    """Mean loss of all rows, without training, in forward passes of `chunk_size` rows (0: all)."""
    parts = torch.arange(len(audio), device=audio.device).split(chunk_size or len(audio))
    return sum(float(loss(adapters(audio[part]), labels[part])[0]) * len(part) for part in parts) / len(audio)


@torch.no_grad()
def mean_outputs(adapters: Adapters, audio: Tensor, labels: Tensor) -> dict[int, AdapterOutput]:
    """Mean adapter output over the rows of each class: clip (Tc, Dc), t5 (T, Dt) or None."""
    means = {}
    for label in labels.unique().tolist():
        clip, t5 = adapters(audio[labels == label])
        means[label] = AdapterOutput(clip.mean(dim=0), None if t5 is None else t5.mean(dim=0))
    return means


def _train(
    adapters: Adapters,
    inputs: tuple[Tensor, ...],
    labels: Tensor,
    loss: AdapterLoss,
    targets: AdapterOutput | None,
    target_rows: Tensor,
    settings: AdamWSettings,
    batches: Iterator[Tensor],
    proximal: float,
) -> list[dict[str, Tensor]]:
    """Train on `batches` of row indices; returns the loss and its parts for each optimiser step."""
    parameters = list(adapters.parameters())
    # FedProx pulls towards the weights at the start, which are the global ones.
    initial = [parameter.detach().clone() for parameter in parameters] if proximal else []
    optimiser = AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    history = []
    adapters.train()
    for batch in batches:
        optimiser.zero_grad(set_to_none=True)
        means: dict[str, Tensor] = {}
        for part in batch.split(settings.chunk_size or len(batch)):
            expected = None if targets is None else targets.index_select(target_rows[part])
            total, parts = loss(adapters(*(audio[part] for audio in inputs)), labels[part], expected)
            share = len(part) / len(batch)
            (share * total).backward()
            for name, value in {"loss": total.detach(), **parts}.items():
                means[name] = means[name] + share * value if name in means else share * value
        if proximal:
            distance = torch.stack([(p - a).square().sum() for p, a in zip(parameters, initial, strict=True)]).sum()
            (0.5 * proximal * distance).backward()
        optimiser.step()
        history.append(means)
    adapters.eval()
    return history


def _mean(history: list[dict[str, Tensor]]) -> dict[str, float]:
    return {name: float(torch.stack([entry[name] for entry in history]).mean()) for name in history[0]}
