"""From settings to the parts of a federation: the one place that every engine uses."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hydra.utils import instantiate

from fed_a2v.config import ConfigError
from fed_a2v.core.adapters import Adapters, PromptSet
from fed_a2v.core.generators.base import Generator
from fed_a2v.core.generators.grouped import GroupedVAEGenerator, groups_for
from fed_a2v.core.seeding import seed_for
from fed_a2v.core.server_step import ServerStep, ServerStepSettings
from fed_a2v.core.training import AdamWSettings
from fed_a2v.data.clips import unseen_classes
from fed_a2v.federation.task import adapter_loss, unseen_mask
from fed_a2v.plugins import load_class
from fed_a2v.settings import GeneratorSettings, Settings

# Rows that go through the adapters at once where memory is to be saved.
FRUGAL_CHUNK = 16


def make_step(settings: Settings, prompts: PromptSet, audio_shape: tuple[int, int]) -> ServerStep:
    """The server step with freshly seeded adapters and generator, for embeddings of shape (S, Da)."""
    device = torch.device(settings.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(settings.seed, "adapters"))
        shape = settings.adapters
        adapters = Adapters(audio_shape[1], prompts, shape.hidden_width, shape.closed_form).to(device)
    generator = make_generator(settings, audio_shape, prompts.clip.shape[-1], prompts.names)
    return ServerStep(
        adapters,
        prompts,
        None if generator is None else generator.to(device),
        adapter_loss(settings, prompts, unseen_mask(settings, prompts.names)),
        _step_settings(settings, unseen_classes(settings.dataset, prompts.names)),
    )


def make_generator(
    settings: Settings, audio_shape: tuple[int, int], visual_dim: int, classes: Sequence[str] = ()
) -> Generator | None:
    """The generator that the settings describe.

    Args:
        settings: of the experiment.
        audio_shape: (S, Da) of the embeddings.
        visual_dim: width of the classes' CLIP prompts.
        classes: names of all classes; needed where each, or each group of them, has a generator of its own.

    Raises:
        ConfigError: its class does not know one of the keys, or refuses a value.
    """
    generator = settings.generator
    if generator.target is None:
        return None
    arguments = generator.arguments
    granularity, groups = arguments.pop("granularity", "unified"), arguments.pop("groups", None)
    if granularity == "per_class":
        arguments = {"conditional": False} | arguments  # of one class, the condition says nothing
    parameters = _check_arguments(generator, arguments)
    tokens, width = audio_shape
    shapes = {"input_dim": width, "visual_dim": visual_dim, "sequence_length": tokens}
    if "t5_dim" in parameters:
        shapes["t5_dim"] = settings.adapters.t5_width

    def make() -> Any:
        return instantiate({"_target_": generator.target, **arguments}, **shapes, _convert_="all")

    with torch.random.fork_rng():
        torch.manual_seed(seed_for(settings.seed, "generator"))
        try:
            together = groups_for(granularity, classes, groups)
            made = make() if together is None else GroupedVAEGenerator(make, together)
        except Exception as error:
            cause = error.__cause__ or error
            raise ConfigError(f"generator={generator.name}: {cause}") from error
    if not isinstance(made, Generator):
        raise ConfigError(
            f"generator._target_={generator.target} is no generator; derive it from "
            f"{Generator.__module__}.{Generator.__qualname__}"
        )
    return made


def _step_settings(settings: Settings, unseen: tuple[str, ...]) -> ServerStepSettings:
    generator, finetune, frugal = settings.generator, settings.finetune, settings.optimize_memory_usage
    return ServerStepSettings(
        seed=settings.seed,
        max_age=settings.aggregation.max_age,
        holdout=generator.holdout,
        training_epochs=generator.training_epochs,
        augmentation_noise=generator.augmentation_noise if generator.augmentation else 0.0,
        synthetic_samples_per_class=generator.synthetic_samples_per_class,
        validation_frequency=generator.validation_frequency,
        unseen=unseen,
        keep_prototypes=settings.bank.keep == "prototypes",
        distil=settings.aggregation.mode == "kd",
        finetune=finetune.enabled,
        first_steps=finetune.first_steps,
        steps=finetune.steps,
        synthetic_share=finetune.synthetic_share,
        from_nodes_adapters=finetune.from_nodes_adapters,
        rollback=finetune.rollback,
        optimiser=AdamWSettings(
            finetune.learning_rate, finetune.weight_decay, finetune.batch_size, FRUGAL_CHUNK if frugal else 0
        ),
        half_precision_bank=frugal,
        generator_waits_on_cpu=frugal,
    )


def _check_arguments(generator: GeneratorSettings, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the generator's class; refuses a key that is not among them and names the nearest."""
    assert generator.target is not None
    parameters: dict[str, Any] = dict(inspect.signature(load_class("generator", generator.target)).parameters)
    for key in arguments:
        if key not in parameters:
            near = difflib.get_close_matches(key, parameters, n=1)
            hint = f"; did you mean generator.{near[0]}?" if near else ""
            raise ConfigError(f"unknown key generator.{key} for generator={generator.name}{hint}")
    return parameters
