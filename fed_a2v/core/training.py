"""Training of the adapters: at a site, on the server, and pooled (the upper bound)."""

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
    """The optimiser of the adapters. It starts anew with every call: averaging has moved the weights.

    Attributes:
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        batch_size: rows of an optimiser step.
        chunk_size: rows that go through the adapters at once; 0: the whole batch. The gradients add up to the same,
            but for rounding, in less memory: 64 rows of T5 outputs, 17 x 4096, take 18 MB for each copy.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 32
    chunk_size: int = 0


class Mixture(NamedTuple):
    """Rows of two kinds, of which every batch holds a fixed share of the second.

    Attributes:
        synthetic: (N,) mask of the second kind.
        share: of a batch, between 0 and 1.
    """

    synthetic: Tensor
    share: float


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
        loss: of the adapters.
        epochs: passes over the clips.
        optimiser: its settings.
        random: source of the shuffling.
        proximal: weight of FedProx's term, proximal / 2 * |w - w_global|^2 (Li et al. 2020).
        more_steps: optimiser steps that follow on the epochs, in the order of further epochs.

    Returns:
        Mean loss of the last epoch's steps, under `loss`, and its parts.
    """

    def batches() -> Iterator[Tensor]:
        while True:
            order = torch.randperm(len(audio), generator=random, device=random.device)
            yield from order.to(audio.device).split(optimiser.batch_size)

    drawn = islice(batches(), epoch_steps(len(audio), epochs, optimiser.batch_size) + more_steps)
    history = _train(adapters, (audio,), labels, loss, None, labels, optimiser, drawn, proximal)
    return _mean(history[-epoch_steps(len(audio), 1, optimiser.batch_size) :])


def epoch_steps(clips: int, epochs: int, batch_size: int) -> int:
    """Optimiser steps of passes over so many clips; a batch may be smaller than the others, no clip is left out."""
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

    Comparisons count steps, not epochs: more rows would otherwise mean more training, which helps by itself.

    Args:
        targets: (C, T, D) each, what MSE and cosine pull to; default: the class prompts.
        one_target_a_row: `targets` are (N, T, D), one for each row instead of each class.
        mixture: which rows are synthetic, and their share of every batch; default: rows are rows.
        t5_audio: (N, S, Da) of the same classes, what the T5 adapter learns from; default: `audio`.

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
    """`number` row indices in which every class comes equally often, and its rows equally often within it.

    The order runs in rounds: each round draws every class once, and every row of a class is drawn before any
    is drawn again. So rare classes weigh as much as common ones and no row is left out while another repeats.
    """
    classes = labels.unique().cpu()
    rounds = -(-number // len(classes))
    columns = []
    for label in classes:
        columns.append(_dealt(torch.nonzero(labels.cpu() == label).flatten(), rounds, random))
    table = torch.stack(columns, dim=1)
    within = torch.rand(table.shape, generator=random).argsort(dim=1)
    return table.gather(1, within).flatten()[:number].to(labels.device)


def mixed_order(labels: Tensor, mixture: Mixture, number: int, random: torch.Generator) -> Tensor:
    """`balanced_order` in which the share of synthetic rows is kept as well, however many rows there are of either.

    Of any rows in succession, so of every batch, the share is synthetic to within a row; so it is of each class's
    draws. Each round still draws every class once: the classes take turns at giving a synthetic row. Of a class's rows
    of either kind every one is drawn before any is drawn again; a class that has one kind alone gives that.
    """
    device, labels, synthetic = labels.device, labels.cpu(), mixture.synthetic.cpu()
    classes = labels.unique()
    rounds, size = -(-number // len(classes)), len(classes)
    # The same product decides on a place and on a turn: what it is rounded to, they agree.
    due = (torch.arange(rounds * size + 1, dtype=torch.float64) * mixture.share + 1e-9).floor()
    drawn = due.diff().bool().view(rounds, size)
    places = torch.nonzero(drawn.flatten()).flatten()
    turn = torch.zeros(rounds, size, dtype=torch.bool)
    turn[places // size, torch.arange(len(places)) % size] = True
    # Random classes, those whose turn it is on the places of synthetic rows.
    chosen = (torch.rand(rounds, size, generator=random) - turn.float()).argsort(dim=1)
    who = torch.empty_like(chosen).scatter_(1, (~drawn).int().argsort(dim=1, stable=True), chosen)
    order = torch.empty(rounds, size, dtype=torch.int64)
    for number_of_class, label in enumerate(classes):
        of_class = labels == label
        for kind in (False, True):
            there = (who == number_of_class) & (drawn == kind)
            rows = torch.nonzero(of_class & (synthetic == kind)).flatten()
            rows = rows if len(rows) else torch.nonzero(of_class).flatten()
            order[there] = _dealt(rows, int(there.sum()), random)
    return order.flatten()[:number].to(device)


def _dealt(rows: Tensor, number: int, random: torch.Generator) -> Tensor:
    """`number` of the (N,) `rows`, at random, each before any is drawn again."""
    passes = -(-number // len(rows))
    return torch.cat([rows[:0], *(rows[torch.randperm(len(rows), generator=random)] for _ in range(passes))])[:number]


@torch.no_grad()
def loss_on(adapters: Adapters, audio: Tensor, labels: Tensor, loss: AdapterLoss, chunk_size: int = 0) -> float:
    """The mean loss of all rows, without training; `chunk_size` rows at once, or all (0)."""
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
    parameters = list(adapters.parameters())
    anchor = [parameter.detach().clone() for parameter in parameters] if proximal else []
    optimiser = AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    history = []
    adapters.train()
    for batch in batches:
        optimiser.zero_grad(set_to_none=True)
        means: dict[str, Tensor] = {}
        for part in batch.split(settings.chunk_size or len(batch)):
            wanted = None if targets is None else targets.take(target_rows[part])
            total, parts = loss(adapters(*(audio[part] for audio in inputs)), labels[part], wanted)
            share = len(part) / len(batch)
            (share * total).backward()
            for name, value in {"loss": total.detach(), **parts}.items():
                means[name] = means[name] + share * value if name in means else share * value
        if proximal:
            pull = torch.stack([(p - a).square().sum() for p, a in zip(parameters, anchor, strict=True)]).sum()
            (0.5 * proximal * pull).backward()
        optimiser.step()
        history.append(means)
    adapters.eval()
    return history


def _mean(history: list[dict[str, Tensor]]) -> dict[str, float]:
    return {name: float(torch.stack([entry[name] for entry in history]).mean()) for name in history[0]}
