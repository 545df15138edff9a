"""Converter of the original guide's JSON file to Hydra overrides; used by `fed-a2v train --config FILE`.

Keys that begin with `_comment` are comments. The guide's misspellings are accepted. A key without a counterpart is
ignored and listed with the reason; an unknown key that looks like a known one is refused as a typing error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from fed_a2v.config.json_comments import read_json
from fed_a2v.config.tree import option_keys, sections
from fed_a2v.core.names import nearest
from fed_a2v.errors import ConfigError

Tree = Mapping[str, Mapping[str, Any]]
# From a key's value and the whole file to overrides by our keys, or to a note on why there are none.
Rule = Callable[[Any, Tree], dict[str, Any] | str]

# Misspellings in the guide's files, and the correct names.
MISSPELT = {
    "use_balooning": "use_ballooning",
    "generate_low_memomy_footprint": "generate_low_memory_footprint",
    "adapter_aggregation_method": "adapter_aggregation_mode",
    "optimize_memory": "optimize_memory_usage",
}
# Similarity to a known key from which on an unknown key counts as a typing error.
TYPING_ERROR = 0.8
IGNORED = "no meaning here"


@dataclass(frozen=True)
class ParsedKey:
    """One key of the file.

    Attributes:
        key: key in the file, with its section: `feda2v.generator_type`.
        value: value in the file.
        overrides: overrides that it gives, by our key.
        note: a note for the user.
    """

    key: str
    value: Any
    overrides: Mapping[str, Any]
    note: str = ""


class GuideFile:
    """A file in the guide's format.

    Args:
        path: path of the file.

    Raises:
        ConfigError: the file is missing, is not JSON, or has a key that looks like a typing error; names line and
            column, or the key.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parsed_keys = list(_parse(read_json(path), path))

    def overrides(self, stronger: Sequence[str] = ()) -> list[str]:
        """The file as Hydra overrides, without those that the user's `stronger` overrides replace."""
        self.parsed_keys = [_without(parsed, stronger) for parsed in self.parsed_keys]
        values = {key: value for parsed in self.parsed_keys for key, value in parsed.overrides.items()}
        return [f"{key}={_hydra_value(key, value)}" for key, value in values.items()]

    def key_of(self, ours: str) -> str | None:
        """The file's key that sets our key `ours`; None if no key of the file does."""
        origins = {key: parsed.key for parsed in self.parsed_keys for key in parsed.overrides}
        longest_first = sorted(origins, key=len, reverse=True)
        return next((origins[key] for key in longest_first if ours == key or ours.startswith(f"{key}.")), None)


# Rules


def note(text: str) -> Rule:
    """The key gives no override, only a note."""
    return lambda _, __: text


def unless(other: str, rule: str | Rule) -> Rule:
    """`rule`, but the key `other` of the section feda2v has precedence over this one."""
    return lambda value, tree: f"feda2v.{other} wins" if other in tree["feda2v"] else _apply(rule, value, tree)


def _apply(rule: str | Rule, value: Any, tree: Tree) -> dict[str, Any] | str:
    return {rule: value} if isinstance(rule, str) else rule(value, tree)


def _use_generator(value: Any, tree: Tree) -> dict[str, Any] | str:
    if not isinstance(value, bool):
        raise ConfigError(f"feda2v.use_generator = {value!r}: set true or false")
    if value and "generator_type" in tree["feda2v"]:
        return "feda2v.generator_type chooses it"
    return {"generator": "vae" if value else "none"}


def _generator_type(value: Any, tree: Tree) -> dict[str, Any] | str:
    return "feda2v.use_generator is false" if tree["feda2v"].get("use_generator") is False else {"generator": value}


def _checkpoint_folder(value: Any, tree: Tree) -> dict[str, Any]:
    name = tree["feda2v"].get("generator_checkpoint_base_name", "generator")
    return {"generator.checkpoint_path": f"{value}/{name}.pt"}


def _samples(value: Any, _: Tree) -> dict[str, Any] | str:
    return "the generator's default is kept" if value == "auto" else {"generator.synthetic_samples_per_class": value}


def _granularity(value: Any, _: Tree) -> dict[str, Any] | str:
    # Not every generator has the key, and `unified` is the default of those that have it.
    return "one generator for all classes, as here" if value == "unified" else {"generator.granularity": value}


def _device(value: Any, tree: Tree) -> dict[str, Any]:
    number = tree["experiment"].get("device_id")
    return {"device": f"{value}:{number}" if value == "cuda" and number is not None else value}


def _sites(value: Any, tree: Tree) -> dict[str, Any] | str:
    nodes = tree["nodes"]
    return (
        f"the section nodes has {len(nodes)} and wins" if len(nodes) not in (0, value) else {"partition.sites": value}
    )


def _images(key: str) -> Rule:
    """Images every so many rounds, by the image model that the file names."""

    def rule(value: Any, tree: Tree) -> dict[str, Any]:
        places = (tree["feda2v"], tree["federation"], *tree["nodes"].values())
        models = [section["diffusion_type"] for section in places if "diffusion_type" in section]
        return {key: value, "images": models[0]} if value and models else {key: value}

    return rule


def _audio_model(value: Any, _: Tree) -> dict[str, Any] | str:
    name = next((name for name in ("ast", "clap") if name in str(value).lower()), None)
    if name is None:
        return f"{IGNORED}: choose encoder=ast, clap, logmel or custom"
    return {"encoder": name, "encoder.model": value, "encoder.revision": None}


def _dataset(value: Any, tree: Tree) -> dict[str, Any] | str:
    in_nodes = any("dataset" in node for node in tree["nodes"].values())
    return "the section nodes wins" if in_nodes else {"dataset": str(value).lower()}


# A rule, or our key where the value stays as it is.
RULES: dict[str, str | Rule] = {
    "experiment.device": _device,
    "experiment.device_id": note("part of experiment.device"),
    "experiment.runs": lambda value, _: "one run, as here" if value == 1 else f"{IGNORED}: repeat with -m seed=0,1,2",
    "experiment.seed": lambda value, _: "any seed: the default is kept" if value == -1 else {"seed": value},
    "experiment.optimize_memory_usage": "optimize_memory_usage",
    "federation.num_clients": _sites,
    "federation.global_rounds": "rounds",
    "federation.local_epochs": "site.epochs",
    "federation.join_ratio": "federation.sites_per_round",
    "federation.diffusion_type": "adapters",
    "training.learning_rate": unless("adapters_learning_rate", "site.learning_rate"),
    "training.weight_decay": unless("adapters_weight_decay", "site.weight_decay"),
    "training.batch_size": "site.batch_size",
    "training.local_epochs": "site.epochs",
    "training.optimizer": lambda value, _: "as here" if value == "AdamW" else f"{IGNORED}: the optimiser is AdamW",
    "dataset.name": _dataset,
    "dataset.path": "dataset.root",
    "dataset.dir_alpha": "partition.alpha",
    "wandb.disabled": lambda value, _: {"wandb.mode": "disabled"} if value else "as here: wandb.mode",
    "feda2v.use_generator": _use_generator,
    "feda2v.generator_type": _generator_type,
    "feda2v.generator_save_checkpoint": "generator.save_checkpoint",
    "feda2v.generator_load_checkpoint": "generator.load_checkpoint",
    "feda2v.generator_checkpoint_path": "generator.checkpoint_path",
    "feda2v.generator_checkpoint_dir": unless("generator_checkpoint_path", _checkpoint_folder),
    "feda2v.generator_checkpoint_base_name": note("part of feda2v.generator_checkpoint_dir"),
    "feda2v.generator_checkpoint_frequency": "generator.checkpoint_frequency",
    "feda2v.generator_training_epochs": "generator.training_epochs",
    "feda2v.generator_augmentation": "generator.augmentation",
    "feda2v.generator_augmentation_noise": "generator.augmentation_noise",
    "feda2v.generator_validation_frequency": "generator.validation_frequency",
    "feda2v.generator_granularity": _granularity,
    "feda2v.generator_class_groups": lambda value, _: (
        "no groups, as here" if value is None else {"generator.groups": value}
    ),
    "feda2v.synthetic_samples_per_class": _samples,
    "feda2v.global_model_train": "finetune.enabled",
    "feda2v.global_model_train_from_nodes_adapters": "finetune.from_nodes_adapters",
    "feda2v.adapter_aggregation_mode": lambda value, _: {
        "aggregation.mode": "weighted" if value == "weighted_avg" else value
    },
    "feda2v.kd_learning_rate": "finetune.learning_rate",
    "feda2v.kd_samples_per_class": _samples,
    "feda2v.optimize_memory_usage": "optimize_memory_usage",
    "feda2v.diffusion_type": "adapters",
    "feda2v.adapters_learning_rate": "site.learning_rate",
    "feda2v.adapters_weight_decay": "site.weight_decay",
    "feda2v.project": "wandb.project",
    "feda2v.entity": "wandb.entity",
    "feda2v.wandb_mode": "wandb.mode",
    "feda2v.audio_model_name": _audio_model,
    "feda2v.generate_nodes_images_frequency": _images("generate_nodes_images_frequency"),
    "feda2v.generate_global_images_frequency": _images("generate_global_images_frequency"),
}
# Keys of the guide without a counterpart, by the reason or the setting to use instead.
IGNORED_KEYS = {
    "a run is named by its folder, --out FOLDER": "experiment.name experiment.goal experiment.description",
    "run.log has all messages, and no memory is reserved ahead": "experiment.debug experiment.use_ballooning",
    "aggregation.mode chooses the algorithm": "federation.algorithm federation.model_aggregation",
    "test clips are evaluated every round": "federation.eval_gap feda2v.nodes_train_metrics_splits "
    "feda2v.nodes_test_metrics_splits feda2v.server_train_metrics_splits feda2v.server_test_metrics_splits",
    "embeddings are always cached, in cache_dir": "federation.use_saved_audio_embeddings feda2v.store_audio_embeddings "
    "feda2v.audio_embedding_file_name",
    "images are made of the adapters' prompts, in the run's folder": "federation.generate_images_frequency "
    "feda2v.generate_global_images_average_text_embeddings feda2v.generate_from_clip_text_embeddings "
    "feda2v.generate_from_t5_text_embeddings feda2v.images_output_dir feda2v.output_image_base_name "
    "feda2v.save_generated_images_splits",
    "images.offload chooses what waits in CPU memory": "feda2v.generate_low_memory_footprint",
    "the optimiser is AdamW with a constant learning rate": "training.momentum training.learning_rate_schedule "
    "feda2v.adapters_learning_rate_schedule feda2v.clip_adapter_learning_rate_schedule "
    "feda2v.t5_adapter_learning_rate_schedule",
    "both adapters share site.learning_rate and site.weight_decay": "feda2v.clip_adapter_learning_rate "
    "feda2v.clip_adapter_weight_decay feda2v.t5_adapter_learning_rate feda2v.t5_adapter_weight_decay",
    "encoder=NAME chooses a pretrained, frozen encoder": "model.backbone model.backbone_model model.pretrained",
    "one generator of all classes is trained on the server in every round": "feda2v.generator_training_mode "
    "feda2v.generator_only_mode feda2v.shared_generator_in_only_mode feda2v.reset_generator_on_class_change",
    "generator.load_checkpoint starts with a saved generator": "feda2v.use_pretrained_generators",
    "generator.granularity chooses whether a VAE is conditioned": "feda2v.use_conditioned_vae",
    "a generator has as many tokens as the encoder": "feda2v.generator_training_sequence_length",
    "fine-tuning counts steps, finetune.steps": "feda2v.global_model_train_epochs feda2v.kd_training_epochs",
    "fine-tuning uses prototypes and finetune.synthetic_share, all classes alike": "feda2v.global_model_train_inputs "
    "feda2v.global_model_train_from_generator feda2v.global_model_train_from_nodes_audio_embeddings "
    "feda2v.compute_global_mean_from_class_means",
}
RULES |= {key: note(f"{IGNORED}: {reason}") for reason, keys in IGNORED_KEYS.items() for key in keys.split()}
GUIDE_SECTIONS = ("experiment", "federation", "training", "model", "dataset", "wandb", "nodes", "feda2v")


def _parse(file: Mapping[str, Any], path: Path) -> Iterator[ParsedKey]:
    """Every key of the file with its mapping, in the file's order."""
    for name, section in file.items():
        if name.startswith("_comment"):
            continue
        if name in GUIDE_SECTIONS and not isinstance(section, Mapping):
            raise ConfigError(f"{path}: {name} = {section!r}: a section is an object, {{...}}")
        if name not in GUIDE_SECTIONS and (near := nearest(name, [*GUIDE_SECTIONS, *_keys_of("feda2v")], TYPING_ERROR)):
            raise ConfigError(f"{path}: unknown key {name}; did you mean {near}?")
    tree = {name: file.get(name, {}) for name in GUIDE_SECTIONS}
    for name, section in file.items():
        if name == "nodes":
            yield from _nodes(section, path)
        elif name in GUIDE_SECTIONS:
            for key, value in section.items():
                if not key.startswith("_comment"):
                    result = _apply(_rule(name, key, path), value, tree)
                    overrides, words = ({}, result) if isinstance(result, str) else (result, "")
                    yield ParsedKey(f"{name}.{key}", value, overrides, words)
        elif not name.startswith("_comment"):
            yield ParsedKey(name, section, {}, f"{IGNORED}: not a section of the guide")


def _rule(section: str, key: str, path: Path) -> str | Rule:
    if rule := RULES.get(f"{section}.{MISSPELT.get(key, key)}"):
        return rule
    if near := nearest(key, _keys_of(section), TYPING_ERROR):
        raise ConfigError(f"{path}: unknown key {section}.{key}; did you mean {section}.{near}?")
    return note(f"{IGNORED}: not a key of the guide")


def _keys_of(section: str) -> list[str]:
    return [key.removeprefix(f"{section}.") for key in RULES if key.startswith(f"{section}.")]


def _nodes(nodes: Mapping[str, Any], path: Path) -> Iterator[ParsedKey]:
    """The guide lists the clips of each site; here a partition divides them."""
    for number, node in nodes.items():
        if not isinstance(node, Mapping):
            raise ConfigError(f"{path}: nodes.{number} = {node!r}: a node is an object, {{...}}")
    if not nodes:
        return
    yield ParsedKey("nodes", f"{len(nodes)} nodes", {"partition.sites": len(nodes)})
    keys = dict.fromkeys(key for node in nodes.values() for key in node if not key.startswith("_comment"))
    for key in keys:
        values = [node.get(key) for node in nodes.values()]
        yield ParsedKey(f"nodes.*.{key}", values[0] if _alike(values) else "...", *_node_key(key, values))


def _node_key(key: str, values: Sequence[Any]) -> tuple[dict[str, Any], str]:
    """Overrides and note of a key of the nodes, from the values that the nodes have."""
    if key == "selected_classes":
        return _selected_classes(values)
    if key not in ("dataset", "diffusion_type", "train_folds", "val_folds", "test_folds"):
        return {}, f"{IGNORED}: dataset.* and partition.* choose the clips of the sites"
    if not _alike(values):
        remedy = "use dataset=mixed with dataset.sets" if key == "dataset" else "all sites share one value"
        return {}, f"{IGNORED}: it differs between the nodes; {remedy}"
    value = values[0]
    if key == "dataset":
        return {"dataset": str(value).lower()}, ""
    if key == "diffusion_type":
        return {"adapters": value}, ""
    if not isinstance(value, list) or not all(isinstance(fold, int) for fold in value):
        return {f"dataset.{key}": value}, ""
    ours = key.replace("val_", "validation_")
    return {f"dataset.{ours}": [fold + 1 for fold in value]}, "folds are counted from 1 here"


def _selected_classes(values: Sequence[Any]) -> tuple[dict[str, Any], str]:
    if not all(isinstance(classes, list) for classes in values):
        return {}, f"{IGNORED}: not every node has a list of classes"
    names = list(dict.fromkeys(name for classes in values for name in classes))
    disjoint = len(names) == sum(len(classes) for classes in values)
    if disjoint and len({len(classes) for classes in values}) == 1:
        partition = {"partition": "classes", "partition.classes_per_site": len(values[0])}
        return {"dataset.classes": names, **partition}, "equally many per site; the seed chooses which"
    return {"dataset.classes": names}, "partition=KIND divides them among the sites"


def _alike(values: Sequence[Any]) -> bool:
    return all(value == values[0] for value in values)


# Overrides


def _without(parsed: ParsedKey, stronger: Sequence[str]) -> ParsedKey:
    """The key without the overrides that the user's own replace, with a note on each."""
    given = {word.lstrip("+~").partition("=")[0]: word for word in stronger}
    kept: dict[str, Any] = {}
    notes = [parsed.note] if parsed.note else []
    for key, value in parsed.overrides.items():
        group = key.split(".")[0]
        choice = given.get(group, "").partition("=")[2] if key != group else ""
        if key in given:
            notes.append(f"{given[key]} wins")
        elif choice and group in sections() and key.removeprefix(f"{group}.") not in _option_keys(group, choice):
            notes.append(f"{given[group]} has no {key}")
        else:
            kept[key] = value
    return replace(parsed, overrides=kept, note="; ".join(notes))


def _option_keys(group: str, choice: str) -> list[str]:
    """The keys that all options in `choice` have; a sweep has several, separated by commas."""
    try:
        keys = [set(option_keys(group, option)) for option in choice.split(",")]
    except FileNotFoundError:
        return []
    return sorted(set.intersection(*keys))


def _hydra_value(key: str, value: Any) -> str:
    """A JSON value in Hydra's grammar; text is quoted, except for the option of a group."""
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
    """A dictionary key in Hydra's grammar, which escapes keys instead of quoting them."""
    return re.sub(r"([\\()\[\]{}:=,\s])", r"\\\1", name)
