"""Classes of a user's own: generators, encoders and data sets that the settings name by their import path."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from typing import Any

from fed_a2v.settings import ConfigError


def load_class(section: str, target: str) -> type[Any]:
    """The class at an import path.

    Args:
        section: of the settings, for messages: "generator", "encoder", "dataset".
        target: MODULE.CLASS.

    Raises:
        ConfigError: there is no such module or class.
    """
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{section}._target_={target}: {error}; install the package, or add its folder to PYTHONPATH"
        ) from error
    except Exception as error:  # whatever goes wrong inside the user's module
        raise ConfigError(f"{section}._target_={target}: {type(error).__name__}: {error}") from error
    if not isinstance(found, type):
        raise ConfigError(f"{section}._target_={target} is no class")
    return found


def make_object(section: str, target: str, arguments: Mapping[str, Any], needs: Collection[str]) -> Any:
    """An object of the class at an import path.

    Args:
        section: see `load_class`.
        target: see `load_class`.
        arguments: of the class.
        needs: attributes and methods that the object must have.

    Raises:
        ConfigError: there is no such class, it refuses the arguments, or its objects lack something.
    """
    cls = load_class(section, target)
    try:
        made = cls(**arguments)
    except Exception as error:  # whatever goes wrong inside the user's class
        raise ConfigError(f"{section}._target_={target}: {type(error).__name__}: {error}") from error
    if missing := sorted(name for name in needs if not hasattr(made, name)):
        raise ConfigError(f"{section}._target_={target} has no {', '.join(missing)}")
    return made
