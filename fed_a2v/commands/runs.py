"""Checks of the folders of runs that the user names, before what reads them is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fed_a2v.core.names import nearest
from fed_a2v.errors import ConfigError

# A run's folder has one of these.
OF_ONE = ("config.yaml", "metrics.jsonl", "checkpoints", "pictures.json")
FILES = (*OF_ONE, "comparison.json")


def check_run(path: Path) -> None:
    """Check that a path is the folder of a run, or of several, or a saved state in one.

    Raises:
        ConfigError: names the path, and the nearest folder if it does not exist.
    """
    path = path.expanduser()
    if not path.exists():
        near = nearest(path.name, (other.name for other in _folders(path.parent)), cutoff=0.6)
        hint = f"did you mean {path.parent / near}?" if near else "choose a folder that `fed-a2v train` has written"
        raise ConfigError(f"{path}: no such folder; {hint}")
    if path.is_file() and path.suffix != ".pt":
        raise ConfigError(f"{path} is no saved state of a run (checkpoints/state_round_N.pt); choose the run's folder")
    if path.is_dir() and not any(any(path.glob(f"{under}{name}")) for under in ("", "*/", "*/*/") for name in FILES):
        raise ConfigError(f"{path} contains no run ({FILES[0]}); choose a folder that `fed-a2v train` has written")


def check_one_run(path: Path) -> None:
    """`check_run` for commands that take a single run.

    Raises:
        ConfigError: see `check_run`, or the folder's runs are in subfolders; names them.
    """
    check_run(path)
    path = path.expanduser()
    if path.is_dir() and not any((path / name).exists() for name in OF_ONE):
        inside = sorted(str(file.parent) for file in (*path.glob("*/config.yaml"), *path.glob("*/*/config.yaml")))
        more = f" and {len(inside) - 2} more" if len(inside) > 2 else ""
        raise ConfigError(f"{path} has its runs in subfolders; choose one: {', '.join(inside[:2])}{more}")


def _folders(path: Path) -> list[Path]:
    """The folders in a folder; none if it cannot be read."""
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir())
    except OSError:
        return []


def check_resumable(config: Mapping[str, Any], folder: Path) -> None:
    """Check that a run in the folder, if it has saved a state, was started with the same settings.

    Raises:
        CheckpointError: it was not; names the settings.
    """
    from fed_a2v.runs.checkpoint import check_same_experiment
    from fed_a2v.storage.untrusted import UntrustedFileError, read_yaml

    file = folder / "config.yaml"
    if config["resume"] != "auto" or not file.is_file() or not any(folder.glob("checkpoints/state_round_*.pt")):
        return
    try:
        saved = read_yaml(file)
    except (OSError, UntrustedFileError):  # the run itself reports it, and can do without this file
        return
    check_same_experiment(saved, config)
