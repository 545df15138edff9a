"""Builds from the settings what the server and all sites share: class prompts, adapters, and their training.

Pooled training uses it, too, so that its result is an upper bound for the same model. Every message to a deployed site
imports this module, so it must not import what only the server needs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fed_a2v.config.schema import Settings
from fed_a2v.core.adapters import Adapters, ClassPrompts
from fed_a2v.core.losses import AdapterLoss, AdapterLossWeights
from fed_a2v.core.seeding import seed_for
from fed_a2v.core.training import AdamWSettings, epoch_steps
from fed_a2v.data.selection import unseen_classes
from fed_a2v.encoders.text import targets_for
from fed_a2v.errors import ConfigError


def prompt_set(settings: Settings, classes: Sequence[str], cache: Path | None = None) -> ClassPrompts:
    """The class prompts that the adapters are trained towards, on the device of the settings; see `targets_for`."""
    targets = targets_for(settings, classes, cache)
    device = torch_device(settings.device)
    return ClassPrompts(targets.names, targets.clip.to(device), None if targets.t5 is None else targets.t5.to(device))


def torch_device(name: str) -> torch.device:
    """The device, configured to give the same bits in every run.

    Raises:
        ConfigError: this machine or this build of torch does not have the device.
    """
    try:
        device = torch.empty(0, device=name).device
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(f"device={name}: {str(error).splitlines()[0]}; device=cpu runs everywhere") from error
    if device.type == "cuda":
        # By default a GPU adds the terms of a sum in an arbitrary order, which changes the rounding.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.set_deterministic_debug_mode("warn")
    return device


def new_adapters(settings: Settings, prompts: ClassPrompts, audio_width: int) -> Adapters:
    """Untrained adapters on the device of the settings; the caller seeds or loads their weights."""
    shape = settings.adapters
    adapters = Adapters(audio_width, prompts, shape.hidden_width, shape.closed_form)
    return adapters.to(torch_device(settings.device))


def seeded_adapters(settings: Settings, prompts: ClassPrompts, audio_width: int) -> Adapters:
    """`new_adapters` with weights from the seed; the state of torch's global generator does not change."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(settings.seed, "adapters"))
        return new_adapters(settings, prompts, audio_width)


def training_loss(settings: Settings, prompts: ClassPrompts) -> AdapterLoss:
    """The loss for training on clips: `adapter_loss` in which unseen classes are no negatives."""
    return adapter_loss(settings, prompts, unseen_mask(settings, prompts.names))


def site_optimiser(settings: Settings) -> AdamWSettings:
    """Settings of the optimiser for training on clips."""
    return AdamWSettings(settings.site.learning_rate, settings.site.weight_decay, settings.site.batch_size)


def more_steps(settings: Settings, round_number: int) -> int:
    """Optimiser steps of a site in a round in addition to its epochs."""
    return settings.finetune.steps_of(round_number) if settings.site.server_steps else 0


def site_steps(settings: Settings, round_number: int, clips: int) -> int:
    """All optimiser steps in a round of a site with this many training clips."""
    if settings.adapters.closed_form:
        return 0  # the server solves for the weights
    return epoch_steps(clips, settings.site.epochs, settings.site.batch_size) + more_steps(settings, round_number)


def adapter_loss(settings: Settings, prompts: ClassPrompts, unseen: Tensor | None = None) -> AdapterLoss:
    """The adapter loss of the settings.

    Args:
        settings: settings of the experiment.
        prompts: the class prompts.
        unseen: (C,) mask of unseen classes, which are then no negatives; None: all classes are negatives.
    """
    loss = settings.loss
    weights = AdapterLossWeights(loss.mse, loss.cosine, loss.contrastive, loss.temperature)
    return AdapterLoss(prompts, weights, unseen)


def unseen_mask(settings: Settings, classes: Sequence[str]) -> Tensor:
    """(C,) mask of the classes that no site trains on, on the settings' device."""
    unseen = unseen_classes(settings.dataset, classes)
    return torch.tensor([name in unseen for name in classes], device=settings.device)
