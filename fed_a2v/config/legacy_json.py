"""The original guide's JSON file, read as it stands: what each of its keys becomes here.

The file may hold `//` and `/* */` comments and commas before a closing bracket; keys that begin with `_comment` are
comments too. Its own misspellings are understood. A key that has no meaning here is named with the reason; a key
that nobody knows but that looks like a known one is taken for a slip and refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from fed_a2v.config.schema import ConfigError
from fed_a2v.config.tree import option_keys, sections
from fed_a2v.core.names import nearest

Tree = Mapping[str, Mapping[str, Any]]

# As the guide's files have them, and as they are meant.
MISSPELT = {
    "use_balooning": "use_ballooning",
    "generate_low_memomy_footprint": "generate_low_memory_footprint",
    "adapter_aggregation_method": "adapter_aggregation_mode",
    "optimize_memory": "optimize_memory_usage",
}
# How like a known key an unknown one must be to count as a slip of the pen.
SLIP = 0.8


@dataclass(frozen=True)
class MappingRule:
    """What a key becomes: overrides by our key, and what is to be said about it."""

    overrides: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class ParsedKey:
    """One key of the file.

    Attributes:
        key: as the file has it, with its section: `feda2v.generator_type`.
        value: as the file has it.
        became: what it becomes here.
    """

    key: str
    value: Any
    became: MappingRule


Rule = Callable[[Any, Tree], MappingRule]


class GuideFile:
    """A file in the guide's format.

    Args:
        path: of the file.

    Raises:
        ConfigError: the file is missing, is no JSON, or has a key that looks like a slip; names line and column,
            or the key.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.readings = list(_readings(read_json(path), path))

    def overrides(self, stronger: Sequence[str] = ()) -> list[str]:
        """The file as Hydra overrides, without what the `stronger` overrides of the user decide."""
        self.readings = [_without(reading, stronger) for reading in self.readings]
        values = {key: value for reading in self.readings for key, value in reading.became.overrides.items()}
        return [f"{key}={_hydra_value(key, value)}" for key, value in values.items()]

    def key_of(self, ours: str) -> str | None:
        """The file's key that decided our key `ours`; None where the file has nothing to do with it."""
        deciding = {key: reading.key for reading in self.readings for key in reading.became.overrides}
        nearest_first = sorted(deciding, key=len, reverse=True)
        return next((deciding[key] for key in nearest_first if ours == key or ours.startswith(f"{key}.")), None)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file with comments; see the head of this file for what else is allowed.

    Raises:
        ConfigError: no such file, no JSON, a key twice in one object, NaN or infinity, or no object.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror or error}; --config=FILE names a file in the guide's format"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is no UTF-8; save the file as UTF-8") from None
    try:
        tree = json.loads(strip_comments(text), object_pairs_hook=_object, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1].strip() if error.lineno <= len(text.splitlines()) else ""
        near = f" near {line!r}" if line else ""
        raise ConfigError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}{near}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f'{path}: a {type(tree).__name__}, not an object {{"feda2v": {{...}}}}')
    return tree


def strip_comments(text: str) -> str:
    """JSON without comments and without commas before a closing bracket; every other character keeps its place.

    Raises:
        ValueError: a `/*` has no `*/`.
    """
    string = r'"(?:\\.|[^"\\\n])*"'

    def blank(match: re.Match[str]) -> str:
        token = match[0]
        if token.startswith('"'):
            return token
        if token == "/*":
            line = text.count("\n", 0, match.start()) + 1
            raise ValueError(f"the comment that /* begins in line {line} has no end; close it with */")
        return re.sub(r"[^\n]", " ", token)

    bare = re.sub(rf"{string}|//[^\n]*|/\*.*?\*/|/\*", blank, text, flags=re.DOTALL)
    return re.sub(rf"{string}|,(?=\s*[\]}}])", blank, bare)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the key {twice[0]!r} is there twice in one object; keep one of the two")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no value of a setting; give a finite number")


# Rules


def to(*keys: str) -> Rule:
    """The value goes to our `keys` as it is."""
    return lambda value, _: MappingRule(dict.fromkeys(keys, value))


def nothing(reason: str) -> Rule:
    """The key has no meaning here."""
    return lambda _, __: MappingRule(note=f"no meaning here: {reason}")


def _use_generator(value: Any, tree: Tree) -> MappingRule:
    if value is False:
        return MappingRule({"generator": "none"})
    if value is not True:
        raise ConfigError(f"feda2v.use_generator = {value!r}: give true or false")
    if "generator_type" in tree["feda2v"]:
        return MappingRule(note="feda2v.generator_type says which")
    return MappingRule({"generator": "vae"})


def _generator_type(value: Any, tree: Tree) -> MappingRule:
    if tree["feda2v"].get("use_generator") is False:
        return MappingRule(note="feda2v.use_generator is false")
    return MappingRule({"generator": value})


def _checkpoint_folder(value: Any, tree: Tree) -> MappingRule:
    if "generator_checkpoint_path" in tree["feda2v"]:
        return MappingRule(note="feda2v.generator_checkpoint_path says it")
    name = tree["feda2v"].get("generator_checkpoint_base_name", "generator")
    return MappingRule({"generator.checkpoint_path": f"{value}/{name}.pt"})


def _samples(value: Any, _: Tree) -> MappingRule:
    if value == "auto":
        return MappingRule(note="the default of the generator stays")
    return MappingRule({"generator.synthetic_samples_per_class": value})


def _granularity(value: Any, _: Tree) -> MappingRule:
    # Other generators than the VAE have one network for all classes, as `unified` says.
    return (
        MappingRule(note="one generator for all classes, as here")
        if value == "unified"
        else MappingRule({"generator.granularity": value})
    )


def _groups(value: Any, _: Tree) -> MappingRule:
    return MappingRule(note="no groups, as here") if value is None else MappingRule({"generator.groups": value})


def _aggregation(value: Any, _: Tree) -> MappingRule:
    return MappingRule({"aggregation.mode": "weighted" if value == "weighted_avg" else value})


def _seed(value: Any, _: Tree) -> MappingRule:
    return MappingRule(note="any seed: the default stays") if value == -1 else MappingRule({"seed": value})


def _device(value: Any, tree: Tree) -> MappingRule:
    number = tree["experiment"].get("device_id")
    return MappingRule({"device": f"{value}:{number}" if value == "cuda" and number is not None else value})


def _runs(value: Any, _: Tree) -> MappingRule:
    return MappingRule(note="one run, as here" if value == 1 else "no meaning here: repeat with -m seed=0,1,2")


def _sites(value: Any, tree: Tree) -> MappingRule:
    nodes = tree["nodes"]
    if nodes and len(nodes) != value:
        return MappingRule(note=f"the section nodes has {len(nodes)}, and is followed")
    return MappingRule({"partition.sites": value})


def _image_model(value: Any, _: Tree) -> MappingRule:
    return MappingRule({"adapters": value})


def _pictures(key: str) -> Rule:
    """Pictures every so many rounds, by the image model that the file names."""

    def rule(value: Any, tree: Tree) -> MappingRule:
        nodes = [node for node in tree["nodes"].values() if "diffusion_type" in node]
        named = [
            section["diffusion_type"]
            for section in (tree["feda2v"], tree["federation"], *nodes)
            if "diffusion_type" in section
        ]
        return MappingRule({key: value, "images": named[0]} if value and named else {key: value})

    return rule


def _audio_model(value: Any, _: Tree) -> MappingRule:
    name = next((name for name in ("ast", "clap") if name in str(value).lower()), None)
    if name is None:
        return MappingRule(note="no meaning here: encoders are encoder=ast, clap and logmel, or one of your own")
    return MappingRule({"encoder": name, "encoder.model": value, "encoder.revision": None})


def _learning_rate(value: Any, tree: Tree) -> MappingRule:
    if "adapters_learning_rate" in tree["feda2v"]:
        return MappingRule(note="feda2v.adapters_learning_rate says it")
    return MappingRule({"site.learning_rate": value})


def _weight_decay(value: Any, tree: Tree) -> MappingRule:
    if "adapters_weight_decay" in tree["feda2v"]:
        return MappingRule(note="feda2v.adapters_weight_decay says it")
    return MappingRule({"site.weight_decay": value})


def _optimiser(value: Any, _: Tree) -> MappingRule:
    return MappingRule(note="as here" if value == "AdamW" else "no meaning here: the optimiser is AdamW")


def _dataset(value: Any, tree: Tree) -> MappingRule:
    if any("dataset" in node for node in tree["nodes"].values()):
        return MappingRule(note="the section nodes says it")
    return MappingRule({"dataset": str(value).lower()})


def _wandb_disabled(value: Any, _: Tree) -> MappingRule:
    return MappingRule({"wandb.mode": "disabled"}) if value else MappingRule(note="as here: wandb.mode")


EVERY_ROUND = "the test clips are evaluated every round"
ONE_RATE = "both adapters share site.learning_rate and site.weight_decay"
CACHE = "embeddings are always cached; cache_dir says where"
STEPS = "fine-tuning counts steps, not epochs: finetune.steps"
IMAGES = "pictures are made of the adapters' prompts, into the run's folder"

RULES: dict[str, Rule] = {
    "experiment.name": nothing("a run is named by its folder: hydra.run.dir=FOLDER"),
    "experiment.goal": nothing("a run is named by its folder: hydra.run.dir=FOLDER"),
    "experiment.description": nothing("a description"),
    "experiment.device": _device,
    "experiment.device_id": lambda _, __: MappingRule(note="part of experiment.device"),
    "experiment.runs": _runs,
    "experiment.seed": _seed,
    "experiment.optimize_memory_usage": to("optimize_memory_usage"),
    "experiment.use_ballooning": nothing("no memory is reserved ahead"),
    "experiment.debug": nothing("run.log has it all"),
    "federation.algorithm": nothing("there is one algorithm; aggregation.mode varies it"),
    "federation.num_clients": _sites,
    "federation.global_rounds": to("rounds"),
    "federation.local_epochs": to("site.epochs"),
    "federation.join_ratio": to("federation.sites_per_round"),
    "federation.eval_gap": nothing(EVERY_ROUND),
    "federation.diffusion_type": _image_model,
    "federation.model_aggregation": nothing("only adapters are trained: feda2v.adapter_aggregation_mode"),
    "federation.use_saved_audio_embeddings": nothing(CACHE),
    "federation.generate_images_frequency": nothing(IMAGES),
    "training.learning_rate": _learning_rate,
    "training.weight_decay": _weight_decay,
    "training.batch_size": to("site.batch_size"),
    "training.local_epochs": to("site.epochs"),
    "training.optimizer": _optimiser,
    "training.momentum": nothing("the optimiser is AdamW"),
    "training.learning_rate_schedule": nothing("the learning rate is constant"),
    "dataset.name": _dataset,
    "dataset.path": to("dataset.root"),
    "dataset.dir_alpha": to("partition.alpha"),
    "model.backbone": nothing("the encoder is chosen by encoder=NAME"),
    "model.backbone_model": nothing("the encoder is chosen by encoder=NAME"),
    "model.pretrained": nothing("encoders are always pretrained and frozen"),
    "wandb.disabled": _wandb_disabled,
    "feda2v.use_generator": _use_generator,
    "feda2v.generator_type": _generator_type,
    "feda2v.generator_save_checkpoint": to("generator.save_checkpoint"),
    "feda2v.generator_load_checkpoint": to("generator.load_checkpoint"),
    "feda2v.generator_checkpoint_path": to("generator.checkpoint_path"),
    "feda2v.generator_checkpoint_dir": _checkpoint_folder,
    "feda2v.generator_checkpoint_base_name": lambda _, __: MappingRule(note="part of feda2v.generator_checkpoint_dir"),
    "feda2v.generator_checkpoint_frequency": to("generator.checkpoint_frequency"),
    "feda2v.generator_training_epochs": to("generator.training_epochs"),
    "feda2v.generator_augmentation": to("generator.augmentation"),
    "feda2v.generator_augmentation_noise": to("generator.augmentation_noise"),
    "feda2v.generator_validation_frequency": to("generator.validation_frequency"),
    "feda2v.generator_granularity": _granularity,
    "feda2v.generator_class_groups": _groups,
    "feda2v.generator_training_mode": nothing("a generator is trained every round, where there is one"),
    "feda2v.generator_only_mode": nothing("adapters and generator are trained together"),
    "feda2v.use_pretrained_generators": nothing("feda2v.generator_load_checkpoint starts from a saved one"),
    "feda2v.use_conditioned_vae": nothing("a VAE of all classes is conditioned, one of a single class is not"),
    "feda2v.reset_generator_on_class_change": nothing("a generator learns all classes together"),
    "feda2v.shared_generator_in_only_mode": nothing("the generator is the server's, there is one"),
    "feda2v.generator_training_sequence_length": nothing("the generator takes the encoder's number of tokens"),
    "feda2v.synthetic_samples_per_class": _samples,
    "feda2v.global_model_train": to("finetune.enabled"),
    "feda2v.global_model_train_from_nodes_adapters": to("finetune.from_nodes_adapters"),
    "feda2v.global_model_train_epochs": nothing(STEPS),
    "feda2v.global_model_train_from_generator": nothing("synthetic rows are mixed in: finetune.synthetic_share"),
    "feda2v.global_model_train_from_nodes_audio_embeddings": nothing("the sites' prototypes are always used"),
    "feda2v.global_model_train_inputs": nothing("the sites' prototypes are always used"),
    "feda2v.compute_global_mean_from_class_means": nothing("every class counts alike"),
    "feda2v.adapter_aggregation_mode": _aggregation,
    "feda2v.kd_training_epochs": nothing(STEPS),
    "feda2v.kd_learning_rate": to("finetune.learning_rate"),
    "feda2v.kd_samples_per_class": _samples,
    "feda2v.optimize_memory_usage": to("optimize_memory_usage"),
    "feda2v.diffusion_type": _image_model,
    "feda2v.adapters_learning_rate": to("site.learning_rate"),
    "feda2v.adapters_weight_decay": to("site.weight_decay"),
    "feda2v.adapters_learning_rate_schedule": nothing("the learning rate is constant"),
    "feda2v.clip_adapter_learning_rate": nothing(ONE_RATE),
    "feda2v.clip_adapter_weight_decay": nothing(ONE_RATE),
    "feda2v.clip_adapter_learning_rate_schedule": nothing("the learning rate is constant"),
    "feda2v.t5_adapter_learning_rate": nothing(ONE_RATE),
    "feda2v.t5_adapter_weight_decay": nothing(ONE_RATE),
    "feda2v.t5_adapter_learning_rate_schedule": nothing("the learning rate is constant"),
    "feda2v.project": to("wandb.project"),
    "feda2v.entity": to("wandb.entity"),
    "feda2v.wandb_mode": to("wandb.mode"),
    "feda2v.store_audio_embeddings": nothing(CACHE),
    "feda2v.audio_embedding_file_name": nothing(CACHE),
    "feda2v.audio_model_name": _audio_model,
    "feda2v.generate_nodes_images_frequency": _pictures("generate_nodes_images_frequency"),
    "feda2v.generate_global_images_frequency": _pictures("generate_global_images_frequency"),
    "feda2v.generate_low_memory_footprint": nothing("images.offload says what waits in the CPU's memory"),
    "feda2v.generate_global_images_average_text_embeddings": nothing(IMAGES),
    "feda2v.generate_from_clip_text_embeddings": nothing(IMAGES),
    "feda2v.generate_from_t5_text_embeddings": nothing(IMAGES),
    "feda2v.images_output_dir": nothing(IMAGES),
    "feda2v.output_image_base_name": nothing(IMAGES),
    "feda2v.save_generated_images_splits": nothing(IMAGES),
    "feda2v.nodes_train_metrics_splits": nothing(EVERY_ROUND),
    "feda2v.nodes_test_metrics_splits": nothing(EVERY_ROUND),
    "feda2v.server_train_metrics_splits": nothing(EVERY_ROUND),
    "feda2v.server_test_metrics_splits": nothing(EVERY_ROUND),
}
GUIDE_SECTIONS = ("experiment", "federation", "training", "model", "dataset", "wandb", "nodes", "feda2v")


def _readings(file: Mapping[str, Any], path: Path) -> Iterator[ParsedKey]:
    """What every key of the file became, in the file's order."""
    for name, section in file.items():
        if name.startswith("_comment"):
            continue
        if name in GUIDE_SECTIONS and not isinstance(section, Mapping):
            raise ConfigError(f"{path}: {name} = {section!r}: a section holds keys, {{...}}")
        if name not in GUIDE_SECTIONS and (near := _slip_of(name, [*GUIDE_SECTIONS, *_keys_of("feda2v")])):
            raise ConfigError(f"{path}: unknown key {name}; did you mean {near}?")
    tree = {name: file.get(name, {}) for name in GUIDE_SECTIONS}
    for name, section in file.items():
        if name == "nodes":
            yield from _nodes(section, path)
        elif name in GUIDE_SECTIONS:
            for key, value in section.items():
                if not key.startswith("_comment"):
                    yield ParsedKey(f"{name}.{key}", value, _rule(name, key, path)(value, tree))
        elif not name.startswith("_comment"):
            yield ParsedKey(name, section, MappingRule(note="no meaning here: no section of the guide's"))


def _rule(section: str, key: str, path: Path) -> Rule:
    meant = MISSPELT.get(key, key)
    if rule := RULES.get(f"{section}.{meant}"):
        return rule
    if near := _slip_of(key, _keys_of(section)):
        raise ConfigError(f"{path}: unknown key {section}.{key}; did you mean {section}.{near}?")
    return nothing("no key of the guide's")


def _keys_of(section: str) -> list[str]:
    return [key.removeprefix(f"{section}.") for key in RULES if key.startswith(f"{section}.")]


def _slip_of(word: str, known: Sequence[str]) -> str | None:
    return nearest(word, known, cutoff=SLIP)


def _nodes(nodes: Mapping[str, Any], path: Path) -> Iterator[ParsedKey]:
    """The sites, which the guide lists one by one and this program deals out."""
    for number, node in nodes.items():
        if not isinstance(node, Mapping):
            raise ConfigError(f"{path}: nodes.{number} = {node!r}: a node holds keys, {{...}}")
    if not nodes:
        return
    yield ParsedKey("nodes", f"{len(nodes)} nodes", MappingRule({"partition.sites": len(nodes)}))
    keys = dict.fromkeys(key for node in nodes.values() for key in node if not key.startswith("_comment"))
    for key in keys:
        values = [node.get(key) for node in nodes.values()]
        yield ParsedKey(f"nodes.*.{key}", values[0] if _alike(values) else "...", _node_key(key, values))


def _node_key(key: str, values: Sequence[Any]) -> MappingRule:
    if key == "selected_classes":
        return _selected_classes(values)
    if key not in ("dataset", "diffusion_type", "train_folds", "val_folds", "test_folds"):
        return MappingRule(note="no meaning here: sites get their clips by dataset.* and partition.*")
    if not _alike(values):
        remedy = "; dataset=mixed with dataset.sets takes several" if key == "dataset" else ", and is one for all sites"
        return MappingRule(note=f"no meaning here: it differs between the nodes{remedy}")
    if key == "dataset":
        return MappingRule({"dataset": str(values[0]).lower()})
    if key == "diffusion_type":
        return MappingRule({"adapters": values[0]})
    if not isinstance(values[0], list) or not all(isinstance(fold, int) for fold in values[0]):
        return MappingRule({f"dataset.{key}": values[0]})
    ours = {"train_folds": "train_folds", "val_folds": "validation_folds", "test_folds": "test_folds"}[key]
    return MappingRule({f"dataset.{ours}": [fold + 1 for fold in values[0]]}, "folds are counted from 1 here")


def _selected_classes(values: Sequence[Any]) -> MappingRule:
    if not all(isinstance(classes, list) for classes in values):
        return MappingRule(note="no meaning here: not every node has a list of classes")
    names = list(dict.fromkeys(name for classes in values for name in classes))
    disjoint = len(names) == sum(len(classes) for classes in values)
    if disjoint and len({len(classes) for classes in values}) == 1:
        return MappingRule(
            {"dataset.classes": names, "partition": "classes", "partition.classes_per_site": len(values[0])},
            "as many to each site; which ones, the seed decides",
        )
    return MappingRule({"dataset.classes": names}, "which site has which, partition=KIND decides")


def _alike(values: Sequence[Any]) -> bool:
    return all(value == values[0] for value in values)


# Overrides


def _without(reading: ParsedKey, stronger: Sequence[str]) -> ParsedKey:
    """The reading without the overrides that the user's own make void, and a word on each."""
    given = {word.lstrip("+~").partition("=")[0]: word for word in stronger}
    kept: dict[str, Any] = {}
    notes = [reading.became.note] if reading.became.note else []
    for key, value in reading.became.overrides.items():
        group = key.split(".")[0]
        choice = given.get(group, "").partition("=")[2] if key != group else ""
        if key in given:
            notes.append(f"{given[key]} wins")
        elif choice and group in sections() and key.removeprefix(f"{group}.") not in _option_keys(group, choice):
            notes.append(f"{given[group]} has no {key}")
        else:
            kept[key] = value
    return replace(reading, became=MappingRule(kept, "; ".join(notes)))


def _option_keys(group: str, choice: str) -> list[str]:
    """The keys that each of the options in `choice` has; several are a sweep."""
    try:
        having = [set(option_keys(group, option)) for option in choice.split(",")]
    except FileNotFoundError:
        return []
    return sorted(set.intersection(*having))


def _hydra_value(key: str, value: Any) -> str:
    """A JSON value in Hydra's grammar; text is quoted, but for the name of a group's option."""
    if isinstance(value, str):
        if key in sections() and re.fullmatch(r"\w+", value):
            return value
        return QuotedString(value.replace("${", r"\${"), Quote.single).with_quotes()
    if isinstance(value, list):
        return "[" + ",".join(_hydra_value("", item) for item in value) + "]"
    if isinstance(value, Mapping):
        items = (f"{_hydra_name(name)}:{_hydra_value('', item)}" for name, item in value.items())
        return "{" + ",".join(items) + "}"
    return json.dumps(value)


def _hydra_name(name: str) -> str:
    """The key of a dictionary, which Hydra's grammar does not quote."""
    return re.sub(r"([\\()\[\]{}:=,\s])", r"\\\1", name)
