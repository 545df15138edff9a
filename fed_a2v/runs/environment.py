"""Software and hardware of a run, to reproduce it; without the name of the machine, since runs are shared."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

import torch

from fed_a2v.version import __version__

ROOT = Path(__file__).resolve().parents[2]
GIT_SECONDS = 60
PACKAGES = ("torch", "flwr", "numpy", "scikit-learn", "hydra-core", "transformers", "diffusers")


def environment() -> dict[str, Any]:
    """Versions, processor and start time, for `environment.json`.

    `commit` is that of the source code, with `uncommitted_changes`, if it is a Git working copy; `packages_sha256` that
    of all installed packages and versions; `constraints_sha256` that of `constraints.txt`, with
    `not_as_in_constraints`, the packages that are installed in another version.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "fed_a2v": __version__,
        **commit(ROOT),
        "python": platform.python_version(),
        **{name: installed for name in PACKAGES if (installed := installed_version(name))},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **_lock(),
    }


def commit(folder: Path) -> dict[str, Any]:
    """The Git commit that is checked out in a folder, and whether tracked files differ from it.

    Empty if the folder is not the top of a working copy or belongs to another user, whose Git settings could start
    programs; and without Git.

    Returns:
        `commit`, hexadecimal, and `uncommitted_changes`.
    """
    top = folder / ".git"
    try:
        if hasattr(os, "getuid") and {folder.stat().st_uid, top.stat().st_uid} != {os.getuid()}:
            return {}
        command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", "--no-optional-locks"]
        command += ["status", "--porcelain=v2", "--branch", "--untracked-files=no"]
        plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        found = top.exists() and subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=plain, timeout=GIT_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    checked_out = re.search(r"^# branch\.oid ([0-9a-f]{40,64})$", found.stdout if found else "", re.MULTILINE)
    if not found or found.returncode or not checked_out:
        return {}
    changed = any(not line.startswith("#") for line in found.stdout.splitlines())
    return {"commit": checked_out[1], "uncommitted_changes": changed}


@lru_cache(maxsize=1)
def _lock() -> dict[str, Any]:
    installed = dict(package for each in distributions() if (package := _package(each)))
    lines = sorted(f"{name}=={number}" for name, number in installed.items())
    found: dict[str, Any] = {"packages_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}
    constraints = ROOT / "constraints.txt"
    if constraints.is_file():
        text = constraints.read_text(encoding="utf-8")
        wanted = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))
        # A build of the same version, e.g. 2.13.0+cpu, is as in the constraints.
        there = {name: installed[_canonical(name)] for name in wanted if _canonical(name) in installed}
        others = [f"{name} {each}" for name, each in there.items() if each.partition("+")[0] != wanted[name]]
        found |= {"constraints_sha256": hashlib.sha256(text.encode()).hexdigest(), "not_as_in_constraints": others}
    return found


def _package(distribution: Distribution) -> tuple[str, str] | None:
    """Canonical name and version of an installed package, read without its description; None without a name."""
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    header = dict(re.findall(r"^(Name|Version): *(.*?)\s*$", text.partition("\n\n")[0], re.MULTILINE))
    return (_canonical(header["Name"]), header.get("Version", "")) if header.get("Name") else None


def _canonical(name: str) -> str:
    """A package's name as in PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_version(package: str) -> str | None:
    """Version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return model[1].strip() if model else platform.processor() or platform.machine()
