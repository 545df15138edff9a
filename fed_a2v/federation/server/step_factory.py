"""From settings to the parts of a federation: the one place that every engine uses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from fed_a2v.config.messages import explain_validation
from fed_a2v.config.plugins import TARGET, check_plain, load_class
from fed_a2v.config.schema import ConfigError, GeneratorSettings, Settings
from fed_a2v.core.adapters import ClassPrompts
from fed_a2v.core.generators.base import Generator
from fed_a2v.core.generators.grouped import GroupedVAEGenerator, groups_for
from fed_a2v.core.names import nearest
from fed_a2v.core.seeding import seed_for
from fed_a2v.core.server_step import ServerStep, ServerStepSettings
from fed_a2v.core.training import AdamWSettings
from fed_a2v.data.check import check_data
from fed_a2v.data.clips import unseen_classes
from fed_a2v.data.site import class_names
from fed_a2v.federation.factory import new_adapters, seeded_adapters, torch_device, training_loss
from fed_a2v.runs.generator_files import load_generator_family

# Rows that go through the adapters at once where memory is to be saved.
FRUGAL_CHUNK = 16
# Arguments of a generator that the data and the adapters decide.
SHAPES = {"input_dim", "visual_dim", "sequence_length", "t5_dim"}


def make_step(settings: Settings, prompts: ClassPrompts, audio_shape: tuple[int, int]) -> ServerStep:
    """The server step with freshly seeded adapters and generator, for embeddings of shape (S, Da)."""
    device = torch_device(settings.device)
    generator = make_generator(settings, audio_shape, prompts.clip.shape[-1], prompts.names)
    return ServerStep(
        seeded_adapters(settings, prompts, audio_shape[1]),
        prompts,
        None if generator is None else generator.to(device),
        training_loss(settings, prompts),
        _step_settings(settings, unseen_classes(settings.dataset, prompts.names)),
    )


def load_generator(step: ServerStep, settings: Settings, folder: Path) -> None:
    """Start with the generator that `generator.load_checkpoint` asks for; nothing to do where it does not.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is damaged, or of another kind or other dimensions.
    """
    if step.generator is None or not settings.generator.load_checkpoint:
        return
    step.generator.load_checkpoints(
        load_generator_family(
            settings.generator.checkpoint_path,
            step.generator.kind,
            step.generator.dimensions,
            step.generator.keys,
            folder=folder,
            own=settings.resume == "never",
        )
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
    if settings.generator.target is None:
        return None
    arguments = settings.generator.arguments
    granularity, groups = arguments.get("granularity", "unified"), arguments.get("groups")
    make = _generator_maker(settings, audio_shape, visual_dim)
    with torch.random.fork_rng(), _refusals_of(settings.generator):
        torch.manual_seed(seed_for(settings.seed, "generator"))
        together = groups_for(granularity, classes, groups)
        made = make() if together is None else GroupedVAEGenerator(make, together)
    if made.needs_t5 and not settings.adapters.t5_tokens:
        raise ConfigError(
            f"generator={settings.generator.name} is conditioned on T5 prompts, and adapters={settings.adapters.name} "
            "has no T5 side (adapters.t5_tokens=0); choose adapters=flux, or generator=vae"
        )
    return made


def model_bytes(settings: Settings, prompts: ClassPrompts, audio_shape: tuple[int, int]) -> int:
    """Bytes of the adapters and of one generator that the settings describe; nothing is allocated to find out.

    Raises:
        ConfigError: see `make_generator`.
    """
    nowhere = settings.model_copy(update={"device": "meta"})
    shapes = ClassPrompts(prompts.names, prompts.clip.to("meta"), None if prompts.t5 is None else prompts.t5.to("meta"))
    with torch.random.fork_rng(), torch.device("meta"), _refusals_of(settings.generator):
        models = [new_adapters(nowhere, shapes, audio_shape[1])]
        if settings.generator.target is not None:
            models.append(_generator_maker(settings, audio_shape, prompts.clip.shape[-1])())
        return sum(tensor.nbytes for model in models for tensor in model.state_dict().values())


def check_buildable(settings: Settings) -> None:
    """Check, before any sound is decoded, the device, the generator's arguments, and the clips of every site.

    Raises:
        ConfigError: there is no such device, or the generator's class refuses an argument.
        DataError: see `check_data`.
    """
    torch_device(settings.device)
    classes = class_names(settings.dataset)
    make_generator(settings, (1, 512), 768, classes)
    if settings.partition.kind != "own":
        check_data(settings)


def _step_settings(settings: Settings, unseen: tuple[str, ...]) -> ServerStepSettings:
    generator, finetune, frugal = settings.generator, settings.finetune, settings.optimize_memory_usage
    return ServerStepSettings(
        seed=settings.seed,
        max_age=settings.aggregation.max_age,
        holdout=generator.holdout,
        training_epochs=generator.training_epochs,
        min_steps=generator.min_steps,
        augmentation_noise=generator.augmentation_noise if generator.augmentation else 0.0,
        synthetic_samples_per_class=generator.synthetic_samples_per_class,
        validation_frequency=generator.validation_frequency,
        unseen=unseen,
        keep_prototypes=settings.bank.keep == "prototypes",
        distil=settings.aggregation.distils,
        finetune=finetune.enabled,
        first_steps=finetune.first_steps,
        steps=finetune.steps,
        synthetic_share=finetune.synthetic_share,
        from_nodes_adapters=finetune.from_nodes_adapters,
        rollback=finetune.rollback,
        optimiser=AdamWSettings(
            finetune.learning_rate, finetune.weight_decay, finetune.batch_size, FRUGAL_CHUNK if frugal else 0
        ),
        max_site_share=settings.aggregation.max_site_share,
        rows_per_class=settings.bank.rows_per_class,
        half_precision_bank=frugal,
        generator_waits_on_cpu=frugal,
    )


def _generator_maker(settings: Settings, audio_shape: tuple[int, int], visual_dim: int) -> Callable[[], Any]:
    """What builds one generator; its arguments are checked here."""
    generator = settings.generator
    assert generator.target is not None
    arguments = generator.arguments
    granularity = arguments.pop("granularity", "unified")
    arguments.pop("groups", None)
    objects = {
        key: (str(value[TARGET]), {name: each for name, each in value.items() if name != TARGET})
        for key, value in arguments.items()
        if isinstance(value, Mapping) and TARGET in value
    }
    cls, parameters = _checked(generator.target, arguments, "generator", Generator, objects)
    classes = {key: _checked(*each, f"generator.{key}", nn.Module)[0] for key, each in objects.items()}
    if granularity == "per_class" and "conditional" in parameters:
        arguments = {"conditional": False} | arguments  # of one class, the condition says nothing
    tokens, width = audio_shape
    shapes = {"input_dim": width, "visual_dim": visual_dim, "sequence_length": tokens}
    if "t5_dim" in parameters:
        shapes["t5_dim"] = settings.adapters.t5_width

    def make() -> Generator:
        made: Generator = cls(
            **{**arguments, **{key: classes[key](**own) for key, (_, own) in objects.items()}, **shapes}
        )
        return made

    return make


@contextmanager
def _refusals_of(generator: GeneratorSettings) -> Iterator[None]:
    """What a generator's class refuses is the user's to mend."""
    try:
        yield
    except Exception as error:
        raise ConfigError(f"generator={generator.name}: {error}") from error


def _checked(
    target: str, arguments: Mapping[str, Any], section: str, base: type, objects: Collection[str] = ()
) -> tuple[type[Any], set[str]]:
    """A class, with its arguments checked by its signature.

    Args:
        target: MODULE.CLASS.
        arguments: plain values, but for `objects`.
        section: of the settings, for messages.
        base: that the class must be derived from.
        objects: keys of the arguments that are made of a class of their own.

    Returns:
        The class, and the names of its parameters.

    Raises:
        ConfigError: there is no such class, it is not derived from `base`, it does not know a key (the nearest is
            named), a type is wrong, or an argument's value holds objects.
    """
    made = load_class(section, target)
    if not issubclass(made, base):
        raise ConfigError(
            f"{section}.{TARGET}={target} is no {base.__name__.lower()}; derive it from "
            f"{base.__module__}.{base.__qualname__}"
        )
    try:
        hints = get_type_hints(made.__dict__.get("__init__", made))
    except NameError:  # types that a user's own class imports for type checkers only
        hints = {}
    signature = inspect.signature(made).parameters
    parameters = {name for name, parameter in signature.items() if parameter.kind is not parameter.VAR_KEYWORD}
    takes_all = len(parameters) < len(signature)
    for key, value in arguments.items():
        if key not in objects:
            check_plain(f"{section}.{key}", value)
        if takes_all and key not in parameters:
            continue
        if key not in parameters:
            near = nearest(key, parameters - SHAPES)
            hint = f"; did you mean {section}.{near}?" if near else f"; it has {', '.join(sorted(parameters - SHAPES))}"
            raise ConfigError(f"unknown key {section}.{key} for {target.rpartition('.')[2]}{hint}")
        if key in hints and key not in objects:
            try:
                TypeAdapter(hints[key], config={"arbitrary_types_allowed": True}).validate_python(value, strict=True)
            except ValidationError as error:
                raise ConfigError(explain_validation(error, f"{section}.{key}")) from error
    return made, parameters
