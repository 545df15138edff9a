"""Groups, options and keys in the folder `conf/`; used to compose settings and by error messages and completion."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Folders of `conf/` that are not sections of the settings.
NO_SECTIONS = ("experiment", "hydra")


def conf_dir() -> Path:
    """Folder of the Hydra configs: inside the package in a wheel, next to it in a checkout or app bundle."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"no conf/config.yaml in or next to {package}")


def options(group: str) -> list[str]:
    """The options of a group, sorted, without the shared `_base`; empty for an unknown group."""
    return sorted(path.stem for path in (conf_dir() / group).glob("[!_]*.yaml"))


def sections() -> list[str]:
    """The groups that are sections of the settings, sorted."""
    return sorted({path.parent.name for path in conf_dir().glob("*/*.yaml")} - set(NO_SECTIONS))


def known_keys() -> list[str]:
    """Every dotted key of config.yaml and of all options of all groups, sections included, sorted."""
    keys = set(dotted_keys(_load("config")))
    for group in sections():
        keys |= {group, *(f"{group}.{key}" for option in options(group) for key in option_keys(group, option))}
    return sorted(keys)


def option_keys(group: str, option: str) -> list[str]:
    """Every dotted key of one option, without the group's name, including those of the options that it extends."""
    return list(dict.fromkeys(dotted_keys(option_values(group, option))))


@cache
def option_values(group: str, option: str) -> dict[str, Any]:
    """The values of one option, including those of the options that it extends; not to be modified."""
    content = OmegaConf.load(conf_dir() / group / f"{option}.yaml")
    assert isinstance(content, DictConfig)
    bases = [base for base in content.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
    values = OmegaConf.to_container(OmegaConf.merge(*(option_values(group, base) for base in bases), content))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@cache
def required_keys(group: str, option: str) -> tuple[str, ...]:
    """The keys that have no default in an option: those with the value `???` in its file."""
    content = OmegaConf.load(conf_dir() / group / f"{option}.yaml")
    return tuple(str(key) for key in content if OmegaConf.is_missing(content, key))


def option_summary(group: str, option: str) -> str:
    """The comment at the top of an option's file; "" if there is none."""
    lines = (conf_dir() / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
    return next((line[2:] for line in lines if re.match(r"# (?!@)", line)), "")


def options_with(key: str) -> list[str]:
    """The options, as GROUP=OPTION, that have the dotted key GROUP.KEY."""
    group, _, rest = key.partition(".")
    return [f"{group}={option}" for option in options(group) if rest in option_keys(group, option)]


def dotted_items(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a nested mapping with its dotted key; an empty section is a value."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from dotted_items(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def dotted_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a nested mapping, sections included."""
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from dotted_keys(value, f"{prefix}{name}.")


def _load(name: str) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{name}.yaml"))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items() if key not in ("defaults", "hydra")}
