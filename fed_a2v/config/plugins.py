"""Classes that settings name by their import path: imported, checked, and called with plain values.

Settings may be a stranger's, those of a run's folder or of a message. Whoever reads such settings asks `refuse_code`
first: only what `conf/` itself names is built without being trusted.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any

from fed_a2v.config.schema import ConfigError
from fed_a2v.config.tree import conf_dir
from fed_a2v.errors import UserError
from fed_a2v.storage.untrusted import read_yaml

TARGET = "_target_"


class UntrustedCodeError(UserError, ValueError):
    """Settings of others name code to run, and nobody has said that it is trusted."""


def named_code(settings: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every import path in nested settings, at any depth, with its dotted key."""
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            here = f"{key}.{name}" if key else str(name)
            if name != TARGET:
                yield from named_code(value, here)
            elif value is not None:
                yield here, str(value)
    elif isinstance(settings, list | tuple):
        for place, value in enumerate(settings):
            yield from named_code(value, f"{key}[{place}]")


@cache
def own_code() -> frozenset[str]:
    """The import paths that `conf/` names: the classes of this program that settings may ask for."""
    files = (path for group in ("generator", "metrics", "callbacks") for path in conf_dir().glob(f"{group}/*.yaml"))
    return frozenset(target for file in files for _, target in named_code(read_yaml(file)))


def refuse_code(settings: Any, whose: str, remedy: str, allowed: Collection[str] = ()) -> None:
    """Check that settings name no code but this program's own.

    Args:
        settings: nested dictionaries.
        whose: the settings' owner, at the start of the message.
        remedy: what to do where the code is trusted.
        allowed: import paths that are trusted.

    Raises:
        UntrustedCodeError: names every import path, and `remedy`.
    """
    foreign = [f"{key}={target}" for key, target in named_code(settings) if target not in own_code() | {*allowed}]
    if foreign:
        raise UntrustedCodeError(f"{whose} would run code that is not this program's: {', '.join(foreign)}; {remedy}")


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
            f"{section}.{TARGET}={target}: {error}; install the package, or add its folder to PYTHONPATH"
        ) from error
    except Exception as error:  # whatever goes wrong inside the user's module
        raise ConfigError(f"{section}.{TARGET}={target}: {type(error).__name__}: {error}") from error
    if not isinstance(found, type):
        raise ConfigError(f"{section}.{TARGET}={target} is no class")
    return found


def make_object(
    section: str, target: str, arguments: Mapping[str, Any], methods: Collection[str], attributes: Collection[str] = ()
) -> Any:
    """An object of the class at an import path.

    Args:
        section: see `load_class`.
        target: see `load_class`.
        arguments: of the class, plain values.
        methods: that the class must have; without them it is not called.
        attributes: that the object must have.

    Raises:
        ConfigError: there is no such class, it lacks something, or it refuses the arguments.
    """
    cls = load_class(section, target)
    check_plain(section, arguments)
    _check_members(section, target, cls, methods)
    try:
        made = cls(**arguments)
    except Exception as error:  # whatever goes wrong inside the user's class
        raise ConfigError(f"{section}.{TARGET}={target}: {type(error).__name__}: {error}") from error
    _check_members(section, target, made, attributes)
    return made


def check_plain(section: str, arguments: Any) -> None:
    """Check that arguments are plain values: an import path in them would be that of an object.

    Raises:
        ConfigError: names the key.
    """
    for key, target in named_code(arguments, section):
        raise ConfigError(f"{key}={target}: objects cannot be arguments here, only plain values can")


def _check_members(section: str, target: str, found: Any, names: Collection[str]) -> None:
    if missing := sorted(name for name in names if not hasattr(found, name)):
        raise ConfigError(f"{section}.{TARGET}={target} has no {', '.join(missing)}")
