"""Builds from the settings what the server and all sites share: class prompts, adapters, and their training.

Pooled training uses it, too, so that its result is an upper bound for the same model. Every message to a deployed site
imports this module, so it must not import what only the server needs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from fed_a2v.config.schema import Settings, cache_dir
from fed_a2v.config.sections.data import DatasetSettings, TargetSettings
from fed_a2v.config.sections.federation import PrivacySettings, SecureSumsSettings
from fed_a2v.config.sections.training import AdapterSettings, FinetuneSettings, LossSettings, SiteSettings
from fed_a2v.core.adapters import Adapters, ClassPrompts
from fed_a2v.core.gaussian_release import Budget, ReleaseNoise
from fed_a2v.core.losses import AdapterLoss, AdapterLossWeights
from fed_a2v.core.public_space import PublicSpace
from fed_a2v.core.seeding import seed_for
from fed_a2v.core.training import AdamWSettings, epoch_steps
from fed_a2v.data.selection import unseen_classes
from fed_a2v.encoders.text import load_targets
from fed_a2v.errors import ConfigError
from fed_a2v.install import install_hint


def release_noise(privacy: PrivacySettings, secure_sums: SecureSumsSettings) -> ReleaseNoise | None:
    """The noise on the sums of one site, or on their total with secure aggregation; None without privacy.

    With secure aggregation each site adds its part, `release_noise(...).shared_by(secure_sums.needed(sites))`.

    Raises:
        ConfigError: the library that computes it is not installed.
    """
    if not privacy.adds_noise:
        return None
    try:
        return Budget(privacy.epsilon, privacy.delta, privacy.level).noise(
            privacy.site_norm or 1.0, privacy.sends_scatter(secure_sums.name == "secagg")
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"privacy=dp needs the package {error.name}, on the server and at the sites: {install_hint('privacy')}"
        ) from error


def prompt_set(settings: Settings, classes: Sequence[str]) -> ClassPrompts:
    """The class prompts that the adapters are trained towards, on the device of the settings; see `load_targets`.

    The server and all sites of a process share them; they must not be modified. A file or folder that the settings name
    is read again if its time changes.
    """
    shapes, targets = settings.adapters, settings.targets
    models = (model.model for model in (targets.clip, targets.t5) if model is not None)
    paths = [Path(name).expanduser() for name in (targets.path, targets.captions, *models) if name]
    times = tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.exists())
    device, cache = torch_device(settings.device), cache_dir(settings.cache_dir)
    return _prompt_set(
        targets.model_dump_json(), tuple(classes), shapes.clip_shape, shapes.t5_shape, cache, device, times
    )


@lru_cache(maxsize=2)
def _prompt_set(
    targets: str,
    classes: tuple[str, ...],
    clip_shape: tuple[int, int | None],
    t5_shape: tuple[int, int] | None,
    cache: Path,
    device: torch.device,
    times: tuple[tuple[int, int], ...],
) -> ClassPrompts:
    del times  # part of the cache's key
    settings = TargetSettings.model_validate_json(targets)
    return load_targets(settings, classes, clip_shape, t5_shape, cache).to(device)


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


def new_adapters(
    shape: AdapterSettings, prompts: ClassPrompts, audio_width: int, space: PublicSpace | None = None
) -> Adapters:
    """Untrained adapters on the device of the prompts; the caller seeds their weights.

    Args:
        shape: shapes of the adapters.
        prompts: the class prompts.
        audio_width: width of the audio embeddings.
        space: public space of `share=statistics`; None with other statistics.
    """
    return Adapters(audio_width, prompts, shape.hidden_width, shape.closed_form, space).to(prompts.clip.device)


def unloaded_adapters(settings: Settings, prompts: ClassPrompts, audio_width: int) -> Adapters:
    """Adapters whose weights are not set; `Adapters.adopt` sets them.

    Every message to a site brings the weights, and to draw initial ones would take longer than to read these.
    """
    shape, space = settings.adapters, empty_space(settings, audio_width)
    return Adapters(audio_width, prompts, shape.hidden_width, shape.closed_form, space, initial=False)


def empty_space(settings: Settings, audio_width: int) -> PublicSpace | None:
    """A public space with the shapes of the settings, to be loaded; None without `share=statistics`."""
    if not settings.shares_sums:
        return None
    columns = settings.projection.columns
    return PublicSpace(torch.zeros(audio_width, columns), torch.zeros(columns))


def seeded_adapters(
    shape: AdapterSettings, prompts: ClassPrompts, audio_width: int, seed: int, space: PublicSpace | None = None
) -> Adapters:
    """`new_adapters` with weights from the seed; the state of torch's global generator does not change."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(seed, "adapters"))
        return new_adapters(shape, prompts, audio_width, space)


def adapter_loss(loss: LossSettings, prompts: ClassPrompts, unseen: Tensor | None = None) -> AdapterLoss:
    """The adapter loss.

    Args:
        loss: weights of its terms.
        prompts: the class prompts.
        unseen: (C,) mask of unseen classes, which are then no negatives, as in training; None: all classes are.
    """
    weights = AdapterLossWeights(loss.mse, loss.cosine, loss.contrastive, loss.temperature)
    return AdapterLoss(prompts, weights, unseen)


def unseen_mask(dataset: DatasetSettings, prompts: ClassPrompts) -> Tensor:
    """(C,) mask of the classes that no site trains on, on the device of the prompts."""
    unseen = unseen_classes(dataset, prompts.names)
    return torch.tensor([name in unseen for name in prompts.names], device=prompts.clip.device)


def site_optimiser(site: SiteSettings) -> AdamWSettings:
    """Settings of the optimiser for training on clips."""
    return AdamWSettings(site.learning_rate, site.weight_decay, site.batch_size)


def more_steps(site: SiteSettings, finetune: FinetuneSettings, round_number: int) -> int:
    """Optimiser steps of a site in a round in addition to its epochs."""
    return finetune.steps_of(round_number) if site.server_steps else 0


def site_steps(
    shape: AdapterSettings, site: SiteSettings, finetune: FinetuneSettings, round_number: int, clips: int
) -> int:
    """All optimiser steps in a round of a site with this many training clips."""
    if shape.closed_form:
        return 0  # the server solves for the weights
    return epoch_steps(clips, site.epochs, site.batch_size) + more_steps(site, finetune, round_number)
