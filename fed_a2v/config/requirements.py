"""What settings need on this machine: files, folders and packages. Checked before torch is imported.

What is read from them is checked later, by the parts that use them.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from fed_a2v.config.schema import Settings
from fed_a2v.config.sections.data import DatasetSettings, place_key
from fed_a2v.config.tree import options
from fed_a2v.errors import ConfigError
from fed_a2v.install import require


def check_requirements(settings: Settings) -> None:
    """Check that the files and folders in the settings exist, and that the optional packages are installed.

    Raises:
        ConfigError: names the key, the value and the remedy.
    """
    dataset, needed = settings.dataset, place_key(settings.dataset.name)
    for name in ("root", "path"):
        if getattr(dataset, name) is not None and name != needed and settings.partition.kind != "own":
            others = [option for option in options("dataset") if option != "custom" and place_key(option) == name]
            raise ConfigError(
                f"dataset.{name}={getattr(dataset, name)} is not used by dataset={dataset.name}; choose "
                f"dataset={' or '.join(sorted(others, key='folder'.__ne__))}, or leave it out"
            )
    for key, value in _places(settings):
        if not Path(value).expanduser().exists():
            kind = "folder" if key.endswith("root") else "file"
            start = "" if Path(value).expanduser().is_absolute() else f", which starts in {Path.cwd()}"
            raise ConfigError(f"{key}={value}: no such {kind}; correct the path{start}")
    for module, extra, what in _packages(settings):
        require(module, extra, what)
    if settings.device.startswith("cuda") and (version := _torch_version()).endswith("+cpu"):
        raise ConfigError(
            f"device={settings.device}: torch {version} is a build without CUDA; install the build for your GPU, or "
            "set device=cpu"
        )


def _places(settings: Settings) -> Iterator[tuple[str, str]]:
    """The files and folders that are read, by their key."""
    dataset, projection, prior, targets = settings.dataset, settings.projection, settings.prior, settings.targets
    if settings.partition.kind != "own":  # else the nodes have the data
        parts = [(f"dataset.sets.{place}", part) for place, part in enumerate(dataset.sets)]
        for key, part in parts if dataset.name == "mixed" else [("dataset", dataset)]:
            yield from _data(key, part)
    if targets.name == "file" and targets.path:
        yield "targets.path", targets.path
    if targets.captions:
        yield "targets.captions", targets.captions
    if settings.shares_sums:
        for key, value in (
            ("projection.path", projection.path),
            ("projection.texts", projection.texts),
            ("prior.path", prior.path),
            ("prior.ties", prior.ties),
        ):
            if value is not None:
                yield key, value
    if settings.resume not in ("auto", "never"):
        yield "resume", settings.resume


def _data(key: str, part: DatasetSettings) -> Iterator[tuple[str, str]]:
    place = place_key(part.name)
    if place is not None and part.name != "custom" and part.place:  # to a custom class it may be anything
        yield f"{key}.{place}", part.place


def _packages(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """The optional packages that are used: module, extra, and what needs it."""
    if settings.encoder.name in ("ast", "clap") and settings.dataset.name != "embeddings":
        yield "transformers", "hf", f"encoder={settings.encoder.name}"
    if settings.images.name != "none":
        yield "diffusers", "hf", f"images={settings.images.name}"
    if settings.partition.kind in ("pathological", "shards"):
        yield "flwr_datasets", "partitions", f"partition={settings.partition.kind}"
    if settings.privacy.adds_noise:
        yield "dp_accounting", "privacy", "privacy=dp"
    if settings.tracking.tensorboard:
        yield "tensorboard", "tensorboard", "tracking.tensorboard=true"
    if settings.tracking.mlflow:
        yield "mlflow", "mlflow", "tracking.mlflow=true"


def _torch_version() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""
