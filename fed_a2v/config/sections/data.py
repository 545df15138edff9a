"""Sections of the settings about data: clips, their division among sites, the audio encoder and the targets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from fed_a2v.config.sections.base import NO_RESULT, ClassName, Count, Place, Positive, Precision, Section, option_of
from fed_a2v.config.tree import option_summary, option_values, required_keys


class DatasetSettings(Section):
    """Source of the clips and use of the official folds."""

    model_config = ConfigDict(populate_by_name=True)

    # A data set is an option in `conf/dataset/` and a file in `data/datasets/`.
    name: Annotated[str, option_of("dataset")] = Field(description="name of the data set")
    sets: list[DatasetSettings] = Field(
        description="data sets of a mix, each with a name, a root or path, and values that differ from its defaults"
    )
    aliases: dict[ClassName, ClassName] | None = Field(
        description="further names of classes, {name in a data set: common name}, or a YAML file with them"
    )
    root: Place | None = Field(json_schema_extra=NO_RESULT, description="folder of the data set")
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
        description="seed of the folds if a data set has none, and of the clips that max_clips_per_class keeps"
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
        """Root or path of the data; None if the data set needs none or none is set."""
        key = place_key(self.name)
        return None if key is None else getattr(self, key)

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
        for name in required_keys("dataset", self.name):
            if getattr(self, name) is None:
                value = {"root": "FOLDER", "path": "FILE.npz"}[name]
                about = option_summary("dataset", self.name).rstrip(".")
                raise ValueError(f"{key}={self.name} needs {key}.{name}={value} ({about})")


def place_key(name: str) -> str | None:
    """The key of the location of a data set, `root` or `path`; None if the data set reads no files."""
    return "root" if name == "custom" else next(iter(required_keys("dataset", name)), None)


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

    # An encoder is an option in `conf/encoder/` and a file in `encoders/`.
    name: Annotated[str, option_of("encoder")] = Field(description="name of the encoder")
    model: str | None = Field(description="pretrained model: repository of the Hugging Face hub, or a local folder")
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
        # A key must be set if the option sets it.
        defaults = option_values("encoder", self.name)
        if self.name == "custom" and self.target is None:
            raise ValueError("encoder=custom needs encoder._target_=MODULE.CLASS, the import path of its class")
        for key, value in self.model_dump(exclude={"name", "revision", "arguments"}, by_alias=True).items():
            if (value is not None) != (defaults[key] is not None or (self.name, key) == ("custom", "_target_")):
                raise ValueError(f"encoder={self.name}: encoder.{key}={value} must be {'null' if value else 'set'}")
        return self


class ProjectionSettings(Section):
    """Public space in which sites sum their clips (share=statistics)."""

    name: Literal["head", "text", "file", "random"] = Field(
        description="directions; head: the strongest of a label head, which tell its labels apart; text: the same of "
        "text vectors (encoder=clap); file: the columns of a matrix; random: orthonormal, from the run's seed"
    )
    path: Place | None = Field(
        json_schema_extra=NO_RESULT,
        description="npz file with the head's `weight`, labels x width (head; null: the `head` in the file of "
        "embeddings, or that of the encoder); npy file with a matrix, width x columns, or npz file with a `matrix` "
        "(file)",
    )
    texts: Place | None = Field(
        json_schema_extra=NO_RESULT,
        description="file with a public text in each line (text); null: the names of the classes",
    )
    columns: Count = Field(description="number of columns; more keep more of the clips and send more bytes")

    @model_validator(mode="after")
    def _check(self) -> ProjectionSettings:
        if self.name == "file" and self.path is None:
            raise ValueError("projection=file needs projection.path=FILE.npy, a matrix of width x columns")
        for key, users in (("path", ("head", "file")), ("texts", ("text",))):
            if getattr(self, key) is not None and self.name not in users:
                raise ValueError(f"projection.{key} needs projection={' or '.join(users)}, not {self.name}")
        return self


class PriorSettings(Section):
    """What is known of the classes from no clip of any site (share=statistics)."""

    name: Literal["none", "labels"] = Field(
        description="source; labels: a public label head, whose labels are tied to the classes by `ties`, by text "
        "vectors (targets=clip, t5 or file), or else by name; counts as much as the sites' sums are noisy"
    )
    path: Place | None = Field(
        json_schema_extra=NO_RESULT,
        description="npz file with the head's `weight` and `labels` and, for ties by text vectors with targets=file, "
        "`label_vectors` of the labels at `label_index`; null: that of projection.path, else `head` and `head_labels` "
        "in the file of embeddings, or those of the encoder",
    )
    ties: Place | None = Field(
        json_schema_extra=NO_RESULT, description="JSON file with the labels of each class, {class: [label]}"
    )
    exclude: list[str] = Field(description="beginnings of names of labels that are not used")


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
