"""Typed, checked settings of an experiment: `Settings` has one class of `fed_a2v.config.sections` per section.

`fed_a2v.config.compose` builds them; the server sends them to the sites as JSON. Every default is in `conf/` and none
is here, so that a value is defined in one place.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fed_a2v.config.sections.base import NO_RESULT, ComponentSettings, Count, Device, Section
from fed_a2v.config.sections.data import (
    DatasetSettings,
    EncoderSettings,
    PartitionSettings,
    PriorSettings,
    ProjectionSettings,
    TargetSettings,
)
from fed_a2v.config.sections.federation import (
    AggregationSettings,
    FederationSettings,
    PrivacySettings,
    ScenarioSettings,
    SecureSumsSettings,
    ShareSettings,
)
from fed_a2v.config.sections.output import CheckpointSettings, ImageSettings, TrackingSettings, WandbSettings
from fed_a2v.config.sections.training import (
    AdapterSettings,
    BankSettings,
    FinetuneSettings,
    GeneratorSettings,
    LossSettings,
    SiteSettings,
)


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
    engine: Literal["one_by_one", "batched"] = Field(
        json_schema_extra=NO_RESULT,
        description="how sites in one process train: one_by_one, with the bits of every other engine, or batched, "
        "together and in less time, with other rounding; Flower's engine ignores it",
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
    projection: ProjectionSettings
    targets: TargetSettings
    adapters: AdapterSettings
    loss: LossSettings
    site: SiteSettings
    share: ShareSettings
    privacy: PrivacySettings
    secure_sums: SecureSumsSettings
    prior: PriorSettings
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
    def has_server_step(self) -> bool:
        """Whether the server trains the adapters, by fine-tuning or by distillation."""
        return self.finetune.enabled or self.aggregation.distils

    @property
    def only_server_trains(self) -> str:
        """The setting because of which only the server step trains the adapters, KEY=VALUE; else empty."""
        if self.adapters.closed_form:
            return "adapters.closed_form=true"
        if not self.site.epochs and not self.site.server_steps:
            return "site.epochs=0"
        return "" if self.aggregation.averages else "aggregation.mode=none"

    @property
    def shares_sums(self) -> bool:
        """Whether sites send sums in a public space, once, instead of prototypes."""
        return self.share.kind == "statistics"

    @property
    def has_secure_sums(self) -> bool:
        """Whether the server receives the sums of all sites together only."""
        return self.shares_sums and self.secure_sums.name == "secagg"

    @property
    def sends_scatter(self) -> bool:
        """Whether the sums of sites have the matrix for all classes."""
        return self.privacy.sends_scatter(self.has_secure_sums)

    @property
    def site_trains(self) -> bool:
        """Whether sites train adapters in a round."""
        return not self.adapters.closed_form and bool(self.site.epochs or self.site.server_steps)

    @property
    def sends_adapters(self) -> bool:
        """Whether sites need the adapters in a round before their evaluation: to train them, or for their outputs.

        Otherwise, with `share=statistics`, the public space is enough.
        """
        return not self.shares_sums or self.site_trains or self.needs_outputs

    @property
    def needs_weights(self) -> bool:
        """Whether the sites' adapters are averaged or distilled."""
        return not self.only_server_trains

    @property
    def needs_prototypes(self) -> bool:
        """Whether class prototypes are used: by the server step, or for images of the global adapters.

        Otherwise one mean per class is enough, to standardise the adapters' input.
        """
        return self.has_server_step or self.generate_global_images_frequency > 0

    @property
    def needs_outputs(self) -> bool:
        """Whether the mean outputs of the sites' adapters are used: as targets, or for images of the sites."""
        targets = self.finetune.enabled and self.finetune.from_nodes_adapters and not self.adapters.closed_form
        return targets or self.generate_nodes_images_frequency > 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values by section, as in `config.yaml`."""
        return self.model_dump(mode="json", by_alias=True)

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
        if self.adapters.closed_form and self.adapters.t5_tokens and not self.shares_sums:
            # Token count times width of T5 would make the matrix too large for memory.
            raise ValueError(
                "adapters.closed_form with a T5 adapter needs share=statistics; else set adapters.t5_tokens=0"
            )
        if self.adapters.t5_tokens and self.targets.name == "clip":
            raise ValueError(
                f"adapters.t5_tokens={self.adapters.t5_tokens}: targets=clip has no T5 prompts; "
                "choose targets=t5 (CLIP and T5), or adapters without T5 (adapters=sd or compact)"
            )
        if self.generator.load_checkpoint and self.generator.target is None:
            raise ValueError("generator.load_checkpoint=true needs a generator, not generator=none")
        self._check_untrained_sites()
        self._check_images()
        return self

    def _check_untrained_sites(self) -> None:
        """Refuse what needs adapters that sites have trained, if sites train none."""
        if self.site_trains or self.adapters.closed_form:
            return
        untrained = "site.epochs=0 lets sites train nothing, and"
        if self.aggregation.distils:
            raise ValueError(
                f"{untrained} aggregation.mode=kd distils the adapters that they train: set another rule, or "
                "site.epochs above 0"
            )
        if not self.finetune.enabled:
            raise ValueError(
                f"{untrained} finetune.enabled=false lets the server train nothing: set finetune.enabled=true, or "
                "site.epochs above 0"
            )
        if self.finetune.from_nodes_adapters:
            raise ValueError(
                f"{untrained} finetune.from_nodes_adapters=true takes the outputs of the adapters that they train as "
                "targets: set it to false, or site.epochs above 0"
            )

    @model_validator(mode="after")
    def _check_sums(self) -> Settings:
        if not self.shares_sums:
            for key, section in (("privacy", self.privacy), ("secure_sums", self.secure_sums)):
                if section.name != "none":
                    raise ValueError(f"{key}={section.name} protects sums: it needs share=statistics")
            if self.prior.name != "none":
                raise ValueError(f"prior={self.prior.name} is for class means from sums: it needs share=statistics")
            return self
        if self.has_secure_sums:
            self._check_secure_sums()
        if self.bank.keep == "generator":
            raise ValueError("bank.keep=generator forgets prototypes, and share=statistics keeps sums only")
        if self.privacy.adds_noise:
            self._check_privacy()
        return self

    def _check_privacy(self) -> None:
        only = "privacy=dp lets nothing but noisy sums leave a site, and"
        if self.needs_outputs:
            images = "generate_nodes_images_frequency"
            key = images if self.generate_nodes_images_frequency else "finetune.from_nodes_adapters"
            raise ValueError(f"{only} {key} needs the adapters' mean outputs on its clips: turn it off")
        if self.site_trains:
            raise ValueError(
                f"{only} adapters trained on its clips would: set site.epochs=0 (site.epochs={self.site.epochs}, "
                f"site.server_steps={self.site.server_steps}), or adapters=closed_form"
            )
        if "auto" in (part.square_root for part in (self.dataset, *self.dataset.sets)):
            raise ValueError(
                f"{only} whether it takes square roots with dataset.square_root=auto depends on its clips: set "
                "dataset.square_root=always if no value of the embeddings is below 0, else never"
            )

    def _check_secure_sums(self) -> None:
        if self.scenario.name == "class_incremental":
            raise ValueError(
                "secure_sums=secagg adds up the sums of all sites once, before the first round, and "
                "scenario=class_incremental has sites that come later; choose scenario=static or secure_sums=none"
            )
        if self.aggregation.max_age:
            raise ValueError(
                f"secure_sums=secagg: no site can be taken out of a total, as aggregation.max_age="
                f"{self.aggregation.max_age} requests; set it to 0"
            )
        if self.partition.kind != "own":  # else the nodes that come are counted
            self.secure_sums.check_sites(self.partition.sites)

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


def cache_dir(chosen: str | None) -> Path:
    """Folder of the embedding cache: the setting `cache_dir`, else $FED_A2V_CACHE, else the user's cache folder."""
    if folder := chosen or os.environ.get("FED_A2V_CACHE"):
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
