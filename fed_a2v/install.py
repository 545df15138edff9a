"""The commands that install optional packages, for error messages. They work: fed_a2v itself is on no package index."""

from __future__ import annotations

import importlib.util
import re
import shlex
from importlib import metadata
from pathlib import Path

from fed_a2v.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def install_hint(*extras: str) -> str:
    """The command that installs the packages of extras: from the checkout, else by the packages' names.

    Args:
        extras: names in `[project.optional-dependencies]` of `pyproject.toml`.
    """
    if (ROOT / "constraints.txt").is_file():
        here = Path() if Path.cwd() == ROOT else ROOT
        constraints, project = str(here / "constraints.txt"), f"{here}[{','.join(extras)}]"
        # Quoted although not every shell needs it: zsh expands brackets.
        return f"pip install -c {shlex.quote(constraints)} -e '{project}'"
    packages = [package for extra in extras for package in _packages(extra)]
    return f"pip install {' '.join(map(shlex.quote, dict.fromkeys(packages)))}"


def require(module: str, extra: str, what: str) -> None:
    """Check that an optional package is installed, without importing it.

    Args:
        module: name of the package in Python.
        extra: the extra that has it.
        what: what needs it, KEY=VALUE.

    Raises:
        ConfigError: names `what`, the package, and the command that installs it.
    """
    try:
        missing = importlib.util.find_spec(module) is None
    except (ImportError, ValueError):
        missing = True
    if missing:
        raise ConfigError(f"{what} needs the package {module}: {install_hint(extra)}")


def _packages(extra: str) -> list[str]:
    """The packages of an extra, with their versions, from the metadata of the installation."""
    try:
        requirements = metadata.requires("fed-a2v") or []
    except metadata.PackageNotFoundError:  # the bundle of a Flower app
        requirements = []
    of_extra = re.compile(rf"""(.*?)\s*;.*extra == ['"]{re.escape(extra)}['"]""")
    return [match[1] for requirement in requirements if (match := of_extra.match(requirement))]
