"""The shortest command that reproduces a run's settings, for the report.

Hydra's own record of the overrides is not enough: a run started by `flwr run` has none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.schema import Settings, affects_result
from fed_a2v.config.tree import conf_dir, dotted_items

# Key with the name of a group's option, if it is not `name`.
NAMES = {"partition": "kind", "share": "kind", "aggregation": "mode"}
# Strings that Hydra's grammar reads as text without quotes.
PLAIN = re.compile(r"(?!(?:null|true|false|yes|no|on|off|inf|nan|[-+.\d].*)$)[\w./@-]+", re.IGNORECASE)
# Paths without which some options are not valid.
PLACES = ("dataset.root", "dataset.path", "targets.path")


def overrides_of(config: Mapping[str, Any]) -> list[str] | None:
    """The fewest overrides of `conf/` that compose to the same settings.

    Args:
        config: nested settings, as in a run's `config.yaml`.

    Returns:
        Arguments of `fed-a2v train`; None if no overrides of this version give these settings.
    """
    try:
        target = Settings.model_validate(config).as_dict()
        leaves = dict(dotted_items(target))
        places = [f"{key}={_word(leaves[key])}" for key in PLACES if leaves.get(key)]
        groups = [*_groups(target), *places]
        base = dict(dotted_items(compose_settings(groups).as_dict() if groups else _default()))
        changed = [
            f"{key if key in base else '+' + key}={_word(value)}"
            for key, value in leaves.items()
            if base.get(key, ...) != value and _matters(key)
        ]
        words = [*groups, *changed]
        composed = dict(dotted_items(compose_settings(words).as_dict()))
    except (ConfigError, ValueError, OSError):
        return None
    relevant = {key: value for key, value in leaves.items() if _matters(key)}
    return words if {key: composed.get(key) for key in relevant} == relevant else None


@lru_cache(maxsize=1)
def _default() -> dict[str, Any]:
    return compose_settings([]).as_dict()


def _groups(target: Mapping[str, Any]) -> list[str]:
    """`GROUP=OPTION` for every group whose option is not the default one."""
    default = _default()
    chosen = []
    for folder in sorted(path for path in conf_dir().iterdir() if path.is_dir()):
        section = target.get(folder.name)
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
    """Whether a key belongs to the command; device and threads do, since they affect the last bits."""
    return affects_result(key) or key in ("device", "threads", "engine")
