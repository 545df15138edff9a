"""Sections of the settings about what a run writes: saved states, images, trackers; none affects results."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fed_a2v.config.sections.base import Count, NonNegative, Section


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
        description="whether to write TensorBoard event files to the run's folder; needs the extra tensorboard"
    )
    mlflow: bool = Field(description="whether to log to MLflow; needs the extra mlflow")
    mlflow_uri: str | None = Field(
        description="MLflow's database or server, such as `sqlite:///mlflow.db` or `http://localhost:5000`; null: "
        "$MLFLOW_TRACKING_URI, else `mlflow.db` in the folder of the run, or of the sweep"
    )
    mlflow_experiment: str = Field(min_length=1, description="MLflow's experiment that the run belongs to")
