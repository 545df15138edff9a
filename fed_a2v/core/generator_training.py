"""Training of the generator in a round, and the log of its losses; the server step calls it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fed_a2v.core.generators.base import EpochLosses, Generator
from fed_a2v.core.statistics import PrototypeBatch

log = logging.getLogger("fed_a2v")
# A line per class and epoch, which only the log file of the run gets.
class_log = logging.getLogger("fed_a2v.classes")
# Epochs of a round, at most, whose loss is logged class by class.
REPORTED_EPOCHS = 5
# Names of the terms of a VAE's loss in the log, which are those of the guide.
PART_NAMES = {"reconstruction": "Recon", "kl": "KL", "similarity": "Sim"}


def train_generator(
    generator: Generator,
    rows: PrototypeBatch,
    conditions: Tensor,
    epochs: int,
    min_steps: int,
    noise: float,
    random: torch.Generator,
) -> dict[str, float]:
    """Train a generator on prototypes.

    Args:
        generator: changed in place.
        rows: N prototypes of C classes.
        conditions: (C, V), in the order of `rows.names`.
        epochs: passes over the rows.
        min_steps: minimum number of optimiser steps, reached by more epochs: epochs on few rows have too few steps for
            a network.
        noise: see `Generator.fit`.
        random: source of all random draws.

    Returns:
        Mean loss over the epochs, under `server/generator_loss`, and the terms of the last epoch's, under
        `generator/NAME`; empty for a closed form.
    """
    steps = generator.steps_per_epoch(rows)
    if steps and epochs * steps < min_steps:
        log.info(
            "%d epochs on %d rows are %d steps of the generator; epochs are added to reach generator.min_steps=%d",
            epochs,
            len(rows),
            epochs * steps,
            min_steps,
        )
        epochs = math.ceil(min_steps / steps)
    log.info("Training generator for %d epochs with augmentation=%s", epochs, noise > 0)
    history = generator.fit(rows, conditions, epochs, noise, random)
    if not history:
        return {}
    _report_epochs(history, generator.kind.upper())
    average = sum(epoch.total for epoch in history) / len(history)
    log.info("Generator training completed. Average loss: %.4f", average)
    last = history[-1]
    parts = {f"generator/{name}": value for name, value in (*last.parts.items(), *last.critic.items())}
    return {"server/generator_loss": average, **parts}


def _report_epochs(history: Sequence[EpochLosses], kind: str) -> None:
    """Log the loss of evenly spaced epochs up to the last, for each class if known, with the wording of the guide."""
    shown = {round((k + 1) * len(history) / REPORTED_EPOCHS) for k in range(REPORTED_EPOCHS)}
    for number, epoch in enumerate(history, start=1):
        if number in shown:
            for name, parts in epoch.per_class.items():
                loss = _format_loss(kind, sum(parts.values()), parts)
                class_log.info("  Epoch %d Class '%s': %s", number, name, loss)
            if not epoch.per_class:
                class_log.info("  Epoch %d: %s", number, _format_loss(kind, epoch.total, epoch.parts))
            if epoch.critic:
                class_log.info(
                    "  Epoch %d: %s", number, _format_loss("Critic", sum(epoch.critic.values()), epoch.critic)
                )


def _format_loss(of: str, total: float, parts: Mapping[str, float]) -> str:
    """A loss and, in parentheses, the terms that add up to it."""
    terms = ", ".join(
        f"{PART_NAMES.get(name) or name.replace('_', ' ').capitalize()}={value:.4f}" for name, value in parts.items()
    )
    return f"{of} Loss={total:.4f}" + (f" ({terms})" if terms else "")
