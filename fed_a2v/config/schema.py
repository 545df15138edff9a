"""The settings of an experiment, typed and checked, a class a section.

Every default lives in `conf/`; the classes below hold none, so that a value has one home. `config.py` composes
them; they travel to the sites as JSON.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from fed_a2v.config.tree import options
from fed_a2v.core.names import composed, nearest
from fed_a2v.errors import UserError


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d+)?", name):
        raise ValueError("choose cpu, cuda, cuda:NUMBER, mps or xpu")
    return name


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Precision = Literal["float32", "float16", "bfloat16"]
Device = Annotated[str, AfterValidator(_device)]


def _name(value: object) -> object:
    """A class's name as text; YAML and the command line read some as other values."""
    if isinstance(value, bool | float) or value is None:
        typed = "null" if value is None else str(value).lower()
        raise ValueError(
            f"{typed} is read as a value and not as a name; in quotes it is one: 'dataset.classes=[\"{typed}\"]'"
        )
    return composed(str(value)) if isinstance(value, int | str) else value


def _place(value: str) -> str:
    if not value.strip():  # which would be the working directory
        raise ValueError("empty; name a folder or file, or set it to null")
    return value


# Of a setting that says where, how fast or how visibly a run works, and not what it computes. A resumed run may change
# it. What lies at the places of data and prompts is compared by itself.
NO_RESULT: dict[str, JsonValue] = {"affects_result": False}


ClassName = Annotated[str, BeforeValidator(_name)]
Place = Annotated[str, AfterValidator(_place)]


class ConfigError(UserError, ValueError):
    """A setting is unknown, has the wrong type, is out of range, or contradicts another."""


class Section(BaseModel):
    """A part of the settings: no unknown keys, no changes after loading."""

    # No infinity: settings travel as JSON, which has none.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class DatasetSettings(Section):
    """Where the clips come from and how the official folds are used."""

    model_config = ConfigDict(populate_by_name=True)

    name: Literal["synth", "esc50", "vegas", "vggsound", "folder", "embeddings", "mixed", "custom"] = Field(
        description="the data set"
    )
    sets: list[DatasetSettings] = Field(
        description="mixed: the data sets, each with a name, a root or path, and what differs from its own defaults"
    )
    aliases: dict[ClassName, ClassName] | None = Field(
        description="further names of classes, {name in a data set: common name}, or a YAML file of them"
    )
    root: Place | None = Field(
        json_schema_extra=NO_RESULT, description="folder of the data set (esc50, vegas, vggsound, folder, custom)"
    )
    path: Place | None = Field(json_schema_extra=NO_RESULT, description="file of precomputed embeddings (embeddings)")
    classes: list[ClassName] | None = Field(description="keep these classes only; null keeps all")
    unseen: Annotated[int, Field(ge=0)] | list[ClassName] = Field(
        description="classes that no site trains on, by name, or how many of them to draw"
    )
    unseen_seed: Annotated[int, Field(ge=0)] = Field(description="of the drawing")
    test_fold: Count | None = Field(
        description="a number: accuracy is measured on this fold, the sites train on all others; null: see test_folds"
    )
    train_folds: list[int] | None = Field(
        description="folds that the sites train on; null: all that are for nothing else"
    )
    validation_folds: list[int] = Field(description="folds on which the best round is chosen; may be empty")
    test_folds: list[int] | None = Field(description="folds that accuracy is measured on; null: the last that there is")
    split_seed: Annotated[int, Field(ge=0)] = Field(
        description="of the dealing to folds where there are no official ones, and of what max_clips_per_class keeps"
    )
    clip_seconds: Annotated[float, Field(ge=0.01, le=600.0)] = Field(
        description="clips are cropped or padded to this length, in seconds"
    )
    clips_per_class: Annotated[int, Field(ge=1, le=100_000)] = Field(description="clips per class to make (synth)")
    max_clips_per_class: Count | None = Field(
        description="clips per class to use at most, drawn evenly from all folds; null: all"
    )
    cache_dtype: Literal["float32", "float16"] = Field(
        description="of the cached embeddings; float16 takes half the room"
    )
    skip_bad: bool = Field(description="skip and count unreadable clips instead of stopping")
    square_root: Literal["auto", "always", "never"] = Field(
        description="take the square root of the embeddings; auto: where none is negative"
    )
    target: str | None = Field(alias="_target_", description="import path of the class (custom)")
    arguments: dict[str, Any] = Field(description="arguments of the class beside root, {name: value} (custom)")

    @property
    def named_folds(self) -> dict[str, list[int]]:
        """The folds that are named, by the key that names them."""
        keys = ("train_folds", "validation_folds", "test_folds", "test_fold")
        values = {key: getattr(self, key) for key in keys}
        return {key: [value] if key == "test_fold" else value for key, value in values.items() if value is not None}

    @property
    def validates(self) -> bool:
        """Whether there are folds on which the best round is chosen."""
        return bool(self.validation_folds) or any(part.validates for part in self.sets)

    @property
    def place(self) -> str | None:
        """Where the data are: the root or the path; None where the data set has, or has been told, none."""
        return {"synth": None, "mixed": None, "embeddings": self.path}.get(self.name, self.root)

    @model_validator(mode="after")
    def _check(self) -> DatasetSettings:
        if self.name == "mixed":
            self._check_sets()
            return self
        if self.name == "custom" and self.target is None:
            raise ValueError("dataset=custom needs dataset._target_=MODULE.CLASS, the import path of its class")
        if self.name != "custom" and self.target is not None:
            raise ValueError(f"dataset._target_={self.target} needs dataset=custom")
        if self.test_fold is not None and self.test_folds is not None:
            raise ValueError(
                f"dataset.test_fold={self.test_fold} and dataset.test_folds={self.test_folds}: give one of them"
            )
        seen: dict[int, str] = {}
        for name, values in self.named_folds.items():
            if not values and name != "validation_folds":
                raise ValueError(f"dataset.{name} is empty; name at least one fold, or set it to null")
            for fold in values:
                if fold in seen:
                    raise ValueError(
                        f"fold {fold} is in dataset.{seen[fold]} and in dataset.{name}; a fold belongs to one of them"
                    )
                seen[fold] = name
        return self

    def _check_sets(self) -> None:
        if not self.sets:
            raise ValueError("dataset=mixed needs dataset.sets=[{name: esc50, root: FOLDER}, ...]")
        for key, folds in self.named_folds.items():
            if folds and key != "test_fold":  # that is handed on to the data sets
                raise ValueError(
                    f"dataset.{key}={folds}: each data set of a mix has its own; name them in dataset.sets"
                )
        places = set()
        for position, part in enumerate(self.sets):
            if part.name == "mixed":
                raise ValueError(f"dataset.sets.{position} is a mix itself; list its data sets in dataset.sets")
            if part.unseen:
                raise ValueError(f"dataset.sets.{position}.unseen: name classes without training in dataset.unseen")
            if (part.name, part.place) in places:
                raise ValueError(
                    f"dataset.sets names {part.name} {part.place or ''} twice: its clips would be in both; keep one"
                )
            places.add((part.name, part.place))

    def check_place(self, key: str = "dataset") -> None:
        """Check that the data set, or each of a mix, is told where its data are.

        Raises:
            ValueError: names what is missing.
        """
        for position, part in enumerate(self.sets if self.name == "mixed" else ()):
            part.check_place(f"dataset.sets.{position}")
        missing = self.place is None and self.name not in ("synth", "mixed", "custom")
        if missing and self.name == "embeddings":
            raise ValueError(f"{key}=embeddings needs {key}.path=FILE.npz")
        if missing:
            content = {"esc50": "audio/ and meta/", "vegas": "dog/, drum/, ...", "vggsound": "vggsound.csv"}
            holds = content.get(self.name, "a subfolder for each class")
            raise ValueError(f"{key}={self.name} needs {key}.root=FOLDER, the folder that holds {holds}")


class PartitionSettings(Section):
    """How the clips are divided among the sites."""

    kind: Literal["classes", "dirichlet", "pathological", "shards", "iid", "own"] = Field(
        description="by class, by Dirichlet draws, by drawn classes, by shards, at random, or each node its own folder"
    )
    sites: Count = Field(description="number of sites")
    classes_per_site: Count | None = Field(
        description="classes, pathological: how many; null spreads all classes evenly (classes)"
    )
    alpha: Positive = Field(description="dirichlet: concentration; small means skewed")
    shards_per_site: Count = Field(description="shards: blocks of the clips sorted by class that a site gets")
    min_clips: Count = Field(description="training clips that every site must have")
    by_set: bool = Field(description="dataset=mixed: every data set has sites of its own, instead of a mixture")

    @model_validator(mode="after")
    def _check(self) -> PartitionSettings:
        if self.kind == "pathological" and self.classes_per_site is None:
            raise ValueError("partition=pathological needs partition.classes_per_site, how many classes a site draws")
        return self


class EncoderSettings(Section):
    """The frozen audio encoder: log-mel statistics, a pretrained model, or a class of your own."""

    model_config = ConfigDict(populate_by_name=True)

    name: Literal["logmel", "ast", "clap", "custom"] = Field(description="the encoder")
    model: str | None = Field(description="repository of the Hugging Face hub, or a local folder (ast, clap)")
    revision: str | None = Field(description="commit, tag or branch of the repository; null: its main branch")
    tokens: Literal["cls", "mean", "full"] | Count | None = Field(
        description="cls: the clip's own token; mean, or a number: averages over the clip in time; full: all tokens"
    )
    batch_size: Count | None = Field(description="clips at once on a GPU; the CPU takes one, so that bits do not vary")
    device: str | None = Field(description="auto, cpu, cuda, cuda:1, ...")
    precision: Precision | None = Field(description="type of the weights and the computation")
    target: str | None = Field(alias="_target_", description="import path of the class (custom)")
    arguments: dict[str, Any] = Field(description="arguments of the class, {name: value} (custom)")

    @model_validator(mode="after")
    def _check(self) -> EncoderSettings:
        wanted = {"logmel": (), "custom": ("target",)}.get(
            self.name, ("model", "tokens", "batch_size", "device", "precision")
        )
        if self.name == "custom" and self.target is None:
            raise ValueError("encoder=custom needs encoder._target_=MODULE.CLASS, the import path of its class")
        for key, value in self.model_dump(exclude={"name", "revision", "arguments"}, by_alias=True).items():
            if (value is not None) != (key.strip("_") in wanted):
                raise ValueError(f"encoder={self.name}: encoder.{key}={value} must be {'null' if value else 'set'}")
        return self


class TextModelSettings(Section):
    """A pretrained text model."""

    model: str = Field(description="repository of the Hugging Face hub, or a local folder")
    revision: str | None = Field(description="commit, tag or branch of the repository; null: its main branch")
    subfolder: str = Field(description="within an image pipeline: text_encoder or text_encoder_2; else empty")
    precision: Precision = Field(description="type of the weights and the computation")


class TargetSettings(Section):
    """The prompt embeddings that the adapters learn to produce."""

    name: Literal["random", "file", "clip", "t5"] = Field(
        description="made from class names alone, read from a file, or by text models: CLIP, or CLIP and T5"
    )
    path: str | None = Field(json_schema_extra=NO_RESULT, description="file of prompt embeddings (file)")
    clip: TextModelSettings | None = Field(description="CLIP's text model (clip, t5)")
    t5: TextModelSettings | None = Field(description="T5's encoder (t5)")
    templates: list[str] | None = Field(description="prompts of a class, {} is its name; averaged (clip, t5)")
    captions: str | None = Field(
        json_schema_extra=NO_RESULT, description="CSV file with category and caption; replaces the templates (clip, t5)"
    )
    device: str | None = Field(description="of the text models: auto, cpu, cuda, ... (clip, t5)")

    @model_validator(mode="after")
    def _check(self) -> TargetSettings:
        if self.name == "file" and not self.path:
            raise ValueError("targets=file needs targets.path=FILE.npz")
        wanted = {"clip": self.name in ("clip", "t5"), "t5": self.name == "t5"}
        wanted |= dict.fromkeys(("templates", "device"), wanted["clip"])
        for key, needed in wanted.items():
            if (getattr(self, key) is not None) != needed:
                raise ValueError(f"targets={self.name}: targets.{key} must {'be set' if needed else 'be null'}")
        if self.captions is not None and not wanted["clip"]:
            raise ValueError(f"targets={self.name} makes no prompts: targets.captions must be null")
        for template in self.templates or ():
            if template.count("{}") != 1 or "{" in template.replace("{}", "") or "}" in template.replace("{}", ""):
                raise ValueError(f"targets.templates: {template!r} must have {{}} once, where the class name goes")
        if self.templates == []:
            raise ValueError("targets.templates is empty; ['{}'] is the class name alone")
        return self


def targets_in_file(path: str) -> TargetSettings:
    """The settings of targets that are read from a file."""
    return TargetSettings(name="file", path=path, clip=None, t5=None, templates=None, captions=None, device=None)


class AdapterSettings(Section):
    """Shapes of the adapters: output tokens x width for CLIP and, for FLUX, T5."""

    name: str = Field(description="a label for tables")
    clip_tokens: Count = Field(description="tokens of the CLIP prompt")
    clip_width: Count | None = Field(description="null takes the width of the targets file")
    t5_tokens: Annotated[int, Field(ge=0)] = Field(description="0: no T5 adapter")
    t5_width: Count = Field(description="width of the T5 prompt")
    hidden_width: Count = Field(description="width at which the adapters work")
    standardise: bool = Field(description="standardise the input with the sites' pooled mean and deviation")
    closed_form: bool = Field(description="one matrix, solved for by the server; sites do not train (CLIP only)")

    @model_validator(mode="after")
    def _check(self) -> AdapterSettings:
        if self.closed_form and self.t5_tokens:
            raise ValueError("adapters.closed_form has no T5 adapter; set adapters.t5_tokens=0")
        return self

    @property
    def image_model(self) -> Literal["sd", "flux"] | None:
        """Which kind of image model takes the prompts: `images=sd`, `images=flux`, or none."""
        if self.clip_tokens == 77 and not self.t5_tokens:
            return "sd"
        return "flux" if self.clip_tokens == 1 and self.t5_tokens else None


class LossSettings(Section):
    """Weights of the adapter loss: MSE + cosine + contrastive over all class prompts."""

    mse: NonNegative = Field(description="weight of the squared error, in units of the prompts' variance over classes")
    cosine: NonNegative = Field(description="weight of one minus the cosine of centred prompts")
    contrastive: NonNegative = Field(description="weight of the cross-entropy over all class prompts")
    temperature: Positive = Field(description="of the cross-entropy")

    @model_validator(mode="after")
    def _check(self) -> LossSettings:
        if self.mse + self.cosine + self.contrastive == 0:
            raise ValueError("loss.mse, loss.cosine and loss.contrastive are all 0; nothing would be learned")
        return self


class SiteSettings(Section):
    """Training at a site."""

    epochs: Count = Field(description="passes over the site's clips in a round")
    batch_size: Count = Field(description="clips of an optimiser step")
    learning_rate: Positive = Field(description="of AdamW")
    weight_decay: NonNegative = Field(description="of AdamW")
    proximal: NonNegative = Field(description="weight of FedProx's pull to the global adapters; 0: off")
    server_steps: bool = Field(
        description="after the epochs, also take as many steps as `finetune` names for the round: FedAvg of equal steps"
    )


class ShareSettings(Section):
    """What a site says about each class beside its adapters' weights."""

    kind: Literal["prototypes", "mean", "samples"] = Field(
        description="means of groups of similar clips, one mean a class, or single clips"
    )
    prototypes: Count = Field(description="group means per class at most")
    min_clips: Count = Field(description="clips behind each mean at least")
    variance: Literal["groups", "class", "none"] = Field(
        description="within groups: send each group's own, one for all groups of a class, or none"
    )
    dtype: Literal["float16", "float32"] = Field(description="type of the arrays on the wire")


def _aggregation_mode(name: str) -> str:
    if name not in options("aggregation"):
        near = nearest(name, options("aggregation"))
        raise ValueError(f"choose {', '.join(options('aggregation'))}" + (f"; did you mean {near}?" if near else ""))
    return name


# A rule is an option of `conf/aggregation/`, and a file in `federation/server/aggregation/`.
AggregationMode = Annotated[str, AfterValidator(_aggregation_mode)]


class AggregationSettings(Section):
    """How the server combines the sites' adapters."""

    model_config = ConfigDict(populate_by_name=True)

    mode: AggregationMode = Field(
        description="avg: mean; weighted: mean by clips as far as `max_site_share` lets it; median; trimmed: trimmed "
        "mean; krum: Multi-Krum; kd: distillation; none: no averaging; custom: a rule of your own"
    )
    target: str | None = Field(alias="_target_", description="custom: import path of a subclass of `AggregationRule`")
    arguments: dict[str, Any] = Field(description="custom: arguments of the rule, as `settings.arguments`")
    trimmed_share: Annotated[float, Field(ge=0.0, lt=0.5)] = Field(
        description="trimmed: share of the sites left out at either end, weight by weight"
    )
    malicious_sites: Annotated[int, Field(ge=0)] = Field(description="krum: sites to leave out")
    max_update_norm: Positive | None = Field(
        description="a site's adapters are pulled back to this distance from those it was sent; null: no limit"
    )
    max_site_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        description="share of the clips, in all and of a class, that one site may count for; 1: no limit. The log and "
        "`aggregation/capped_sites`, `bank/capped_sites` say where it cuts"
    )
    max_scale: Annotated[float, Field(gt=1.0)] | None = Field(
        description="a reply is refused whose adapters are so many times as large as those it was sent, or whose "
        "prototypes, deviations or mean outputs are so many times off the median site's (of three at least); null: "
        "no limit"
    )
    min_replies: Count = Field(description="good replies that a round needs")
    if_too_few: Literal["skip", "repeat"] = Field(
        description="too few good replies: skip the round, keeping the old adapters, or ask the sites again"
    )
    max_skipped_rounds: Annotated[int, Field(ge=0)] = Field(
        json_schema_extra=NO_RESULT,
        description="rounds in a row that may be skipped, or times that one is repeated; then the run ends",
    )
    max_age: Annotated[int, Field(ge=0)] = Field(description="rounds that a silent site's prompts stay; 0: always")

    @model_validator(mode="after")
    def _check_mode(self) -> AggregationSettings:
        if (self.mode == "custom") != (self.target is not None):
            raise ValueError("aggregation=custom and aggregation._target_=MODULE.CLASS, its import path, go together")
        return self

    @property
    def averages(self) -> bool:
        """Whether the sites' adapters become the global ones, by whatever rule."""
        return self.mode != "none"

    @property
    def distils(self) -> bool:
        """Whether the server step distils the sites' adapters."""
        return self.mode == "kd"

    @property
    def scale_limit(self) -> float:
        """`max_scale`, infinite where there is none."""
        return math.inf if self.max_scale is None else self.max_scale


class BankSettings(Section):
    """What the server keeps of the sites' prototypes from one round to the next."""

    keep: Literal["prototypes", "generator"] = Field(
        description="prototypes: as they came; generator: nothing but what the generator has learned of them"
    )
    rows_per_class: Count = Field(
        description="prototypes of a class that a round learns from at most, drawn anew each time; of as many the "
        "share generator.holdout is held out at most"
    )


class ScenarioSettings(Section):
    """Who is there when."""

    name: Literal["static", "class_incremental"] = Field(description="all sites always, or groups that come and go")
    steps: Count = Field(description="class_incremental: groups of sites that come one after the other")
    rounds_per_step: Count = Field(description="class_incremental: rounds until the next group takes over")


class GeneratorSettings(BaseModel):
    """What every generator has; further keys are arguments of the generator's own class."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, populate_by_name=True)

    name: str = Field(description="a label for tables")
    target: str | None = Field(alias="_target_", description="import path of the class; null: no generator")
    training_epochs: Count = Field(description="passes over the bank in a round")
    min_steps: Annotated[int, Field(ge=0)] = Field(
        description="optimiser steps in a round at least: on few rows there are more epochs; a closed form takes none"
    )
    augmentation: bool = Field(description="add noise to the inputs; the targets stay clean")
    augmentation_noise: NonNegative = Field(description="deviation of the noise on standardised inputs")
    synthetic_samples_per_class: Count = Field(description="synthetic embeddings of each class that fine-tuning gets")
    validation_frequency: Count = Field(
        description="rounds from one validation to the next; with bank.keep=generator each in which prototypes come"
    )
    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        description="share of each class's prototypes kept out of training, for validation and roll-back: one at least "
        "of three or more, decided when they come"
    )
    save_checkpoint: bool = Field(json_schema_extra=NO_RESULT, description="write the generator to a file of its own")
    load_checkpoint: bool = Field(description="start with the generator that is found at checkpoint_path")
    checkpoint_path: str = Field(
        json_schema_extra=NO_RESULT,
        description="where load_checkpoint looks: a file, its name without the round, or a folder; what is saved lies "
        "in the run's own checkpoints/ under the same name, with the round",
    )
    checkpoint_frequency: Count = Field(json_schema_extra=NO_RESULT, description="rounds from one file to the next")

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the generator's class, as the configuration gives them."""
        return dict(self.model_extra or {})


class FinetuneSettings(Section):
    """The server's fine-tuning of the global adapters on real prototypes and synthetic embeddings."""

    enabled: bool = Field(description="false: plain federated averaging, without a server step")
    first_steps: Count = Field(description="optimiser steps in the first round")
    steps: Count = Field(description="optimiser steps in every later round")
    batch_size: Count = Field(description="rows of an optimiser step")
    learning_rate: Positive = Field(description="of AdamW")
    weight_decay: NonNegative = Field(description="of AdamW")
    synthetic_share: Fraction = Field(description="share of a batch that is synthetic, where there is a generator")
    from_nodes_adapters: bool = Field(
        description="target: the sites' mean adapter outputs (true) or the class's text prompt (false)"
    )
    rollback: bool = Field(description="undo a fine-tuning that makes the held-out loss worse")

    def steps_of(self, round_number: int) -> int:
        """Optimiser steps of a round, from 1."""
        return self.first_steps if round_number == 1 else self.steps


class FederationSettings(Section):
    """How rounds run."""

    round_timeout: Positive = Field(json_schema_extra=NO_RESULT, description="seconds a round may wait for its sites")
    site_timeout: Positive | None = Field(
        json_schema_extra=NO_RESULT,
        description="seconds a site may work on one message; null: nine tenths of round_timeout",
    )
    start_timeout: Positive = Field(
        json_schema_extra=NO_RESULT, description="seconds to wait for nodes, at the start or where all are gone"
    )
    min_nodes: Count = Field(description="nodes to wait for before the start")
    sites_per_round: Annotated[float, Field(gt=0.0, le=1.0)] = Field(description="share of the sites drawn a round")
    evaluate_before: bool = Field(description="also evaluate the average before the server step")
    bind_names: bool = Field(
        description="deployed, partition=own: the name of a site belongs to the node that gave it first, which Flower "
        "knows by its registered key; false where nodes have no keys, and another number each time they connect"
    )

    @property
    def site_seconds(self) -> float:
        """Seconds that a site may work on one message."""
        return 0.9 * self.round_timeout if self.site_timeout is None else self.site_timeout

    @model_validator(mode="after")
    def _check(self) -> FederationSettings:
        if self.site_timeout is not None and self.site_timeout >= self.round_timeout:
            raise ValueError(
                f"federation.site_timeout={self.site_timeout:g} must be below federation.round_timeout="
                f"{self.round_timeout:g}, or no site could say that it was too slow"
            )
        return self


class CheckpointSettings(Section):
    """The states of a run that are saved, to go on after a stop."""

    frequency: Count = Field(description="rounds from one saved state to the next; the last round's is always saved")
    keep: Count = Field(description="newest states kept; a damaged one gives way to the one before it")
    keep_best: bool = Field(
        description="keep the state of the best round, too: by accuracy on the clips for validation, else for the "
        "test, and of the rounds in which all sites were evaluated, if there are any"
    )


class ClipSettings(Section):
    """The CLIP model that judges pictures."""

    model: str = Field(description="repository of the Hugging Face hub, or a local folder")
    revision: str | None = Field(description="commit, tag or branch of the repository; null: its main branch")


class ImageSettings(Section):
    """The image model that draws what the adapters make of sounds."""

    name: Literal["none", "sd", "flux"] = Field(description="Stable Diffusion (adapters=sd), FLUX (adapters=flux)")
    model: str | None = Field(description="repository of the Hugging Face hub, or a local folder")
    revision: str | None = Field(description="commit, tag or branch of the repository; null: its main branch")
    steps: Count = Field(description="of the diffusion")
    guidance: NonNegative = Field(
        description="strength of the prompt; sd: at 1 or less without classifier-free guidance"
    )
    size: Annotated[int, Field(ge=16, multiple_of=16)] | None = Field(
        description="of a side in pixels, a multiple of 16; null: the model's own"
    )
    seed: Annotated[int, Field(ge=0)] = Field(description="of the noise that each picture starts from")
    batch_size: Count = Field(description="pictures at once")
    offload: Literal["none", "model", "sequential"] = Field(
        description="keep on the CPU what the GPU does not need at the moment: whole models, or layer by layer"
    )
    device: str = Field(description="auto, cpu, cuda, cuda:1, ...")
    precision: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        description="type of the weights; auto: float32 on the CPU, else float16 (sd) or bfloat16 (flux)"
    )
    clip: ClipSettings = Field(description="the model that judges pictures")

    @model_validator(mode="after")
    def _check(self) -> ImageSettings:
        if self.name != "none" and not self.model:
            raise ValueError(f"images={self.name} needs images.model, a repository of the Hugging Face hub or a folder")
        return self


class WandbSettings(Section):
    """Weights & Biases."""

    mode: Literal["offline", "online", "disabled"] = Field(description="offline: written to disk, sent by `wandb sync`")
    project: str = Field(description="name of the project")
    entity: str | None = Field(description="user or team; null: the account's own")
    group: str | None = Field(description="under which runs are grouped")


class TrackingSettings(Section):
    """What is written beside the run's folder and W&B."""

    tensorboard: bool = Field(description="event files in the run's folder; needs fed-a2v[tensorboard]")


class ComponentSettings(BaseModel):
    """A callback or a metric; further keys are arguments of its class."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, populate_by_name=True)

    target: str = Field(alias="_target_", description="import path of the class")

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the class, as the configuration gives them."""
        return dict(self.model_extra or {})


class Settings(Section):
    """One experiment."""

    rounds: Count = Field(description="rounds of the federation")
    seed: Annotated[int, Field(ge=0)] = Field(description="of everything that is drawn")
    resume: str = Field(
        json_schema_extra=NO_RESULT, description="auto, never, the folder of a run, or one of its saved states"
    )
    accept_new_data: bool = Field(
        json_schema_extra=NO_RESULT,
        description="go on with a run although classes or clips of its data came, went or changed; false: refuse",
    )
    device: Device = Field(
        json_schema_extra=NO_RESULT, description="of torch, at the sites and on the server: cpu, cuda, cuda:1 ..."
    )
    threads: Count = Field(json_schema_extra=NO_RESULT, description="of torch; the same number gives the same bits")
    cache_dir: str | None = Field(
        json_schema_extra=NO_RESULT, description="of embeddings; null: $FED_A2V_CACHE, else the user's cache folder"
    )
    optimize_memory_usage: bool = Field(
        description="half-precision bank, small batches, and the generator on the CPU while it waits"
    )
    generate_global_images_frequency: Annotated[int, Field(ge=0)] = Field(
        json_schema_extra=NO_RESULT,
        description="rounds from one set of the global adapters' pictures to the next; 0: none",
    )
    generate_nodes_images_frequency: Annotated[int, Field(ge=0)] = Field(
        json_schema_extra=NO_RESULT, description="rounds from one set of the sites' pictures to the next; 0: none"
    )
    report: bool = Field(
        json_schema_extra=NO_RESULT, description="write `report.html` into the run's folder at its end"
    )
    dataset: DatasetSettings
    partition: PartitionSettings
    encoder: EncoderSettings
    targets: TargetSettings
    adapters: AdapterSettings
    loss: LossSettings
    site: SiteSettings
    share: ShareSettings
    aggregation: AggregationSettings
    bank: BankSettings
    scenario: ScenarioSettings
    generator: GeneratorSettings
    finetune: FinetuneSettings
    federation: FederationSettings
    checkpoint: CheckpointSettings = Field(json_schema_extra=NO_RESULT)
    images: ImageSettings = Field(json_schema_extra=NO_RESULT)
    wandb: WandbSettings = Field(json_schema_extra=NO_RESULT)
    tracking: TrackingSettings = Field(json_schema_extra=NO_RESULT)
    metrics: dict[str, ComponentSettings | None] = Field(
        json_schema_extra=NO_RESULT,
        description="values of a round's row by name, subclasses of `Metric`; null leaves one out",
    )
    callbacks: dict[str, ComponentSettings | None] = Field(
        json_schema_extra=NO_RESULT,
        description="side effects of the run by name, called in this order; null leaves one out",
    )

    @property
    def needs_weights(self) -> bool:
        """Whether anything is done with the sites' adapters: they are averaged, or distilled."""
        return self.aggregation.averages and not self.adapters.closed_form

    @property
    def needs_prototypes(self) -> bool:
        """Whether anything is done with each class's averages; else one mean a class standardises the adapters' input.

        The server step trains on them, and pictures of the global adapters are made of them.
        """
        return self.finetune.enabled or self.aggregation.distils or self.generate_global_images_frequency > 0

    @property
    def needs_outputs(self) -> bool:
        """Whether anything is done with the mean outputs of the sites' adapters: targets, or pictures of the sites."""
        targets = self.finetune.enabled and self.finetune.from_nodes_adapters and not self.adapters.closed_form
        return targets or self.generate_nodes_images_frequency > 0

    @model_validator(mode="after")
    def _check_server_step(self) -> Settings:
        if self.generator.name == "custom" and self.generator.target is None:
            raise ValueError("generator=custom needs generator._target_=MODULE.CLASS, the import path of its class")
        if self.bank.keep == "generator" and self.generator.target is None:
            raise ValueError("bank.keep=generator needs a generator; generator=none has nothing to remember with")
        if self.adapters.closed_form and (not self.finetune.enabled or self.aggregation.distils):
            raise ValueError("adapters.closed_form is solved in the server step: finetune.enabled=true and no kd")
        if self.adapters.t5_tokens and self.targets.name == "clip":
            raise ValueError(
                f"adapters.t5_tokens={self.adapters.t5_tokens}: the adapters have a T5 side, targets=clip has none; "
                "choose targets=t5 (CLIP and T5), or adapters without T5 (adapters=sd or compact)"
            )
        if self.generator.load_checkpoint and self.generator.target is None:
            raise ValueError("generator.load_checkpoint=true, but generator=none has no checkpoint; choose another one")
        self._check_images()
        return self

    @model_validator(mode="after")
    def _check_sites(self) -> Settings:
        if self.scenario.name == "class_incremental" and self.partition.kind == "own":
            raise ValueError("scenario=class_incremental needs a partition with numbered sites, not partition=own")
        if self.partition.kind == "own":  # the sites are counted when they come
            return self
        sites, aggregation = self.partition.sites, self.aggregation
        if self.scenario.name == "class_incremental" and sites < self.scenario.steps:
            raise ValueError(f"scenario.steps={self.scenario.steps} groups need as many sites, partition.sites={sites}")
        asked = max(1, round(self.federation.sites_per_round * sites))
        if aggregation.min_replies > asked:
            raise ValueError(
                f"aggregation.min_replies={aggregation.min_replies}, but a round asks {asked} sites "
                f"(partition.sites={sites}, federation.sites_per_round={self.federation.sites_per_round:g}): "
                f"no round would count; lower it to {asked}"
            )
        if aggregation.mode == "krum" and asked < 2 * aggregation.malicious_sites + 3:
            raise ValueError(
                f"aggregation.mode=krum tells {aggregation.malicious_sites} malicious sites from the rest among "
                f"{2 * aggregation.malicious_sites + 3} at least, a round asks {asked}: raise partition.sites, "
                "lower aggregation.malicious_sites, or choose median"
            )
        return self

    @model_validator(mode="after")
    def _check_data(self) -> Settings:
        # Where every node brings its own data, the server needs no more than the names of the classes.
        if self.partition.kind == "own" and self.dataset.classes is not None:
            return self
        self.dataset.check_place()
        return self

    def _check_images(self) -> None:
        fitting = self.adapters.image_model
        if self.images.name not in ("none", fitting):
            pairs = f"images={fitting}" if fitting else "no image model"
            raise ValueError(
                f"images={self.images.name} takes the prompts of adapters={self.images.name}; those of "
                f"adapters={self.adapters.name} go with {pairs}"
            )
        if self.images.name == "none":
            for key in ("generate_global_images_frequency", "generate_nodes_images_frequency"):
                if getattr(self, key):
                    wanted = "images=sd with adapters=sd, or images=flux with adapters=flux"
                    raise ValueError(f"{key}={getattr(self, key)} needs an image model: {wanted}")


def cache_dir(settings: Settings) -> Path:
    """Folder of the embedding cache: `cache_dir`, else $FED_A2V_CACHE, else the user's cache folder."""
    if settings.cache_dir:
        return Path(settings.cache_dir).expanduser()
    if folder := os.environ.get("FED_A2V_CACHE"):
        return Path(folder).expanduser()
    # By its specification one that is empty or relative does not count.
    users = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (users if users.is_absolute() else Path("~/.cache").expanduser()) / "fed_a2v"


def affects_result(key: str) -> bool:
    """Whether a setting, by its dotted key, changes what a run computes; so does every key that is not known."""
    model: Any = Settings
    for name in key.split("."):
        fields = getattr(model, "model_fields", {})
        field = fields.get(name)
        if field is None:
            return True
        if field.json_schema_extra == NO_RESULT:
            return False
        model = field.annotation
    return True
