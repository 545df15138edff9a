"""Build objects of classes that settings name by import path: custom generators, encoders, data sets and callbacks.

Settings in a run's folder or a message may be untrusted. Code that reads such settings calls `refuse_code` first: only
classes that `conf/` names are allowed without the user's consent.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any

from fed_a2v.config.own_class import described, remember
from fed_a2v.config.sections.base import ComponentSettings
from fed_a2v.config.tree import conf_dir
from fed_a2v.errors import ConfigError, UserError
from fed_a2v.storage.untrusted import read_yaml

TARGET = "_target_"


class UntrustedCodeError(UserError, ValueError):
    """Untrusted settings name code that the user has not declared as trusted."""


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
    """The import paths in `conf/`, which any settings may name."""
    files = (path for group in ("generator", "metrics", "callbacks") for path in conf_dir().glob(f"{group}/*.yaml"))
    return frozenset(target for file in files for _, target in named_code(read_yaml(file)))


def foreign_code(settings: Any, allowed: Collection[str] = ()) -> list[str]:
    """The import paths in settings that are neither of this program nor `allowed`, each as KEY=PATH."""
    return [f"{key}={target}" for key, target in named_code(settings) if target not in own_code() | {*allowed}]


def refuse_code(settings: Any, whose: str, remedy: str, allowed: Collection[str] = ()) -> None:
    """Check that settings name only code of this program.

    Args:
        settings: nested dictionaries.
        whose: origin of the settings, for the start of the message.
        remedy: instruction for code that is trusted, for the end of the message.
        allowed: import paths that are trusted.

    Raises:
        UntrustedCodeError: names every import path, and `remedy`.
    """
    if foreign := foreign_code(settings, allowed):
        raise UntrustedCodeError(f"{whose} would run code outside this program: {', '.join(foreign)}; {remedy}")


def load_class(section: str, target: str) -> type[Any]:
    """The class at an import path.

    Args:
        section: section of the settings, for messages: "generator", "encoder", "dataset".
        target: MODULE.CLASS.

    Raises:
        ConfigError: the module or class does not exist, or the import fails.
    """
    remember(target)
    module, _, name = target.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{section}.{TARGET}={target}: {error}; install the package, or add its folder to PYTHONPATH"
        ) from error
    except Exception as error:  # the user's module may raise anything
        raise ConfigError(f"{section}.{TARGET}={target}: {described(error)}") from error
    if not isinstance(cls, type):
        raise ConfigError(f"{section}.{TARGET}={target} is not a class; set MODULE.CLASS")
    return cls


def make_object(
    section: str, target: str, arguments: Mapping[str, Any], methods: Collection[str], attributes: Collection[str] = ()
) -> Any:
    """An object of the class at an import path.

    Args:
        section: see `load_class`.
        target: see `load_class`.
        arguments: arguments of the class, plain values.
        methods: required methods of the class, checked before it is called.
        attributes: required attributes of the object.

    Raises:
        ConfigError: the class does not exist, lacks a method or attribute, or raises on the arguments.
    """
    cls = load_class(section, target)
    check_plain(section, arguments)
    _check_members(section, target, cls, methods)
    try:
        made = cls(**arguments)
    except Exception as error:  # the user's class may raise anything
        raise ConfigError(f"{section}.{TARGET}={target}: {described(error)}") from error
    _check_members(section, target, made, attributes)
    return made


def make_components(section: str, chosen: Mapping[str, ComponentSettings | None], base: type) -> dict[str, Any]:
    """Callbacks or metrics by name, in the order of the settings, without those set to null.

    Raises:
        ConfigError: see `make_object`, or a class is not derived from `base`.
    """
    made = {}
    for name, settings in chosen.items():
        if settings is not None:
            key = f"{section}.{name}"
            if not issubclass(load_class(key, settings.target), base):
                raise ConfigError(
                    f"{key}.{TARGET}={settings.target} is not derived from {base.__module__}.{base.__name__}"
                )
            made[name] = make_object(key, settings.target, settings.arguments, ())
    return made


def check_plain(section: str, arguments: Any) -> None:
    """Check that arguments are plain values, without import paths of objects.

    Raises:
        ConfigError: names the key.
    """
    for key, target in named_code(arguments, section):
        raise ConfigError(f"{key}={target}: arguments must be plain values; the class must build its objects")


def _check_members(section: str, target: str, owner: Any, names: Collection[str]) -> None:
    if missing := sorted(name for name in names if not hasattr(owner, name)):
        raise ConfigError(f"{section}.{TARGET}={target} has no {', '.join(missing)}; add them to the class")
