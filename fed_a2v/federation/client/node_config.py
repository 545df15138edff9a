"""What only a node knows, typed and checked: a slip in it must not switch off what its owner wants.

A node reads it for every message, so it comes without the libraries that its work needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from fed_a2v.config.schema import ConfigError, Count, DatasetSettings, Device
from fed_a2v.core.names import nearest, plain_name

KINDS = get_args(DatasetSettings.model_fields["name"].annotation)
# Their values do not leave the site, not even in an error.
PATHS = ("data-dir", "cache-dir", "targets", "encoder-model", "ledger")


class NodeConfigError(ConfigError):
    """A node's configuration is wrong, or lacks what a run needs; the message names no path."""


def _kind(name: str) -> str:
    if name not in KINDS:
        near = nearest(name, KINDS, cutoff=0.6)
        raise ValueError(f"there is no such kind; {f'did you mean {near!r}?' if near else ', '.join(KINDS)}")
    return name


class NodeConfig(BaseModel):
    """A node's configuration, the keys with hyphens: `--node-config "site='north' min-clips=8"`, or a TOML file."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, alias_generator=lambda name: name.replace("_", "-")
    )

    site: str | int | None = Field(None, description="the site's name in logs and results; default: partition-id")
    dataset: Annotated[str, AfterValidator(_kind)] | None = Field(
        None, description="the kind of its data, where it differs from the run's"
    )
    data_dir: str | None = Field(None, description="the folder of its data, or a file of embeddings")
    cache_dir: str | None = Field(None, description="the folder in which computed embeddings are kept")
    device: Device | None = Field(None, description="cpu, cuda, cuda:1, ...")
    encoder_model: str | None = Field(None, description="the folder of the audio encoder's model, or its repository")
    targets: str | None = Field(None, description="a file of class prompts, where it has no text model")
    min_clips: Count | None = Field(
        None,
        description="clips behind everything that leaves the site, at least: classes with fewer take no part, and a "
        "run that asks for averages of fewer is refused",
    )
    ledger: str | None = Field(
        None, description="a file that notes over which clips averages were taken, so that none are a few clips apart"
    )
    allow_code: str | None = Field(
        None, description="import paths of classes that a run may have the site execute, with spaces between them"
    )
    max_seconds: Annotated[float, Field(gt=0.0)] | None = Field(None, description="for one message, at most")
    max_epochs: Count | None = Field(None, description="of training in a round; a run that asks for more is refused")
    max_threads: Count | None = Field(None, description="of torch, at most")
    max_memory: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="gigabytes that the work on one message may take beside the programs themselves"
    )
    partition_id: int | None = Field(None, description="Flower's own")
    num_partitions: int | None = Field(None, description="Flower's own")

    @field_validator("site")
    @classmethod
    def _plain(cls, site: str | int | None) -> str | int | None:
        return plain_name(site) if isinstance(site, str) else site

    @property
    def name(self) -> str | None:
        """What the node's operator calls its site; None where it has no name."""
        name = self.partition_id if self.site is None else self.site
        return None if name is None else str(name)

    def check_deployed(self) -> None:
        """Check that it has what a node on a machine of its own needs for any run.

        Raises:
            NodeConfigError: names the missing key.
        """
        if not self.cache_dir:
            raise NodeConfigError("this node's configuration lacks cache-dir: a site takes no folder from the server")
        if self.min_clips and not self.ledger:
            raise NodeConfigError(
                "this node's configuration has min-clips and lacks ledger, a file of the site's own: without it two "
                "runs that differ by one clip would tell that clip"
            )


def read_node_config(given: Mapping[str, Any]) -> NodeConfig:
    """A node's configuration as Flower hands it over.

    Raises:
        NodeConfigError: a key is unknown (the nearest is named), or a value is wrong. It is told to the server, so it
            names no paths.
    """
    try:
        return NodeConfig.model_validate(dict(given))
    except ValidationError as error:
        wrong = dict.fromkeys(_explain(entry) for entry in error.errors())
        raise NodeConfigError(f"this node's configuration: {'; '.join(wrong)}") from None


def _explain(entry: Any) -> str:
    key = str(entry["loc"][0])
    if entry["type"] == "extra_forbidden":
        known = [str(field.alias) for field in NodeConfig.model_fields.values()]
        near = nearest(key, known)
        return f"unknown key {key[:80]}; " + (f"did you mean {near}?" if near else f"it may have {', '.join(known)}")
    value = "" if key in PATHS else f" = {entry['input']!r:.80}"
    return f"{key}{value}: {str(entry['msg']).removeprefix('Value error, ')}"
