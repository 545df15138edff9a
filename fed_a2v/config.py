"""From Hydra's configuration to `Settings`: composing, checking, and saying what is wrong.

The same `Settings` come out of `fed-a2v train`, of a Hydra sweep and of `flwr run`.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from fed_a2v.settings import Settings


class ConfigError(ValueError):
    """A setting is unknown, has the wrong type, is out of range, or contradicts another."""


def conf_dir() -> Path:
    """Folder of the Hydra configs: inside the package in a wheel, beside it in a checkout or app bundle."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"no conf/config.yaml in or beside {package}")


def compose_settings(overrides: str | Sequence[str] = "") -> Settings:
    """Compose `conf/` with Hydra overrides, as words or as one shell-quoted string.

    Raises:
        ConfigError: an override names no known key, or a value is not allowed.
    """
    try:
        words = shlex.split(overrides) if isinstance(overrides, str) else list(overrides)
    except ValueError as error:
        raise ConfigError(f"overrides {overrides!r}: {error}") from error
    # Inside a Hydra job another search path may be registered: set it aside and put it back.
    previous = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3", job_name="fed_a2v"):
            config = compose(config_name="config", overrides=words)
    except (HydraException, ValueError) as error:  # Hydra refuses GROUP=null with a plain ValueError
        raise ConfigError(_explain(error, words)) from error
    finally:
        GlobalHydra.instance().hydra = previous
    return settings_from(config)


def settings_from(config: DictConfig) -> Settings:
    """Type and check a composed Hydra tree.

    Raises:
        ConfigError: names the key, the value and what is allowed.
    """
    try:
        tree = OmegaConf.to_container(config, resolve=True)
        assert isinstance(tree, dict)
        return Settings.model_validate(tree | {"dataset": _complete_dataset(tree.get("dataset"))})
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(entry) for entry in error.errors())) from error


def to_yaml(settings: Settings) -> str:
    """The resolved settings as YAML, in the order of their definition."""
    return OmegaConf.to_yaml(OmegaConf.create(settings.model_dump(mode="json", by_alias=True)))


def cache_dir(settings: Settings) -> Path:
    """Folder of the embedding cache: `cache_dir`, else $FED_A2V_CACHE, else the user's cache folder."""
    if settings.cache_dir:
        return Path(settings.cache_dir).expanduser()
    if folder := os.environ.get("FED_A2V_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "fed_a2v"


def known_keys(tree: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a nested mapping, sections included."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield f"{prefix}{name}"
            yield from known_keys(value, f"{prefix}{name}.")


# Of a mix, what each of its data sets takes over where it says nothing itself.
_SHARED_BY_SETS = ("split_seed", "max_clips_per_class", "skip_bad")


def _complete_dataset(dataset: Any) -> Any:
    """Read a file of aliases, and give each data set of a mix the defaults of its own file in `conf/dataset/`."""
    if not isinstance(dataset, dict):
        return dataset
    dataset = dict(dataset)
    if isinstance(dataset.get("aliases"), str):
        dataset["aliases"] = _read_aliases(Path(dataset["aliases"]).expanduser())
    sets = dataset.get("sets")
    if isinstance(sets, list):
        shared = {key: dataset[key] for key in _SHARED_BY_SETS if dataset.get(key) is not None}
        dataset["sets"] = [_complete_set(part, shared) for part in sets]
    return dataset


def _complete_set(part: Any, shared: dict[str, Any]) -> Any:
    if not isinstance(part, dict):
        return part
    file = conf_dir() / "dataset" / f"{part.get('name')}.yaml"
    if not file.is_file():
        choices = sorted(path.stem for path in file.parent.glob("*.yaml") if path.stem != "mixed")
        raise ConfigError(f"dataset.sets: {part} needs a name, one of {', '.join(choices)}")
    defaults = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(defaults, dict)
    return defaults | shared | part


def _read_aliases(path: Path) -> dict[str, str]:
    try:
        table = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"dataset.aliases: {path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"dataset.aliases: {path} needs lines of the form `name in a data set: common name`")
    return {str(name): str(common) for name, common in table.items()}


def _explain(error: Exception, words: Sequence[str]) -> str:
    """Hydra's message in one line, with the nearest known key where an override names none."""
    message = str(error).splitlines()[0]
    if message.startswith("Ambiguous value"):
        return f"{message}: -m sweeps over the values, KEY=[A,B] is a list"
    unknown = re.search(r"Could not (?:override|find|delete)[^'\"]*['\"]([\w./@+-]+)", str(error))
    if not unknown:
        return message
    key = unknown[1].split("/")[-1] if "/" in unknown[1] else unknown[1]
    group = unknown[1].split("/")[0]
    options = conf_dir() / group
    if "/" in unknown[1]:
        if not options.is_dir():
            return message
        choices = sorted(path.stem for path in options.glob("*.yaml"))
        return f"{group}={key}: no such option; choose from {', '.join(choices)}{_nearest(key, choices)}"
    keys = sorted(set(known_keys(_all_options())))
    given = next((word for word in words if word.lstrip("+~").startswith(key)), key)
    return f"unknown key {key} in {given!r}{_nearest(key, keys)}"


def _nearest(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else "; `fed-a2v train --help` lists the keys"


def _all_options() -> dict[str, Any]:
    """The union of config.yaml and of every option of every group, for finding the nearest key."""
    tree: dict[str, Any] = {}
    root = OmegaConf.to_container(OmegaConf.load(conf_dir() / "config.yaml"))
    assert isinstance(root, dict)
    tree.update({str(key): value for key, value in root.items() if key != "defaults"})
    for path in sorted(conf_dir().glob("*/*.yaml")):
        if path.parent.name not in ("experiment", "hydra"):
            option = OmegaConf.to_container(OmegaConf.load(path))
            section = tree.setdefault(path.parent.name, {})
            section.update({key: value for key, value in dict(option or {}).items() if key != "defaults"})  # type: ignore[arg-type]
    return tree


def _describe(entry: Any) -> str:
    """One pydantic error as `key = value: what is wrong`."""
    key = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "extra_forbidden":
        return f"unknown key {key}{_nearest(key, sorted(set(known_keys(_all_options()))))}"
    message = str(entry["msg"]).removeprefix("Value error, ")
    if entry["type"] in ("value_error", "missing"):
        return f"{key}: {message}" if key else message
    return f"{key} = {entry['input']!r}: {message}"
