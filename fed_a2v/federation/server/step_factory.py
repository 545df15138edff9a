"""Builds the server step and its generator from the settings; the trainer, the doctor and pooled training use it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from fed_a2v.config.messages import explain_validation
from fed_a2v.config.own_class import described, place_of
from fed_a2v.config.plugins import TARGET, check_plain, load_class
from fed_a2v.config.schema import Settings, cache_dir
from fed_a2v.config.sections.training import GeneratorSettings
from fed_a2v.core.adapters import ClassPrompts
from fed_a2v.core.generators.base import Generator
from fed_a2v.core.generators.grouped import GroupedVAEGenerator, groups_for
from fed_a2v.core.names import nearest
from fed_a2v.core.public_space import PublicSpace, given_space, head_space, random_space
from fed_a2v.core.seeding import seed_for
from fed_a2v.core.server_step import ServerStep, ServerStepSettings
from fed_a2v.core.training import AdamWSettings
from fed_a2v.data.check import check_data
from fed_a2v.data.index import known_audio_shape
from fed_a2v.data.selection import unseen_classes
from fed_a2v.data.site import class_names
from fed_a2v.encoders.label_head import given_matrix, head_weight, text_vectors
from fed_a2v.encoders.label_ties import class_label_weights
from fed_a2v.errors import ConfigError, UserError
from fed_a2v.federation.factory import (
    adapter_loss,
    empty_space,
    new_adapters,
    release_noise,
    seeded_adapters,
    torch_device,
    unseen_mask,
)
from fed_a2v.runs.generator_files import load_generator_family

# Rows in one pass through the adapters with optimize_memory_usage.
LOW_MEMORY_CHUNK = 16
# Arguments of a generator that depend on the data and the adapters, so that users cannot set them.
SHAPES = {"input_dim", "visual_dim", "sequence_length", "t5_dim"}


def make_space(settings: Settings) -> PublicSpace:
    """The public space of `share=statistics`, from what is public before any site sends anything.

    Raises:
        ConfigError: there is no label head, or it does not fit the embeddings, or their width is not known.
        ModelError: the encoder's model is missing.
    """
    projection, dataset, encoder = settings.projection, settings.dataset, settings.encoder
    shape = known_audio_shape(dataset, encoder)
    try:
        if projection.name == "head":
            space = head_space(head_weight(projection.path, dataset, encoder), projection.columns, settings.seed)
        elif projection.name == "text":
            texts = text_vectors(projection, encoder, class_names(dataset))
            space = head_space(texts, projection.columns, settings.seed)
        elif projection.name == "file":
            space = given_space(given_matrix(str(projection.path)), projection.columns)
        elif shape is None:
            raise ConfigError(
                f"projection=random needs the width of the embeddings, which encoder={encoder.name} with "
                f"dataset={dataset.name} does not tell the server; choose projection=head with projection.path"
            )
        else:
            space = random_space(shape[1], projection.columns, settings.seed)
    except UserError:
        raise
    except ValueError as error:
        remedy = f"lower projection.columns={projection.columns}, or choose another projection"
        raise ConfigError(f"projection={projection.name}: {error}; {remedy}") from error
    if shape is not None and shape[1] != len(space.matrix):
        raise ConfigError(
            f"projection={projection.name} is for embeddings of width {len(space.matrix)}, those of "
            f"dataset={dataset.name} with encoder={encoder.name} have width {shape[1]}: set projection.path to the "
            "head of the same encoder, or choose projection=random"
        )
    return space


def make_prior(settings: Settings, prompts: ClassPrompts) -> Tensor:
    """(C, Da) weights of the classes in a label head, for `prior=labels`; see `class_label_weights`."""
    return class_label_weights(
        settings.prior,
        settings.projection,
        settings.dataset,
        settings.encoder,
        settings.targets,
        prompts,
        cache_dir(settings.cache_dir),
    )


def make_step(
    settings: Settings, prompts: ClassPrompts, audio_shape: tuple[int, int], space: PublicSpace | None = None
) -> ServerStep:
    """The server step with freshly seeded adapters and generator.

    Args:
        settings: settings of the experiment.
        prompts: the class prompts.
        audio_shape: (S, Da) of the embeddings.
        space: public space of `share=statistics`, whose rows the generator then learns.
    """
    shape = audio_shape if space is None else (1, space.columns)
    made = make_generator(settings, shape, prompts.clip.shape[-1], prompts.names)
    noise = release_noise(settings.privacy, settings.secure_sums)
    generator, finetune, low_memory = settings.generator, settings.finetune, settings.optimize_memory_usage
    step_settings = ServerStepSettings(
        seed=settings.seed,
        max_age=settings.aggregation.max_age,
        holdout=generator.holdout,
        training_epochs=generator.training_epochs,
        min_steps=generator.min_steps,
        augmentation_noise=generator.augmentation_noise if generator.augmentation else 0.0,
        synthetic_samples_per_class=generator.synthetic_samples_per_class,
        validation_frequency=generator.validation_frequency,
        unseen=unseen_classes(settings.dataset, prompts.names),
        keep_prototypes=settings.bank.keep == "prototypes",
        distil=settings.aggregation.distils,
        finetune=finetune.enabled,
        first_steps=finetune.first_steps,
        steps=finetune.steps,
        synthetic_share=finetune.synthetic_share,
        from_nodes_adapters=finetune.from_nodes_adapters,
        rollback=finetune.rollback,
        optimiser=AdamWSettings(
            finetune.learning_rate, finetune.weight_decay, finetune.batch_size, LOW_MEMORY_CHUNK if low_memory else 0
        ),
        max_site_share=settings.aggregation.max_site_share,
        rows_per_class=settings.bank.rows_per_class,
        half_precision_bank=low_memory,
        sums_noise=(0.0, 0.0) if noise is None else (noise.classes, noise.scatter),
        generator_waits_on_cpu=low_memory,
    )
    return ServerStep(
        seeded_adapters(settings.adapters, prompts, audio_shape[1], settings.seed, space),
        prompts,
        None if made is None else made.to(prompts.clip.device),
        adapter_loss(settings.loss, prompts, unseen_mask(settings.dataset, prompts)),
        step_settings,
    )


def load_generator(generator: Generator | None, settings: GeneratorSettings, folder: Path, own: bool) -> None:
    """Load the generator's checkpoint if `generator.load_checkpoint` is set.

    Args:
        generator: the generator to load into, if any.
        settings: the section `generator`.
        folder: folder of the run.
        own: see `load_generator_family`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        CheckpointError: the checkpoint is damaged, or is of another kind of generator or other dimensions.
    """
    if generator is not None and settings.load_checkpoint:
        kind, dimensions, keys = generator.kind, generator.dimensions, generator.keys
        generator.load_checkpoints(
            load_generator_family(settings.checkpoint_path, kind, dimensions, keys, folder=folder, own=own)
        )


def make_generator(
    settings: Settings, audio_shape: tuple[int, int], visual_dim: int, classes: Sequence[str] = ()
) -> Generator | None:
    """The generator of the settings, with weights from the seed; None for `generator=none`.

    Args:
        settings: settings of the experiment.
        audio_shape: (S, Da) of the embeddings.
        visual_dim: width of the classes' CLIP prompts.
        classes: names of all classes; only needed if `generator.granularity` is not "unified".

    Raises:
        ConfigError: the generator's class has no such argument or refuses a value.
    """
    if settings.generator.target is None:
        return None
    arguments = settings.generator.arguments
    granularity, groups = arguments.get("granularity", "unified"), arguments.get("groups")
    make = _generator_maker(settings.generator, settings.adapters.t5_width, audio_shape, visual_dim)
    with torch.random.fork_rng(), _as_config_error(settings.generator):
        torch.manual_seed(seed_for(settings.seed, "generator"))
        class_groups = groups_for(granularity, classes, groups)
        made = make() if class_groups is None else GroupedVAEGenerator(make, class_groups)
    if made.needs_t5 and not settings.adapters.t5_tokens:
        raise ConfigError(
            f"generator={settings.generator.name} is conditioned on T5 prompts, but adapters={settings.adapters.name} "
            "has no T5 side (adapters.t5_tokens=0); choose adapters=flux, or generator=vae"
        )
    return made


def model_bytes(settings: Settings, prompts: ClassPrompts, audio_shape: tuple[int, int]) -> int:
    """Size in bytes of the adapters and of one generator; nothing is allocated, because they are built on "meta".

    Raises:
        ConfigError: see `make_generator`.
    """
    generator, visual_dim = settings.generator, prompts.clip.shape[-1]
    with torch.random.fork_rng(), torch.device("meta"), _as_config_error(generator):
        space = empty_space(settings, audio_shape[1])
        models = [new_adapters(settings.adapters, prompts.to("meta"), audio_shape[1], space)]
        if space is not None:
            audio_shape = (1, space.columns)
        if generator.target is not None:
            models.append(_generator_maker(generator, settings.adapters.t5_width, audio_shape, visual_dim)())
        return sum(tensor.nbytes for model in models for tensor in model.state_dict().values())


def check_buildable(settings: Settings) -> None:
    """Check the device, the generator's arguments and the clips of every site before any sound is decoded.

    Raises:
        ConfigError: the device does not exist, or the generator's class refuses an argument.
        DataError: see `check_data`.
    """
    torch_device(settings.device)
    # The true shapes are not known before the encoder runs; arguments are checked with usual ones.
    make_generator(settings, (1, 512), 768, class_names(settings.dataset))
    if settings.partition.kind != "own":
        check_data(settings)


def _generator_maker(
    generator: GeneratorSettings, t5_width: int, audio_shape: tuple[int, int], visual_dim: int
) -> Callable[[], Any]:
    """A function that builds one generator; the arguments are checked before."""
    assert generator.target is not None
    arguments = generator.arguments
    granularity = arguments.pop("granularity", "unified")
    arguments.pop("groups", None)
    objects = {
        key: (str(value[TARGET]), {name: argument for name, argument in value.items() if name != TARGET})
        for key, value in arguments.items()
        if isinstance(value, Mapping) and TARGET in value
    }
    cls, parameters = _check_arguments(generator.target, arguments, "generator", Generator, objects)
    classes = {key: _check_arguments(*each, f"generator.{key}", nn.Module)[0] for key, each in objects.items()}
    if granularity == "per_class" and "conditional" in parameters:
        arguments = {"conditional": False} | arguments  # for a single class the condition is constant
    tokens, width = audio_shape
    shapes = {"input_dim": width, "visual_dim": visual_dim, "sequence_length": tokens}
    if "t5_dim" in parameters:
        shapes["t5_dim"] = t5_width

    def make() -> Generator:
        parts = {
            key: _module(f"generator.{key}.{TARGET}={target}", classes[key], values)
            for key, (target, values) in objects.items()
        }
        made: Generator = _module(f"generator.{TARGET}={generator.target}", cls, {**arguments, **parts, **shapes})
        return made

    return make


def _module(what: str, cls: type[Any], arguments: Mapping[str, Any]) -> Any:
    """A module of torch.

    Raises:
        ConfigError: the class does not initialise its base class; torch's own error comes later, and does not say so.
    """
    try:
        made = cls(**arguments)
    except AttributeError as error:
        if "Module.__init__()" not in str(error):
            raise
        made = None
    if "_parameters" not in getattr(made, "__dict__", ()):
        raise ConfigError(f"{what}: {cls.__name__}.__init__ does not call super().__init__(); make that its first line")
    return made


@contextmanager
def _as_config_error(generator: GeneratorSettings) -> Iterator[None]:
    """Turn errors of a generator's class into a `ConfigError`, because its arguments are settings of the user."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        what = described(error) if place_of(error) else str(error)
        raise ConfigError(f"generator={generator.name}: {what}") from error


def _check_arguments(
    target: str, arguments: Mapping[str, Any], section: str, base: type, objects: Collection[str] = ()
) -> tuple[type[Any], set[str]]:
    """Load a class and check arguments against its signature.

    Args:
        target: import path of the class, MODULE.CLASS.
        arguments: plain values, except for `objects`.
        section: section of the settings, for error messages.
        base: required base class.
        objects: keys of the arguments that are instances of a class with its own `_target_`.

    Returns:
        The class, and the names of its parameters.

    Raises:
        ConfigError: the class does not exist or is not derived from `base`, it has no such parameter (the message
            suggests the nearest), a type is wrong, or a value contains objects.
    """
    cls = load_class(section, target)
    if not issubclass(cls, base):
        raise ConfigError(
            f"{section}.{TARGET}={target} is not a {base.__name__.lower()}; derive it from "
            f"{base.__module__}.{base.__qualname__}"
        )
    try:
        hints = get_type_hints(cls.__dict__.get("__init__", cls))
    except NameError:  # a custom class may import types for type checkers only
        hints = {}
    signature = inspect.signature(cls).parameters
    parameters = {name for name, parameter in signature.items() if parameter.kind is not parameter.VAR_KEYWORD}
    has_var_keyword = len(parameters) < len(signature)
    for key, value in arguments.items():
        if key not in objects:
            check_plain(f"{section}.{key}", value)
        if has_var_keyword and key not in parameters:
            continue
        if key not in parameters:
            near = nearest(key, parameters - SHAPES)
            keys = ", ".join(sorted(parameters - SHAPES))
            hint = f"; did you mean {section}.{near}?" if near else f"; its keys are {keys}"
            raise ConfigError(f"unknown key {section}.{key} for {target.rpartition('.')[2]}{hint}")
        if key in hints and key not in objects:
            try:
                TypeAdapter(hints[key], config={"arbitrary_types_allowed": True}).validate_python(value, strict=True)
            except ValidationError as error:
                raise ConfigError(explain_validation(error, f"{section}.{key}")) from error
    return cls, parameters
