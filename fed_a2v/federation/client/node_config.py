"""The configuration of a node, typed and checked, because a misspelt key must not switch off a limit of the owner.

A node reads it for every message, even for a request of its name, so this module must not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fed_a2v.config.sections.base import Count, Device, option_of
from fed_a2v.core.names import nearest, plain_name
from fed_a2v.errors import ConfigError

# Keys whose values must not leave the site, not even in an error.
PATHS = ("data-dir", "cache-dir", "targets", "encoder-model", "ledger", "privacy-ledger")


class NodeConfigError(ConfigError):
    """A node's configuration is wrong or lacks what a run needs; the message contains no path."""


class NodeConfig(BaseModel):
    """A node's configuration. Keys have hyphens: `--node-config "site='north' min-clips=8"`, or a TOML file."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, alias_generator=lambda name: name.replace("_", "-")
    )

    site: str | int | None = Field(None, description="the site's name in logs and results; default: partition-id")
    dataset: Annotated[str, option_of("dataset")] | None = Field(
        None, description="the kind of its data set, if it differs from the run's"
    )
    data_dir: str | None = Field(None, description="the folder of its data, or a file of embeddings")
    cache_dir: str | None = Field(None, description="the folder for computed embeddings")
    device: Device | None = Field(None, description="cpu, cuda, cuda:1, ...")
    encoder_model: str | None = Field(None, description="the folder or the repository of the audio encoder's model")
    targets: str | None = Field(None, description="a file of class prompts, for a node without text models")
    min_clips: Count | None = Field(
        None,
        description="smallest number of clips of each average that leaves the site: classes with fewer clips are not "
        "used, and a run that requests averages of fewer is refused",
    )
    ledger: str | None = Field(
        None,
        description="a file that records which clips each average was taken over, so that no combination of averages "
        "reveals fewer clips",
    )
    max_epsilon: Annotated[float, Field(gt=0.0)] | None = Field(
        None,
        description="limit of epsilon, over all runs, of the noisy sums that leave the site; a run without privacy=dp, "
        "and one that would exceed it, is refused",
    )
    max_delta: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        1e-5, description="the delta at which the site computes epsilon"
    )
    privacy_ledger: str | None = Field(
        None,
        description="a folder with every noisy release of the site, which adds them up and answers a repeated request "
        "with the same release; runs with privacy=dp need it",
    )
    noise_sites: Count | None = Field(
        None,
        description="largest number of sites among which the noise may be shared (privacy=dp with secure_sums=secagg): "
        "each site then relies on the others and on secure aggregation",
    )
    allow_scores: bool = Field(
        False, description="whether counts of right test clips, which carry no noise, may leave the site (privacy=dp)"
    )
    allow_code: str | None = Field(
        None, description="import paths of the custom classes that the site may execute for a run, separated by spaces"
    )
    max_seconds: Annotated[float, Field(gt=0.0)] | None = Field(None, description="time limit for one message, in s")
    max_epochs: Count | None = Field(
        None, description="largest number of epochs in a round; a run that requests more is refused"
    )
    max_threads: Count | None = Field(None, description="largest number of threads of torch")
    max_memory: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="memory limit for the work on one message, in GB, without the program itself"
    )
    withdraw: bool | None = Field(
        None,
        description="whether the site withdraws from the run: it answers the next message with this alone, and the "
        "server removes what the site has sent",
    )
    require_secure_sums: bool | None = Field(
        None,
        description="true: a run that does not hide the site's sums in a total (secure_sums=secagg) is refused",
    )
    min_sites: Annotated[int, Field(ge=3)] | None = Field(
        None, description="smallest number of sites in a total of secure aggregation; needs require-secure-sums"
    )
    partition_id: int | None = Field(None, description="set by Flower")
    num_partitions: int | None = Field(None, description="set by Flower")

    @field_validator("site")
    @classmethod
    def _plain_site(cls, site: str | int | None) -> str | int | None:
        return plain_name(site) if isinstance(site, str) else site

    @model_validator(mode="after")
    def _check_secure_sums(self) -> NodeConfig:
        if self.min_sites and not self.require_secure_sums:
            raise ValueError("min-sites limits nothing without require-secure-sums=true")
        return self

    @property
    def name(self) -> str | None:
        """The site's name as the node's operator sets it; None if there is none."""
        name = self.partition_id if self.site is None else self.site
        return None if name is None else str(name)

    def check_deployed(self) -> None:
        """Check that all keys that a deployed node always needs are set.

        Raises:
            NodeConfigError: a key is missing; the message gives it.
        """
        if not self.cache_dir:
            raise NodeConfigError(
                "this node's configuration lacks cache-dir: a site uses no folder that the server names"
            )
        if self.min_clips and not self.ledger:
            raise NodeConfigError(
                "this node's configuration has min-clips and lacks ledger, a file of the site: without it two runs "
                "that differ by one clip would reveal that clip"
            )
        if self.max_epsilon and not self.privacy_ledger:
            raise NodeConfigError(
                "this node's configuration has max-epsilon and lacks privacy-ledger, a folder of the site: without it "
                "nothing adds up what runs have received"
            )


def read_node_config(raw: Mapping[str, Any]) -> NodeConfig:
    """Parse a node's configuration from Flower.

    Raises:
        NodeConfigError: a key is unknown (the message suggests the nearest) or a value is wrong. The server receives
            this message, so it contains no paths.
    """
    try:
        return NodeConfig.model_validate(dict(raw))
    except ValidationError as error:
        messages = dict.fromkeys(_explain(entry) for entry in error.errors())
        raise NodeConfigError(f"this node's configuration: {'; '.join(messages)}") from None


def _explain(entry: Any) -> str:
    if not entry["loc"]:
        return str(entry["msg"]).removeprefix("Value error, ")
    key = str(entry["loc"][0])
    if entry["type"] == "extra_forbidden":
        known = [str(field.alias) for field in NodeConfig.model_fields.values()]
        near = nearest(key, known)
        return f"unknown key {key[:80]}; " + (f"did you mean {near}?" if near else f"known keys: {', '.join(known)}")
    value = "" if key in PATHS else f" = {entry['input']!r:.80}"
    return f"{key}{value}: {str(entry['msg']).removeprefix('Value error, ')}"
