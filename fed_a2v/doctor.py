"""Checks of `fed-a2v doctor`: the machine, the installation and the settings of an experiment.

Nothing is trained, downloaded or changed. A finding is `fine`, a `warning` (a run works, but not as well as it could)
or an `error` (a run would fail), with a remedy. The data get the same checks as in training; some sounds are decoded.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.schema import Settings, cache_dir
from fed_a2v.config.sections.data import DatasetSettings
from fed_a2v.install import install_hint
from fed_a2v.runs.environment import installed_version

if TYPE_CHECKING:
    from fed_a2v.encoders.audio import AudioEncoder

    LoadEncoder = Callable[[], AudioEncoder]

Level = Literal["fine", "warning", "error"]

PACKAGES = ("flwr", "torch", "numpy", "hydra-core", "wandb", "pydantic")
# One package of each extra.
EXTRAS = {
    **{"hf": "transformers", "partitions": "flwr-datasets", "sweeps": "hydra-joblib-launcher", "plots": "matplotlib"},
    **{"notebook": "pandas", "tensorboard": "tensorboard", "privacy": "dp-accounting"},
    **{"mlflow": "mlflow-skinny", "demo": "gradio"},
}
# Ports of a SuperLink (AppIo, SuperNodes, control), and of the local one that `flwr run` starts.
SUPERLINK_PORTS = (9091, 9092, 9093)
LOCAL_SUPERLINK_PORT, PORT_VARIABLE = 39091, "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"
LITTLE_DISK, LITTLE_MEMORY = 2e9, 2e9
# Maximum number of findings about single clips.
MOST_CLIPS = 5


@dataclass(frozen=True)
class Finding:
    """Result of one check: subject, level, what was found, and the remedy ("" if none is needed)."""

    subject: str
    level: Level
    what: str
    remedy: str = ""


def examine(overrides: Sequence[str]) -> list[Finding]:
    """All findings, for the experiment that the overrides describe."""
    findings = [*_versions(), *_machine(Path.cwd()), *_flower()]
    try:
        settings = compose_settings(list(overrides))
    except ConfigError as error:
        return [*findings, Finding("settings", "error", str(error), "correct the key or the value")]
    findings.append(Finding("settings", "fine", f"{settings.dataset.name}, {settings.generator.name}"))

    @cache  # loading a pretrained model takes seconds
    def encoder() -> AudioEncoder:
        from fed_a2v.encoders.audio import load_encoder

        with _offline():
            return load_encoder(settings.encoder)

    return [
        *findings,
        *_device(settings.device),
        *_wandb(settings.wandb.mode),
        *_cache(cache_dir(settings.cache_dir)),
        *_data(settings, encoder),
        *_encoder(settings.dataset, encoder),
        *_resources(settings, encoder),
    ]


def exit_code(findings: Sequence[Finding]) -> int:
    """Exit code of the command; 0: all fine; 1: warnings; 2: errors."""
    levels = {finding.level for finding in findings}
    return 2 if "error" in levels else 1 if "warning" in levels else 0


# The machine and the program ------------------------------------------------------------------------------


def _versions() -> Iterator[Finding]:
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {version}" for name in PACKAGES if (version := installed_version(name))]
    yield Finding("versions", "fine", ", ".join(versions))
    missing = [extra for extra, package in EXTRAS.items() if installed_version(package) is None]
    if missing:
        yield Finding("extras", "fine", f"not installed: {', '.join(missing)}", install_hint(*missing))


def _machine(folder: Path) -> Iterator[Finding]:
    import psutil

    free = shutil.disk_usage(folder).free
    yield Finding(
        "disk",
        "fine" if free >= LITTLE_DISK else "warning",
        f"{_size(free)} free in {folder}",
        "" if free >= LITTLE_DISK else "free space, or choose a folder on another disk with --out",
    )
    if not os.access(folder, os.W_OK):
        yield Finding("disk", "error", f"{folder} cannot be written", "choose a writable folder with --out")
    memory = psutil.virtual_memory()
    yield Finding(
        "memory",
        "fine" if memory.available >= LITTLE_MEMORY else "warning",
        f"{_size(memory.available)} of {_size(memory.total)} available",
        "" if memory.available >= LITTLE_MEMORY else "close other programs, or set optimize_memory_usage=true",
    )


def _flower() -> Iterator[Finding]:
    off = os.environ.get("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION") in ("1", "true", "True")
    yield Finding(
        "flower",
        "fine" if off else "warning",
        "runtime dependency installation is " + ("off" if off else "on: `flwr run` installs everything for each run"),
        "" if off else "export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 before the SuperLink starts",
    )
    chosen = os.environ.get(PORT_VARIABLE, str(LOCAL_SUPERLINK_PORT))
    port = int(chosen) if chosen.isdecimal() and 0 < int(chosen) < 2**16 else None
    if port is None:
        yield Finding("flower", "error", f"{PORT_VARIABLE}={chosen} is not a port", "set it to a number up to 65535")
    elif _listens(port):
        yield Finding(
            "flower",
            "warning",
            f"a local SuperLink is already running on port {port}, with the environment of its start",
            "if its settings are outdated or it belongs to another user: end the process flower-superlink, or set "
            f"{PORT_VARIABLE} to another port",
        )
    taken = [str(port) for port in SUPERLINK_PORTS if _listens(port)]
    yield Finding(
        "ports",
        "warning" if taken else "fine",
        f"in use: {', '.join(taken)}" if taken else f"{', '.join(map(str, SUPERLINK_PORTS))} are free",
        "a SuperLink here needs other ports, see flower-superlink --help" if taken else "",
    )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


# The experiment -------------------------------------------------------------------------------------------


def _device(device: str) -> Iterator[Finding]:
    import torch

    from fed_a2v.federation.factory import torch_device

    try:
        torch_device(device)
    except ConfigError as error:
        yield Finding("device", "error", str(error), "set device=cpu")
        return
    unused = device == "cpu" and torch.cuda.is_available()
    yield Finding(
        "device",
        "warning" if unused else "fine",
        device + (f"; {torch.cuda.get_device_name()} is not used" if unused else ""),
        "set device=cuda" if unused else "",
    )


def _wandb(mode: str) -> Iterator[Finding]:
    mode = os.environ.get("WANDB_MODE", mode)
    netrc = Path.home() / (".netrc" if os.name != "nt" else "_netrc")
    known = "WANDB_API_KEY" in os.environ or (netrc.is_file() and "api.wandb.ai" in netrc.read_text(errors="replace"))
    if mode == "online" and not known:
        yield Finding("W&B", "warning", "online, but no account is set up", "wandb login, or set wandb.mode=offline")
    else:
        yield Finding("W&B", "fine", mode + (" (wandb sync uploads the runs later)" if mode == "offline" else ""))


def _cache(folder: Path) -> Iterator[Finding]:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    good = existing.is_dir() and os.access(existing, os.W_OK)
    yield Finding(
        "cache",
        "fine" if good else "error",
        str(folder) if good else f"{folder} cannot be written",
        "" if good else "set cache_dir or $FED_A2V_CACHE to a writable folder",
    )


def _data(settings: Settings, encoder: LoadEncoder) -> Iterator[Finding]:
    """The checks of `fed-a2v train`, and whether a few clips of every class can be decoded."""
    from fed_a2v.data.cache.embed import REMEDY
    from fed_a2v.data.check import check_data, unusable
    from fed_a2v.data.clips import SPLITS

    dataset = settings.dataset
    if settings.partition.kind == "own" and dataset.place is None:
        yield Finding("data", "fine", "each site has its own data (partition=own)")
        return
    with _as_error("data", "correct dataset.root, dataset.path, or the named key") as failed:
        index, remarks = check_data(settings)
        counts = ", ".join(f"{number} for {split}" for split in SPLITS if (number := index.splits.count(split)))
        yield Finding("data", "fine", f"{dataset.name}: {len(index.classes)} classes, {len(index)} clips, {counts}")
        for remark in remarks:
            yield Finding("data", "warning", remark, "correct the data, or continue without the named classes or clips")
        bad = list(unusable(dataset, settings.seed, index, _sample_rate(encoder)))
        for reason in bad[:MOST_CLIPS]:
            yield Finding("clips", "warning" if dataset.skip_bad else "error", reason, REMEDY)
        outcome = f"{len(bad)} problems, the first of which are listed" if bad else "no problems"
        yield Finding("clips", "fine", f"some clips of every class were decoded: {outcome}")
    yield from failed


def _sample_rate(encoder: LoadEncoder) -> int:
    """The encoder's sample rate, or a default if it cannot be loaded, which is a finding of its own."""
    from fed_a2v.encoders.logmel import LogMelEncoder

    try:
        return encoder().sample_rate
    except Exception:
        return LogMelEncoder.sample_rate


def _encoder(dataset: DatasetSettings, load: LoadEncoder) -> Iterator[Finding]:
    from fed_a2v.data.datasets.base import data_set
    from fed_a2v.data.index import parts

    if not any(data_set(part.name).has_audio for part in parts(dataset)):
        yield Finding("encoder", "fine", f"not needed with dataset={dataset.name}")
        return
    with _as_error("encoder", "download the model with network access, or set a local folder") as failed:
        encoder = load()
        yield Finding(
            "encoder",
            "fine",
            f"{encoder.name}: {encoder.tokens} x {encoder.width} per clip, {encoder.sample_rate / 1000:g} kHz, "
            "available offline",
        )
    yield from failed


def _audio_shape(dataset: DatasetSettings, load: LoadEncoder) -> tuple[int, int]:
    """Tokens and width of a clip's embedding, from the encoder or the file of embeddings."""
    from fed_a2v.data.datasets.base import data_set
    from fed_a2v.data.datasets.embeddings import EmbeddingsFile
    from fed_a2v.data.index import parts

    first = parts(dataset)[0]  # the data sets of a mix have embeddings of one shape
    kind = data_set(first.name)
    if issubclass(kind, EmbeddingsFile):
        return kind.open(first, seed=0).shape()
    encoder = load()
    return encoder.tokens, encoder.width


def _resources(settings: Settings, encoder: LoadEncoder) -> Iterator[Finding]:
    """Estimated cost of a round: network, memory and disk."""
    import psutil

    from fed_a2v.data.site import class_names
    from fed_a2v.federation.factory import prompt_set
    from fed_a2v.federation.server.resources import resource_estimate
    from fed_a2v.federation.server.step_factory import make_space, make_step

    with _as_error("resources", "see the errors above") as failed, _offline():
        shape = _audio_shape(settings.dataset, encoder)
        prompts = prompt_set(settings, class_names(settings.dataset))
        space = make_space(settings) if settings.shares_sums else None
        step = make_step(settings, prompts, shape, space)
        estimate = resource_estimate(settings, step, shape)
        yield Finding(
            "network",
            "fine",
            f"{_size(estimate.down)} to each site per round, {_size(estimate.up)} from it, and up to "
            f"{_size(estimate.prototypes)} once",
        )
        scarce = estimate.memory > psutil.virtual_memory().available
        yield Finding(
            "server",
            "warning" if scarce else "fine",
            f"about {_size(estimate.memory)} of memory for {settings.partition.sites} sites, {_size(estimate.disk)} on "
            "disk",
            "set optimize_memory_usage=true, or fewer sites per round (federation.sites_per_round)" if scarce else "",
        )
    yield from failed


@contextmanager
def _as_error(subject: str, remedy: str) -> Iterator[list[Finding]]:
    """Add an exception in the block as a finding to the list that is yielded."""
    findings: list[Finding] = []
    try:
        yield findings
    except Exception as error:  # custom data sets and models may raise anything
        findings.append(Finding(subject, "error", " ".join(str(error).split())[:400] or type(error).__name__, remedy))


@contextmanager
def _offline() -> Iterator[None]:
    """Disable network access of the Hugging Face libraries."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _size(number: float) -> str:
    """A number of bytes with its unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
