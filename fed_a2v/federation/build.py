"""From settings to the parts of a federation: the one place that every engine uses."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from hydra.utils import get_class, instantiate

from fed_a2v.config import ConfigError, GeneratorSettings, Settings
from fed_a2v.core.adapters import Adapters, PromptSet
from fed_a2v.core.generators.base import Generator
from fed_a2v.core.losses import AdapterLoss, AdapterLossWeights
from fed_a2v.core.seeding import seed_for
from fed_a2v.core.server_step import ServerStep, ServerStepSettings
from fed_a2v.core.training import AdamWSettings
from fed_a2v.encoders.text import load_targets


def make_step(settings: Settings, prompts: PromptSet, audio_shape: tuple[int, int]) -> ServerStep:
    """The server step with freshly seeded adapters and generator, for embeddings of shape (S, Da)."""
    device = torch.device(settings.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(settings.seed, "adapters"))
        adapters = Adapters(audio_shape[1], prompts, settings.adapters.hidden_width).to(device)
    generator = make_generator(settings, audio_shape, prompts.clip.shape[-1])
    return ServerStep(
        adapters,
        prompts,
        None if generator is None else generator.to(device),
        adapter_loss(settings, prompts),
        _step_settings(settings),
    )


def make_generator(settings: Settings, audio_shape: tuple[int, int], visual_dim: int) -> Generator | None:
    """The generator that the settings describe, for embeddings (S, Da) and conditions of width `visual_dim`.

    Raises:
        ConfigError: its class does not know one of the keys, or refuses a value.
    """
    generator = settings.generator
    if generator.target is None:
        return None
    _check_arguments(generator)
    tokens, width = audio_shape
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(settings.seed, "generator"))
        try:
            made = instantiate(
                {"_target_": generator.target, **generator.arguments},
                input_dim=width,
                visual_dim=visual_dim,
                sequence_length=tokens,
                _convert_="all",
            )
        except Exception as error:
            cause = error.__cause__ or error
            raise ConfigError(f"generator={generator.name}: {cause}") from error
    assert isinstance(made, Generator)
    return made


def prompt_set(settings: Settings, classes: Sequence[str]) -> PromptSet:
    """The class prompts in the shapes that the adapters need, on the settings' device."""
    adapters = settings.adapters
    targets = load_targets(
        settings.targets,
        classes,
        (adapters.clip_tokens, adapters.clip_width),
        (adapters.t5_tokens, adapters.t5_width) if adapters.t5_tokens else None,
    )
    device = torch.device(settings.device)
    return PromptSet(targets.names, targets.clip.to(device), None if targets.t5 is None else targets.t5.to(device))


def adapter_loss(settings: Settings, prompts: PromptSet) -> AdapterLoss:
    """The adapter loss that the settings describe."""
    loss = settings.loss
    return AdapterLoss(prompts, AdapterLossWeights(loss.mse, loss.cosine, loss.contrastive, loss.temperature))


def _step_settings(settings: Settings) -> ServerStepSettings:
    generator, finetune = settings.generator, settings.finetune
    return ServerStepSettings(
        seed=settings.seed,
        max_age=settings.aggregation.max_age,
        holdout=generator.holdout,
        training_epochs=generator.training_epochs,
        augmentation_noise=generator.augmentation_noise if generator.augmentation else 0.0,
        synthetic_samples_per_class=generator.synthetic_samples_per_class,
        validation_frequency=generator.validation_frequency,
        finetune=finetune.enabled,
        first_steps=finetune.first_steps,
        steps=finetune.steps,
        synthetic_share=finetune.synthetic_share,
        from_nodes_adapters=finetune.from_nodes_adapters,
        rollback=finetune.rollback,
        optimiser=AdamWSettings(finetune.learning_rate, finetune.weight_decay, finetune.batch_size),
    )


def _check_arguments(generator: GeneratorSettings) -> None:
    """Name the key that the generator's class does not know, and the nearest that it does."""
    assert generator.target is not None
    try:
        parameters: dict[str, Any] = dict(inspect.signature(get_class(generator.target)).parameters)
    except Exception as error:
        raise ConfigError(f"generator._target_={generator.target}: {error}") from error
    for key in generator.arguments:
        if key not in parameters:
            near = difflib.get_close_matches(key, parameters, n=1)
            hint = f"; did you mean generator.{near[0]}?" if near else ""
            raise ConfigError(f"unknown key generator.{key} for generator={generator.name}{hint}")
