"""Typed, checked settings of an experiment, one class per section.

`fed_a2v.config.compose` builds them; the server sends them to the sites as JSON. Every default is in `conf/` and none
is here, so that a value is defined in one place.
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
    """A class name as text; YAML and the command line parse some names as other values."""
    if isinstance(value, bool | float) or value is None:
        typed = "null" if value is None else str(value).lower()
        raise ValueError(f"{typed} is parsed as a value, not as a name; quote it: 'dataset.classes=[\"{typed}\"]'")
    return composed(str(value)) if isinstance(value, int | str) else value


def _place(value: str) -> str:
    if not value.strip():  # an empty path would mean the working directory
        raise ValueError("empty; name a folder or file, or set it to null")
    return value


# Marks a setting that affects where, how fast or how visibly a run works, but not what it computes. A resumed run may
# change it. The files at the paths of data and prompts are compared separately.
NO_RESULT: dict[str, JsonValue] = {"affects_result": False}


ClassName = Annotated[str, BeforeValidator(_name)]
Place = Annotated[str, AfterValidator(_place)]


class ConfigError(UserError, ValueError):
    """A setting is unknown, has the wrong type, is out of range, or contradicts another."""


class Section(BaseModel):
    """A part of the settings: no unknown keys, no changes after loading."""

    # No infinity: settings are sent as JSON, which has none.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class DatasetSettings(Section):
    """Source of the clips and use of the official folds."""

    model_config = ConfigDict(populate_by_name=True)

    name: Literal["synth", "esc50", "vegas", "vggsound", "folder", "embeddings", "mixed", "custom"] = Field(
        description="name of the data set"
    )
    sets: list[DatasetSettings] = Field(
        description="data sets of a mix, each with a name, a root or path, and values that differ from its defaults"
    )
    aliases: dict[ClassName, ClassName] | None = Field(
        description="further names of classes, {name in a data set: common name}, or a YAML file with them"
    )
    root: Place | None = Field(
        json_schema_extra=NO_RESULT, description="folder of the data set (esc50, vegas, vggsound, folder, custom)"
    )
    path: Place | None = Field(json_schema_extra=NO_RESULT, description="file of precomputed embeddings (embeddings)")
    classes: list[ClassName] | None = Field(description="classes to keep; null: all")
    unseen: Annotated[int, Field(ge=0)] | list[ClassName] = Field(
        description="classes that no site trains on: their names, or their number"
    )
    unseen_seed: Annotated[int, Field(ge=0)] = Field(description="seed of the draw of unseen classes")
    test_fold: Count | None = Field(
        description="fold that accuracy is measured on; the sites train on all others; null: see test_folds"
    )
    train_folds: list[int] | None = Field(description="folds that the sites train on; null: all without another use")
    validation_folds: list[int] = Field(description="folds that the best round is chosen on; may be empty")
    test_folds: list[int] | None = Field(description="folds that accuracy is measured on; null: the last fold")
    split_seed: Annotated[int, Field(ge=0)] = Field(
        description="seed of the folds where a data set has none, and of the clips that max_clips_per_class keeps"
    )
    clip_seconds: Annotated[float, Field(ge=0.01, le=600.0)] = Field(
        description="length of a clip in seconds; clips are cropped or padded to it"
    )
    clips_per_class: Annotated[int, Field(ge=1, le=100_000)] = Field(
        description="number of clips per class to synthesise (synth)"
    )
    max_clips_per_class: Count | None = Field(
        description="maximum number of clips per class, drawn evenly from all folds; null: all"
    )
    cache_dtype: Literal["float32", "float16"] = Field(
        description="type of the cached embeddings; float16 takes half the space"
    )
    skip_bad: bool = Field(description="whether to skip and count unreadable clips instead of stopping")
    square_root: Literal["auto", "always", "never"] = Field(
        description="when to take the square root of the embeddings; auto: where none is negative"
    )
    target: str | None = Field(alias="_target_", description="import path of the class (custom)")
    arguments: dict[str, Any] = Field(description="arguments of the class besides root, {name: value} (custom)")

    @property
    def named_folds(self) -> dict[str, list[int]]:
        """The folds that are set, by their key."""
        keys = ("train_folds", "validation_folds", "test_folds", "test_fold")
        values = {key: getattr(self, key) for key in keys}
        return {key: [value] if key == "test_fold" else value for key, value in values.items() if value is not None}

    @property
    def validates(self) -> bool:
        """Whether there are folds that the best round is chosen on."""
        return bool(self.validation_folds) or any(part.validates for part in self.sets)

    @property
    def place(self) -> str | None:
        """Root or path of the data; None where the data set needs none or none is set."""
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
            if folds and key != "test_fold":  # test_fold is passed on to the data sets
                raise ValueError(
                    f"dataset.{key}={folds}: each data set of a mix has its own folds; set them in dataset.sets"
                )
        places = set()
        for position, part in enumerate(self.sets):
            if part.name == "mixed":
                raise ValueError(f"dataset.sets.{position} is a mix itself; list its data sets in dataset.sets")
            if part.unseen:
                raise ValueError(f"dataset.sets.{position}.unseen: name unseen classes in dataset.unseen")
            if (part.name, part.place) in places:
                raise ValueError(
                    f"dataset.sets names {part.name} {part.place or ''} twice, which duplicates its clips; keep one"
                )
            places.add((part.name, part.place))

    def check_place(self, key: str = "dataset") -> None:
        """Check that the root or path of the data set, or of each of a mix, is set.

        Raises:
            ValueError: names the missing key.
        """
        for position, part in enumerate(self.sets if self.name == "mixed" else ()):
            part.check_place(f"dataset.sets.{position}")
        missing = self.place is None and self.name not in ("synth", "mixed", "custom")
        if missing and self.name == "embeddings":
            raise ValueError(f"{key}=embeddings needs {key}.path=FILE.npz")
        if missing:
            content = {"esc50": "audio/ and meta/", "vegas": "dog/, drum/, ...", "vggsound": "vggsound.csv"}
            expected = content.get(self.name, "a subfolder for each class")
            raise ValueError(f"{key}={self.name} needs {key}.root=FOLDER, the folder with {expected}")


class PartitionSettings(Section):
    """Division of the clips among the sites."""

    kind: Literal["classes", "dirichlet", "pathological", "shards", "iid", "own"] = Field(
        description="rule: whole classes, Dirichlet draws, drawn classes, shards, at random, or each node's own folder"
    )
    sites: Count = Field(description="number of sites")
    classes_per_site: Count | None = Field(
        description="number of classes of a site; null spreads all classes evenly (classes, pathological)"
    )
    alpha: Positive = Field(description="concentration of the Dirichlet distribution; small means skewed (dirichlet)")
    shards_per_site: Count = Field(description="number of blocks of class-sorted clips that a site gets (shards)")
    min_clips: Count = Field(description="minimum number of training clips of a site")
    by_set: bool = Field(description="whether each data set of a mix has its own sites (dataset=mixed)")

    @model_validator(mode="after")
    def _check(self) -> PartitionSettings:
        if self.kind == "pathological" and self.classes_per_site is None:
            raise ValueError("partition=pathological needs partition.classes_per_site, the number of classes of a site")
        return self


class EncoderSettings(Section):
    """Frozen audio encoder: log-mel statistics, a pretrained model, or a custom class."""

    model_config = ConfigDict(populate_by_name=True)

    name: Literal["logmel", "ast", "clap", "custom"] = Field(description="name of the encoder")
    model: str | None = Field(description="repository of the Hugging Face hub, or a local folder (ast, clap)")
    revision: str | None = Field(description="commit, tag or branch of the repository; null: its main branch")
    tokens: Literal["cls", "mean", "full"] | Count | None = Field(
        description="tokens of a clip; cls: the [CLS] token; mean or a number: averages over time; full: all tokens"
    )
    batch_size: Count | None = Field(description="clips per batch on a GPU; always 1 on the CPU, for identical bits")
    device: str | None = Field(description="device of the encoder: auto, cpu, cuda, cuda:1, ...")
    precision: Precision | None = Field(description="type of the weights and the computation")
    target: str | None = Field(alias="_target_", description="import path of the class (custom)")
    arguments: dict[str, Any] = Field(description="arguments of the class, {name: value} (custom)")

    @model_validator(mode="after")
    def _check(self) -> EncoderSettings:
        required = {"logmel": (), "custom": ("target",)}.get(
            self.name, ("model", "tokens", "batch_size", "device", "precision")
        )
        if self.name == "custom" and self.target is None:
            raise ValueError("encoder=custom needs encoder._target_=MODULE.CLASS, the import path of its class")
        for key, value in self.model_dump(exclude={"name", "revision", "arguments"}, by_alias=True).items():
            if (value is not None) != (key.strip("_") in required):
                raise ValueError(f"encoder={self.name}: encoder.{key}={value} must be {'null' if value else 'set'}")
        return self


class TextModelSettings(Section):
    """A pretrained text model."""

    model: str = Field(description="repository of the Hugging Face hub, or a local folder")
    revision: str | None = Field(description="commit, tag or branch of the repository; null: its main branch")
    subfolder: str = Field(description="folder within an image pipeline: text_encoder or text_encoder_2; else empty")
    precision: Precision = Field(description="type of the weights and the computation")


class TargetSettings(Section):
    """Prompt embeddings that the adapters learn to produce."""

    name: Literal["random", "file", "clip", "t5"] = Field(
        description="source: random vectors by class name, a file, CLIP's text model, or CLIP and T5"
    )
    path: str | None = Field(json_schema_extra=NO_RESULT, description="file of prompt embeddings (file)")
    clip: TextModelSettings | None = Field(description="CLIP's text model (clip, t5)")
    t5: TextModelSettings | None = Field(description="T5's encoder (t5)")
    templates: list[str] | None = Field(description="prompts of a class, with {} for its name; averaged (clip, t5)")
    captions: str | None = Field(
        json_schema_extra=NO_RESULT, description="CSV file with category and caption; replaces the templates (clip, t5)"
    )
    device: str | None = Field(description="device of the text models: auto, cpu, cuda, ... (clip, t5)")

    @model_validator(mode="after")
    def _check(self) -> TargetSettings:
        if self.name == "file" and not self.path:
            raise ValueError("targets=file needs targets.path=FILE.npz")
        required = {"clip": self.name in ("clip", "t5"), "t5": self.name == "t5"}
        required |= dict.fromkeys(("templates", "device"), required["clip"])
        for key, needed in required.items():
            if (getattr(self, key) is not None) != needed:
                raise ValueError(f"targets={self.name}: targets.{key} must {'be set' if needed else 'be null'}")
        if self.captions is not None and not required["clip"]:
            raise ValueError(f"targets={self.name} uses no captions: targets.captions must be null")
        for template in self.templates or ():
            if template.count("{}") != 1 or "{" in template.replace("{}", "") or "}" in template.replace("{}", ""):
                raise ValueError(f"targets.templates: {template!r} must contain {{}} once, for the class name")
        if self.templates == []:
            raise ValueError("targets.templates is empty; ['{}'] is the class name alone")
        return self


def targets_in_file(path: str) -> TargetSettings:
    """Settings of targets from a file."""
    return TargetSettings(name="file", path=path, clip=None, t5=None, templates=None, captions=None, device=None)


class AdapterSettings(Section):
    """Shapes of the adapters: output tokens x width for CLIP and, for FLUX, T5."""

    name: str = Field(description="label in tables")
    clip_tokens: Count = Field(description="number of tokens of the CLIP prompt")
    clip_width: Count | None = Field(description="width of the CLIP prompt; null: that of the targets")
    t5_tokens: Annotated[int, Field(ge=0)] = Field(description="number of tokens of the T5 prompt; 0: no T5 adapter")
    t5_width: Count = Field(description="width of the T5 prompt")
    hidden_width: Count = Field(description="hidden width of the adapters")
    standardise: bool = Field(
        description="whether to standardise the input with the sites' pooled mean and standard deviation"
    )
    closed_form: bool = Field(
        description="whether the adapter is one matrix that the server solves for; sites do not train (CLIP only)"
    )

    @model_validator(mode="after")
    def _check(self) -> AdapterSettings:
        if self.closed_form and self.t5_tokens:
            # Token count times width of T5 would make the matrix too large for memory.
            raise ValueError("adapters.closed_form does not support a T5 adapter; set adapters.t5_tokens=0")
        return self

    @property
    def image_model(self) -> Literal["sd", "flux"] | None:
        """Option of `images` that accepts the prompts: sd, flux or none."""
        if self.clip_tokens == 77 and not self.t5_tokens:
            return "sd"
        return "flux" if self.clip_tokens == 1 and self.t5_tokens else None


class LossSettings(Section):
    """Weights of the adapter loss: MSE + cosine + contrastive over all class prompts."""

    mse: NonNegative = Field(description="weight of the squared error, in units of the prompts' variance over classes")
    cosine: NonNegative = Field(description="weight of one minus the cosine of centred prompts")
    contrastive: NonNegative = Field(description="weight of the cross-entropy over all class prompts")
    temperature: Positive = Field(description="temperature of the cross-entropy")

    @model_validator(mode="after")
    def _check(self) -> LossSettings:
        if self.mse + self.cosine + self.contrastive == 0:
            raise ValueError("loss.mse, loss.cosine and loss.contrastive are all 0; set at least one above 0")
        return self


class SiteSettings(Section):
    """Training at a site."""

    epochs: Count = Field(description="passes over the site's clips in a round")
    batch_size: Count = Field(description="clips per optimiser step")
    learning_rate: Positive = Field(description="learning rate of AdamW")
    weight_decay: NonNegative = Field(description="weight decay of AdamW")
    proximal: NonNegative = Field(description="weight of FedProx's proximal term; 0: off")
    server_steps: bool = Field(
        description="whether to also take the steps of `finetune` at the sites: FedAvg with equally many steps"
    )


class ShareSettings(Section):
    """Statistics of each class that a site sends besides its adapters."""

    kind: Literal["prototypes", "mean", "samples"] = Field(
        description="kind of statistics: means of groups of similar clips, one mean per class, or single clips"
    )
    prototypes: Count = Field(description="maximum number of group means per class")
    min_clips: Count = Field(description="minimum number of clips per mean")
    variance: Literal["groups", "class", "none"] = Field(
        description="variance within groups: one per group, one for all groups of a class, or none"
    )
    dtype: Literal["float16", "float32"] = Field(description="type of the arrays in a message")


def _aggregation_mode(name: str) -> str:
    if name not in options("aggregation"):
        near = nearest(name, options("aggregation"))
        raise ValueError(f"choose {', '.join(options('aggregation'))}" + (f"; did you mean {near}?" if near else ""))
    return name


# A rule is an option in `conf/aggregation/` and a file in `federation/server/aggregation/`.
AggregationMode = Annotated[str, AfterValidator(_aggregation_mode)]


class AggregationSettings(Section):
    """Aggregation of the sites' adapters."""

    model_config = ConfigDict(populate_by_name=True)

    mode: AggregationMode = Field(
        description="rule; avg: mean; weighted: mean by clips, limited by `max_site_share`; median; trimmed: trimmed "
        "mean; krum: Multi-Krum; kd: distillation; none: no averaging; custom: your own rule"
    )
    target: str | None = Field(alias="_target_", description="import path of a subclass of `AggregationRule` (custom)")
    arguments: dict[str, Any] = Field(description="arguments of the rule, in its `settings.arguments` (custom)")
    trimmed_share: Annotated[float, Field(ge=0.0, lt=0.5)] = Field(
        description="share of the sites to leave out at either end, for each weight (trimmed)"
    )
    malicious_sites: Annotated[int, Field(ge=0)] = Field(description="number of sites to leave out (krum)")
    max_update_norm: Positive | None = Field(
        description="maximum norm of a site's update; larger ones are scaled down to it; null: no limit"
    )
    max_site_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        description="maximum weight of one site, as a share of all clips and of a class's clips; 1: no limit; the log "
        "and `aggregation/capped_sites`, `bank/capped_sites` report where it applies"
    )
    max_scale: Annotated[float, Field(gt=1.0)] | None = Field(
        description="maximum factor between a reply and its reference, else the reply is refused: adapters against "
        "those sent to the site; prototypes, deviations and mean outputs against the median of three or more sites; "
        "null: no limit"
    )
    min_replies: Count = Field(description="minimum number of valid replies of a round")
    if_too_few: Literal["skip", "repeat"] = Field(
        description="action on too few valid replies: skip the round and keep the old adapters, or repeat it"
    )
    max_skipped_rounds: Annotated[int, Field(ge=0)] = Field(
        json_schema_extra=NO_RESULT,
        description="maximum number of rounds skipped in a row, or of repeats of one round, before the run ends",
    )
    max_age: Annotated[int, Field(ge=0)] = Field(
        description="number of rounds that prototypes of a site without replies are kept; 0: always"
    )

    @model_validator(mode="after")
    def _check_mode(self) -> AggregationSettings:
        if (self.mode == "custom") != (self.target is not None):
            raise ValueError("aggregation=custom needs aggregation._target_=MODULE.CLASS, and only custom takes it")
        return self

    @property
    def averages(self) -> bool:
        """Whether a rule combines the sites' adapters into the global ones."""
        return self.mode != "none"

    @property
    def distils(self) -> bool:
        """Whether the server step distils the sites' adapters."""
        return self.mode == "kd"

    @property
    def scale_limit(self) -> float:
        """`max_scale`; infinite for null."""
        return math.inf if self.max_scale is None else self.max_scale


class BankSettings(Section):
    """Storage of the sites' prototypes between rounds."""

    keep: Literal["prototypes", "generator"] = Field(
        description="what is kept; prototypes: all as received; generator: only what the generator has learned"
    )
    rows_per_class: Count = Field(
        description="maximum number of prototypes of a class that a round trains on, drawn again each round; "
        "generator.holdout takes its share of at most as many"
    )


class ScenarioSettings(Section):
    """Participation of the sites over time."""

    name: Literal["static", "class_incremental"] = Field(
        description="all sites in every round, or one group of sites after another"
    )
    steps: Count = Field(description="number of groups of sites (class_incremental)")
    rounds_per_step: Count = Field(description="number of rounds of each group (class_incremental)")


class GeneratorSettings(BaseModel):
    """Settings of every generator; further keys are arguments of the generator's class."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, populate_by_name=True)

    name: str = Field(description="label in tables")
    target: str | None = Field(alias="_target_", description="import path of the class; null: no generator")
    training_epochs: Count = Field(description="passes over the bank in a round")
    min_steps: Annotated[int, Field(ge=0)] = Field(
        description="minimum number of optimiser steps in a round, reached by more epochs; a closed form takes none"
    )
    augmentation: bool = Field(description="whether to add noise to the inputs; the targets stay clean")
    augmentation_noise: NonNegative = Field(description="standard deviation of the noise on standardised inputs")
    synthetic_samples_per_class: Count = Field(description="synthetic embeddings per class for fine-tuning")
    validation_frequency: Count = Field(
        description="rounds between two validations; with bank.keep=generator, of the rounds that receive prototypes"
    )
    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        description="share of each class's prototypes held out of training, for validation and rollback; at least one "
        "of three or more; chosen when they are received"
    )
    save_checkpoint: bool = Field(json_schema_extra=NO_RESULT, description="whether to save the generator to files")
    load_checkpoint: bool = Field(description="whether to start with the generator at checkpoint_path")
    checkpoint_path: str = Field(
        json_schema_extra=NO_RESULT,
        description="path for load_checkpoint: a file, its name without the round, or a folder; files are saved to the "
        "run's checkpoints/ under the same name with the round",
    )
    checkpoint_frequency: Count = Field(json_schema_extra=NO_RESULT, description="rounds between two saved files")

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the generator's class, as the configuration gives them."""
        return dict(self.model_extra or {})


class FinetuneSettings(Section):
    """Fine-tuning of the global adapters by the server, on real prototypes and synthetic embeddings."""

    enabled: bool = Field(description="whether the server fine-tunes; false: plain federated averaging")
    first_steps: Count = Field(description="optimiser steps in the first round")
    steps: Count = Field(description="optimiser steps in every later round")
    batch_size: Count = Field(description="rows per optimiser step")
    learning_rate: Positive = Field(description="learning rate of AdamW")
    weight_decay: NonNegative = Field(description="weight decay of AdamW")
    synthetic_share: Fraction = Field(description="synthetic share of a batch, where there is a generator")
    from_nodes_adapters: bool = Field(
        description="whether the targets are the sites' mean adapter outputs instead of the text prompts"
    )
    rollback: bool = Field(description="whether to undo a fine-tuning that increases the held-out loss")

    def steps_of(self, round_number: int) -> int:
        """Optimiser steps of a round, from 1."""
        return self.first_steps if round_number == 1 else self.steps


class FederationSettings(Section):
    """Rounds, timeouts and nodes."""

    round_timeout: Positive = Field(
        json_schema_extra=NO_RESULT, description="maximum time in seconds that a round waits for its sites"
    )
    site_timeout: Positive | None = Field(
        json_schema_extra=NO_RESULT,
        description="maximum time in seconds of a site for one message; null: nine tenths of round_timeout",
    )
    start_timeout: Positive = Field(
        json_schema_extra=NO_RESULT,
        description="maximum time in seconds to wait for nodes, at the start or after all have disconnected",
    )
    min_nodes: Count = Field(description="number of nodes to wait for before the start")
    sites_per_round: Annotated[float, Field(gt=0.0, le=1.0)] = Field(description="share of the sites in a round")
    evaluate_before: bool = Field(description="whether to also evaluate the average before the server step")
    bind_names: bool = Field(
        description="whether a site's name is bound to the first node that uses it, identified by its key (deployed, "
        "partition=own); false: for nodes without keys, whose number changes with each connection"
    )

    @property
    def site_seconds(self) -> float:
        """Maximum time of a site for one message, in seconds."""
        return 0.9 * self.round_timeout if self.site_timeout is None else self.site_timeout

    @model_validator(mode="after")
    def _check(self) -> FederationSettings:
        if self.site_timeout is not None and self.site_timeout >= self.round_timeout:
            raise ValueError(
                f"federation.site_timeout={self.site_timeout:g} must be below federation.round_timeout="
                f"{self.round_timeout:g}, or a site could not report in time that it was too slow"
            )
        return self


class CheckpointSettings(Section):
    """Saved states of a run, to resume it after a stop."""

    frequency: Count = Field(description="rounds between two saved states; the last round is always saved")
    keep: Count = Field(description="number of newest states to keep; a damaged one is replaced by the one before it")
    keep_best: bool = Field(
        description="whether to also keep the state of the best round, by validation accuracy, else test accuracy; "
        "rounds that evaluated all sites have precedence"
    )


class ClipSettings(Section):
    """CLIP model that scores images."""

    model: str = Field(description="repository of the Hugging Face hub, or a local folder")
    revision: str | None = Field(description="commit, tag or branch of the repository; null: its main branch")


class ImageSettings(Section):
    """Image model that generates images from the adapters' prompts."""

    name: Literal["none", "sd", "flux"] = Field(
        description="image model: none, Stable Diffusion (adapters=sd) or FLUX (adapters=flux)"
    )
    model: str | None = Field(description="repository of the Hugging Face hub, or a local folder")
    revision: str | None = Field(description="commit, tag or branch of the repository; null: its main branch")
    steps: Count = Field(description="number of diffusion steps")
    guidance: NonNegative = Field(description="guidance scale; sd: no classifier-free guidance at 1 or less")
    size: Annotated[int, Field(ge=16, multiple_of=16)] | None = Field(
        description="width and height in pixels, a multiple of 16; null: the model's default"
    )
    seed: Annotated[int, Field(ge=0)] = Field(description="seed of each image's initial noise")
    batch_size: Count = Field(description="images per batch")
    offload: Literal["none", "model", "sequential"] = Field(
        description="what waits in CPU memory while the GPU does not need it: nothing, whole models, or single layers"
    )
    device: str = Field(description="device of the image model: auto, cpu, cuda, cuda:1, ...")
    precision: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        description="type of the weights; auto: float32 on the CPU, else float16 (sd) or bfloat16 (flux)"
    )
    clip: ClipSettings = Field(description="CLIP model that scores images")

    @model_validator(mode="after")
    def _check(self) -> ImageSettings:
        if self.name != "none" and not self.model:
            raise ValueError(f"images={self.name} needs images.model, a repository of the Hugging Face hub or a folder")
        return self


class WandbSettings(Section):
    """Weights & Biases."""

    mode: Literal["offline", "online", "disabled"] = Field(
        description="mode; offline: written to disk, uploaded by `wandb sync`"
    )
    project: str = Field(description="name of the project")
    entity: str | None = Field(description="user or team; null: the account's default")
    group: str | None = Field(description="group of the run")


class TrackingSettings(Section):
    """Logging besides the run's folder and W&B."""

    tensorboard: bool = Field(
        description="whether to write TensorBoard event files to the run's folder; needs fed-a2v[tensorboard]"
    )


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

    rounds: Count = Field(description="number of rounds")
    seed: Annotated[int, Field(ge=0)] = Field(description="seed of all random draws")
    resume: str = Field(
        json_schema_extra=NO_RESULT,
        description="state to resume from: auto, never, the folder of a run, or one of its saved states",
    )
    accept_new_data: bool = Field(
        json_schema_extra=NO_RESULT,
        description="whether to resume a run whose classes or clips have been added, removed or changed",
    )
    device: Device = Field(
        json_schema_extra=NO_RESULT,
        description="device of torch, at the sites and on the server: cpu, cuda, cuda:1, ...",
    )
    threads: Count = Field(
        json_schema_extra=NO_RESULT, description="threads of torch; the same number gives the same bits"
    )
    cache_dir: str | None = Field(
        json_schema_extra=NO_RESULT,
        description="folder of cached embeddings; null: $FED_A2V_CACHE, else the user's cache folder",
    )
    optimize_memory_usage: bool = Field(
        description="whether to save memory: half-precision bank, small batches, idle generator on the CPU"
    )
    generate_global_images_frequency: Annotated[int, Field(ge=0)] = Field(
        json_schema_extra=NO_RESULT,
        description="rounds between two sets of images of the global adapters; 0: none",
    )
    generate_nodes_images_frequency: Annotated[int, Field(ge=0)] = Field(
        json_schema_extra=NO_RESULT, description="rounds between two sets of images of the sites' adapters; 0: none"
    )
    report: bool = Field(
        json_schema_extra=NO_RESULT, description="whether to write `report.html` to the run's folder at the end"
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
        description="metrics of a round by name, subclasses of `Metric`; null removes one",
    )
    callbacks: dict[str, ComponentSettings | None] = Field(
        json_schema_extra=NO_RESULT,
        description="callbacks of the run by name, called in this order; null removes one",
    )

    @property
    def needs_weights(self) -> bool:
        """Whether the sites' adapters are averaged or distilled."""
        return self.aggregation.averages and not self.adapters.closed_form

    @property
    def needs_prototypes(self) -> bool:
        """Whether class prototypes are used: by the server step, or for images of the global adapters.

        Otherwise one mean per class is enough, to standardise the adapters' input.
        """
        return self.finetune.enabled or self.aggregation.distils or self.generate_global_images_frequency > 0

    @property
    def needs_outputs(self) -> bool:
        """Whether the mean outputs of the sites' adapters are used: as targets, or for images of the sites."""
        targets = self.finetune.enabled and self.finetune.from_nodes_adapters and not self.adapters.closed_form
        return targets or self.generate_nodes_images_frequency > 0

    @model_validator(mode="after")
    def _check_server_step(self) -> Settings:
        if self.generator.name == "custom" and self.generator.target is None:
            raise ValueError("generator=custom needs generator._target_=MODULE.CLASS, the import path of its class")
        if self.bank.keep == "generator" and self.generator.target is None:
            raise ValueError("bank.keep=generator needs a generator, not generator=none")
        if self.adapters.closed_form and (not self.finetune.enabled or self.aggregation.distils):
            raise ValueError(
                "adapters.closed_form is solved in the server step: set finetune.enabled=true, and another rule than kd"
            )
        if self.adapters.t5_tokens and self.targets.name == "clip":
            raise ValueError(
                f"adapters.t5_tokens={self.adapters.t5_tokens}: targets=clip has no T5 prompts; "
                "choose targets=t5 (CLIP and T5), or adapters without T5 (adapters=sd or compact)"
            )
        if self.generator.load_checkpoint and self.generator.target is None:
            raise ValueError("generator.load_checkpoint=true needs a generator, not generator=none")
        self._check_images()
        return self

    @model_validator(mode="after")
    def _check_sites(self) -> Settings:
        if self.scenario.name == "class_incremental" and self.partition.kind == "own":
            raise ValueError("scenario=class_incremental needs a partition with numbered sites, not partition=own")
        if self.partition.kind == "own":  # the number of sites is known once the nodes have registered
            return self
        sites, aggregation = self.partition.sites, self.aggregation
        if self.scenario.name == "class_incremental" and sites < self.scenario.steps:
            raise ValueError(f"scenario.steps={self.scenario.steps} groups need as many sites, partition.sites={sites}")
        sampled = max(1, round(self.federation.sites_per_round * sites))
        if aggregation.min_replies > sampled:
            raise ValueError(
                f"aggregation.min_replies={aggregation.min_replies}, but a round has {sampled} sites "
                f"(partition.sites={sites}, federation.sites_per_round={self.federation.sites_per_round:g}), "
                f"so every round would be skipped; lower it to {sampled}"
            )
        # Multi-Krum tolerates f malicious sites among n >= 2f + 3 (Blanchard et al., 2017).
        if aggregation.mode == "krum" and sampled < 2 * aggregation.malicious_sites + 3:
            raise ValueError(
                f"aggregation.mode=krum with aggregation.malicious_sites={aggregation.malicious_sites} needs at least "
                f"{2 * aggregation.malicious_sites + 3} sites in a round, not {sampled}: raise partition.sites, "
                "lower aggregation.malicious_sites, or choose median"
            )
        return self

    @model_validator(mode="after")
    def _check_data(self) -> Settings:
        # With partition=own the nodes have the data; the server needs only the names of the classes.
        if self.partition.kind == "own" and self.dataset.classes is not None:
            return self
        self.dataset.check_place()
        return self

    def _check_images(self) -> None:
        fitting = self.adapters.image_model
        if self.images.name not in ("none", fitting):
            pairs = f"images={fitting}" if fitting else "no image model"
            raise ValueError(
                f"images={self.images.name} needs the prompts of adapters={self.images.name}; those of "
                f"adapters={self.adapters.name} fit {pairs}"
            )
        if self.images.name == "none":
            for key in ("generate_global_images_frequency", "generate_nodes_images_frequency"):
                if getattr(self, key):
                    remedy = "images=sd with adapters=sd, or images=flux with adapters=flux"
                    raise ValueError(f"{key}={getattr(self, key)} needs an image model: {remedy}")


def cache_dir(settings: Settings) -> Path:
    """Folder of the embedding cache: `cache_dir`, else $FED_A2V_CACHE, else the user's cache folder."""
    if settings.cache_dir:
        return Path(settings.cache_dir).expanduser()
    if folder := os.environ.get("FED_A2V_CACHE"):
        return Path(folder).expanduser()
    # The XDG specification ignores an empty or relative path.
    users = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (users if users.is_absolute() else Path("~/.cache").expanduser()) / "fed_a2v"


def affects_result(key: str) -> bool:
    """Whether a setting, by its dotted key, affects what a run computes; True for unknown keys."""
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
