"""Compose `conf/` with Hydra and check it, giving `Settings`.

`fed-a2v train`, a Hydra sweep and `flwr run` all call it, and get the same `Settings`.
"""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from fed_a2v.config.messages import explain_composition, explain_validation
from fed_a2v.config.schema import Settings
from fed_a2v.config.tree import conf_dir, dotted_keys, option_values, options
from fed_a2v.errors import ConfigError
from fed_a2v.storage.untrusted import UntrustedFileError, read_names

__all__ = ["ConfigError", "compose_settings", "conf_dir", "settings_from", "sources", "to_yaml"]


def compose_settings(overrides: str | Sequence[str] = "") -> Settings:
    """Compose `conf/` with Hydra overrides, as a list or as one shell-quoted string.

    Raises:
        ConfigError: an override has an unknown key, or a value is not allowed.
    """
    try:
        words = shlex.split(overrides) if isinstance(overrides, str) else list(overrides)
    except ValueError as error:
        raise ConfigError(f"overrides {overrides!r}: {error}") from error
    return settings_from(_composed(tuple(as_overrides(words))))


# Text with a ~ between brackets, braces, commas and colons: Hydra accepts it only in quotes.
_HOME = re.compile(r"((?:^|[\[{,:])\s*)((?=[^\[\]{},:]*~)[^\[\]{},:\s](?:[^\[\]{},:]*[^\[\]{},:\s])?)")
_OUTPUT = re.compile(r"(\+*hydra\.(?:run|sweep)\.dir)=(['\"]?)(~.*)\2")
SEARCH, FILE = "hydra.searchpath", "file://"
_CONFIG_DIR = re.compile(r"(?:--config-dir|-cd)(?:=(.*))?", re.DOTALL)


def as_overrides(words: Sequence[str]) -> list[str]:
    """Hydra overrides from command-line arguments, which may contain `~` and `--config-dir FOLDER`.

    Raises:
        ConfigError: `--config-dir` is not a folder.
    """
    overrides: list[str] = []
    folders: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if match := _CONFIG_DIR.fullmatch(word):
            given = next(remaining, "") if match[1] is None else match[1]
            folder = Path(given).expanduser().absolute()
            if not given or not folder.is_dir():
                raise ConfigError(
                    f"--config-dir={given}: no such folder; choose one that contains experiment/ or a group"
                )
            folders.append(f"'{FILE}{folder}'")
        elif match := _OUTPUT.fullmatch(word):  # Hydra creates this folder itself, without expanding ~
            overrides.append(f"{match[1]}='{Path(match[3]).expanduser()}'")
        else:
            key, sign, value = word.partition("=")
            plain = not sign or key.startswith("-") or "'" in value or '"' in value
            overrides.append(word if plain else f"{key}=" + _HOME.sub(r"\1'\2'", value))
    return [*overrides, f"{SEARCH}=[{','.join(folders)}]"] if folders else overrides


@lru_cache(maxsize=256)
def _composed(words: tuple[str, ...]) -> DictConfig:
    """The tree with unresolved interpolations; cached, so callers must not change it.

    Composing the chosen options takes ten times as long as setting values in them, so each choice is composed once.
    """
    with _hydra(words):
        overrides = OverridesParser.create().parse_overrides(list(words))
        values = [override for override in overrides if not options(override.key_or_group)]
        if values and all(map(_is_value, values)):
            choice = tuple(str(override.input_line) for override in overrides if options(override.key_or_group))
            with suppress(ConfigError, OmegaConfBaseException):  # what is wrong is Hydra's to say, below
                tree = copy.deepcopy(_composed(choice))
                for override in values:
                    OmegaConf.update(tree, override.key_or_group, override.value(), merge=True)
                return tree
        return compose(config_name="config", overrides=list(words))


def _is_value(override: Override) -> bool:
    """Whether an override sets a value of the settings, rather than adds, removes or sweeps over one."""
    special = override.is_hydra_override() or override.is_sweep_override() or override.package is not None
    return override.type is OverrideType.CHANGE and not special


def sources(overrides: Sequence[str]) -> dict[str, str]:
    """Origin of the value of each key: a file in `conf/`, or an override.

    Returns:
        The file or override by dotted key; an override of a whole section is under the section's key.

    Raises:
        ConfigError: an override has an unknown option.
    """
    origins: dict[str, str] = {}
    overrides = as_overrides(overrides)
    with _hydra(overrides):
        loader = GlobalHydra.instance().config_loader()
        files = loader.compute_defaults_list("config", list(overrides), RunMode.RUN).defaults
        own = re.findall(rf"'{FILE}([^']*)'", " ".join(word for word in overrides if word.startswith(SEARCH)))
        for file in files:
            places = [Path(folder) / f"{file.config_path}.yaml" for folder in (conf_dir(), *own)]
            path = next((place for place in places if place.is_file()), places[0])
            if path.is_file() and not str(file.package).startswith("hydra"):
                content = {key: value for key, value in _load(path).items() if key not in ("defaults", "hydra")}
                prefix = f"{file.package}." if file.package else ""
                name = f"conf/{file.config_path}.yaml" if path == places[0] else str(path)
                origins |= dict.fromkeys(dotted_keys(content, prefix), name)
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            key = override.get_key_element().lstrip("+~")
            if not options(key):  # the choice of an option is visible by its file
                origins = {known: origin for known, origin in origins.items() if not known.startswith(f"{key}.")}
                origins[key] = str(override.input_line)
    return origins


@contextmanager
def _hydra(words: Sequence[str]) -> Iterator[None]:
    """Hydra initialised on `conf/`; its errors about the overrides `words` become `ConfigError`."""
    # Inside a Hydra job another search path may be registered: replace it and restore it afterwards.
    previous = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3", job_name="fed_a2v"):
            yield
    except (HydraException, ValueError) as error:  # for GROUP=null Hydra raises a plain ValueError
        raise ConfigError(explain_composition(error, words)) from error
    finally:
        GlobalHydra.instance().hydra = previous


def _load(path: Path) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def settings_from(config: DictConfig) -> Settings:
    """Typed, checked settings from a composed Hydra tree.

    Raises:
        ConfigError: names the key, the value and the allowed values.
    """
    try:
        tree = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(tree, dict)
    return complete_settings({str(key): value for key, value in tree.items()})


def complete_settings(tree: Mapping[str, Any]) -> Settings:
    """Typed settings from nested plain values; relative paths are made absolute, and data sets of a mix completed.

    Raises:
        ConfigError: names the key, the value and the allowed values.
    """
    return checked_settings({**tree, "dataset": _complete_dataset(tree.get("dataset"))})


def checked_settings(tree: Mapping[str, Any]) -> Settings:
    """Typed settings from nested plain values.

    Raises:
        ConfigError: names the key, the value and the allowed values.
    """
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain_validation(error)) from error


def to_yaml(config: Mapping[str, Any]) -> str:
    """Resolved settings (`Settings.as_dict`, or those of a run's folder) as YAML, in their order; `${...}` is text."""
    text: str = yaml.safe_dump(dict(config), allow_unicode=True, sort_keys=False)
    return text


# Settings of a mix that its data sets inherit unless they set their own.
_SHARED_BY_SETS = ("test_fold", "split_seed", "max_clips_per_class", "cache_dtype", "skip_bad")


def _complete_dataset(dataset: Any) -> Any:
    """Read a file of aliases, make paths absolute, and complete the data sets of a mix from `conf/dataset/`."""
    if not isinstance(dataset, dict):
        return dataset
    dataset = dict(dataset)
    if isinstance(dataset.get("aliases"), str):
        dataset["aliases"] = _read_aliases(Path(dataset["aliases"]).expanduser())
    if dataset.get("name") != "custom":  # to a custom class it may be anything, such as a URL
        dataset |= {key: _absolute(dataset[key]) for key in ("root", "path") if dataset.get(key)}
    sets = dataset.get("sets")
    if isinstance(sets, list):
        shared = {key: dataset[key] for key in _SHARED_BY_SETS if dataset.get(key) is not None}
        dataset["sets"] = [_complete_set(part, shared) for part in sets]
    return dataset


def _absolute(place: Any) -> Any:
    """An absolute path, so that a run can be loaded or resumed from any folder.

    `~` is kept, since it differs between machines; an empty path is kept for the schema to refuse.
    """
    if not isinstance(place, str) or place.startswith("~") or not place.strip():
        return place
    return str(Path(place).absolute())


def _complete_set(part: Any, shared: dict[str, Any]) -> Any:
    if not isinstance(part, dict):
        return part
    choices = [option for option in options("dataset") if option != "mixed"]
    if part.get("name") not in choices:
        raise ConfigError(f"dataset.sets: {part} needs a name, one of {', '.join(choices)}")
    return _complete_dataset(option_values("dataset", part["name"]) | shared | part)


def _read_aliases(path: Path) -> dict[str, str]:
    try:
        return read_names(path)
    except (OSError, UntrustedFileError) as error:
        reason = str(error) if isinstance(error, UntrustedFileError) else f"{path} cannot be read: {error.strerror}"
        raise ConfigError(f"dataset.aliases: {reason}; expected lines `name in a data set: common name`") from error
