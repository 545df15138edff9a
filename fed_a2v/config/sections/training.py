"""Sections of the settings about models and their training: adapters, loss, sites, generator, bank, fine-tuning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fed_a2v.config.sections.base import NO_RESULT, Count, Fraction, NonNegative, Positive, Section


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
        description="whether the server solves for the adapters, and sites do not train: discriminant analysis with "
        "share=statistics, else one matrix (CLIP only)"
    )

    @property
    def clip_shape(self) -> tuple[int, int | None]:
        """Tokens and width of the CLIP prompt; width None: that of the targets."""
        return self.clip_tokens, self.clip_width

    @property
    def t5_shape(self) -> tuple[int, int] | None:
        """Tokens and width of the T5 prompt; None without a T5 adapter."""
        return (self.t5_tokens, self.t5_width) if self.t5_tokens else None

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

    epochs: Annotated[int, Field(ge=0)] = Field(
        description="passes over the site's clips in a round; 0: sites do not train"
    )
    batch_size: Count = Field(description="clips per optimiser step")
    learning_rate: Positive = Field(description="learning rate of AdamW")
    weight_decay: NonNegative = Field(description="weight decay of AdamW")
    proximal: NonNegative = Field(description="weight of FedProx's proximal term; 0: off")
    server_steps: bool = Field(
        description="whether to also take the steps of `finetune` at the sites: FedAvg with equally many steps"
    )


class BankSettings(Section):
    """Storage of the sites' prototypes between rounds."""

    keep: Literal["prototypes", "generator"] = Field(
        description="what is kept; prototypes: all as received; generator: only what the generator has learned"
    )
    rows_per_class: Count = Field(
        description="maximum number of prototypes of a class that a round trains on, drawn again each round; "
        "generator.holdout takes its share of at most as many"
    )
    withdraw: list[str] = Field(
        json_schema_extra=NO_RESULT,
        description="names of sites that are taken out: all that they have sent is removed when the run is resumed, "
        "and they are not asked again",
    )


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
        "of three or more; chosen when they are received; with share=statistics above 0: other draws from the sums"
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
    synthetic_share: Fraction = Field(description="synthetic share of a batch, if there is a generator")
    from_nodes_adapters: bool = Field(
        description="whether the targets are the sites' mean adapter outputs instead of the text prompts"
    )
    rollback: bool = Field(description="whether to undo a fine-tuning that increases the held-out loss")

    def steps_of(self, round_number: int) -> int:
        """Optimiser steps of a round, from 1."""
        return self.first_steps if round_number == 1 else self.steps
