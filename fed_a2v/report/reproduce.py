"""The command that gives a run's settings again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.schema import Settings, affects_result
from fed_a2v.config.tree import conf_dir, dotted_items

# The key that says which option of a group was chosen.
NAMES = {"partition": "kind", "share": "kind", "aggregation": "mode"}
# Strings that Hydra reads as they stand, and not as a number or a word of its own.
PLAIN = re.compile(r"(?!(?:null|true|false|yes|no|on|off|inf|nan|[-+.\d].*)$)[\w./@-]+", re.IGNORECASE)
# Without these, some options make no valid settings.
PLACES = ("dataset.root", "dataset.path", "targets.path")


def overrides_of(config: Mapping[str, Any]) -> list[str] | None:
    """The fewest overrides of `conf/` that compose to the same settings.

    Args:
        config: nested settings, as in a run's `config.yaml`.

    Returns:
        Words for `fed-a2v train`; None where no overrides of this version give these settings.
    """
    try:
        wanted = _composed(Settings.model_validate(config))
        leaves = dict(dotted_items(wanted))
        places = [f"{key}={_word(leaves[key])}" for key in PLACES if leaves.get(key)]
        groups = [*_groups(wanted), *places]
        base = dict(dotted_items(_composed(compose_settings(groups) if groups else _default())))
        changed = [
            f"{key if key in base else '+' + key}={_word(value)}"
            for key, value in leaves.items()
            if base.get(key, ...) != value and _matters(key)
        ]
        words = [*groups, *changed]
        found = dict(dotted_items(_composed(compose_settings(words))))
    except (ConfigError, ValueError, OSError):
        return None
    same = {key: value for key, value in leaves.items() if _matters(key)}
    return words if {key: found.get(key) for key in same} == same else None


@lru_cache(maxsize=1)
def _default() -> Settings:
    return compose_settings([])


def _composed(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json", by_alias=True)


def _groups(wanted: Mapping[str, Any]) -> list[str]:
    """`GROUP=OPTION` for every group whose option is not the default one."""
    default = _composed(_default())
    chosen = []
    for folder in sorted(path for path in conf_dir().iterdir() if path.is_dir()):
        section = wanted.get(folder.name)
        if not isinstance(section, dict):
            continue
        name = section.get(NAMES.get(folder.name, "name"))
        if name != default[folder.name].get(NAMES.get(folder.name, "name")) and (folder / f"{name}.yaml").is_file():
            chosen.append(f"{folder.name}={name}")
    return chosen


def _word(value: Any) -> str:
    """A value in Hydra's grammar of overrides."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return value if PLAIN.fullmatch(value) else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, list):
        return "[" + ",".join(_word(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_word(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def _matters(key: str) -> bool:
    """Whether a key belongs into the command; processor and threads decide the last bits."""
    return affects_result(key) or key in ("device", "threads")
