"""Software and hardware of a run, to reproduce it; without the name of the machine, since runs are shared."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fed_a2v.version import __version__

PACKAGES = ("torch", "flwr", "numpy", "scikit-learn", "hydra-core", "transformers", "diffusers")


def environment() -> dict[str, Any]:
    """Versions, processor and start time, for `environment.json`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "fed_a2v": __version__,
        "python": platform.python_version(),
        **{name: installed for name in PACKAGES if (installed := installed_version(name))},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


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
