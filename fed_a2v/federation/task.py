"""What the server and every site must have alike: the class prompts, and the loss that adapters are trained with.

A site loads this for every message, so it comes without what only the server needs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fed_a2v.core.adapters import PromptSet
from fed_a2v.core.losses import AdapterLoss, AdapterLossWeights
from fed_a2v.data.clips import unseen_classes
from fed_a2v.encoders.text import targets_for
from fed_a2v.settings import ConfigError, Settings


def prompt_set(settings: Settings, classes: Sequence[str], cache: Path | None = None) -> PromptSet:
    """The class prompts in the shapes that the adapters need, on the settings' device; see `targets_for`."""
    targets = targets_for(settings, classes, cache)
    device = torch_device(settings.device)
    return PromptSet(targets.names, targets.clip.to(device), None if targets.t5 is None else targets.t5.to(device))


def torch_device(name: str) -> torch.device:
    """The device, set to give the same bits each time.

    Raises:
        ConfigError: this machine, or this build of torch, has none.
    """
    try:
        device = torch.empty(0, device=name).device
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(f"device={name}: {str(error).splitlines()[0]}; device=cpu runs everywhere") from error
    if device.type == "cuda":
        # Sums that many threads add to come out of a GPU in another order each time, unless it is asked.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.set_deterministic_debug_mode("warn")
    return device


def adapter_loss(settings: Settings, prompts: PromptSet, unseen: Tensor | None = None) -> AdapterLoss:
    """The adapter loss that the settings describe, for training where `unseen` masks the unrecorded classes."""
    loss = settings.loss
    weights = AdapterLossWeights(loss.mse, loss.cosine, loss.contrastive, loss.temperature)
    return AdapterLoss(prompts, weights, unseen)


def unseen_mask(settings: Settings, classes: Sequence[str]) -> Tensor:
    """(C,) mask of the classes that no site trains on, on the settings' device."""
    unseen = unseen_classes(settings.dataset, classes)
    return torch.tensor([name in unseen for name in classes], device=settings.device)
