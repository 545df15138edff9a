"""The page of all settings, made from the typed settings and the files in `conf/` whenever the site is built.

Types, ranges and meanings are those of `fed_a2v/config/sections/`; values are those of `conf/`; a generator's own keys
are the arguments of its class, with the meanings that its docstring gives.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union

import yaml
from hydra.utils import get_class
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fed_a2v.config.compose import conf_dir
from fed_a2v.config.schema import Settings
from fed_a2v.config.sections.training import GeneratorSettings
from fed_a2v.config.tree import option_summary, option_values

MARKER = "<!-- all settings -->"
WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null", Any: "any value"}
SIMPLE = (int, float, str, bool)
# Shapes that the server sets from the data.
MEASURED = ("input_dim", "visual_dim", "sequence_length", "t5_dim")
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}
# Read by `federation/server/step_factory.py`, not by a generator's class: the number of networks.
GROUPING = {
    "granularity": (
        Literal["unified", "per_class", "per_group"],
        "one VAE for all classes, or an independent one for each class or group; only the plain VAE has this key",
    ),
    "groups": (dict[str, list[str]] | None, "per_group: names of groups with their classes; every class is in one"),
}

# Sections of classes by name.
COMPONENTS = ("metrics", "callbacks")


class Key(NamedTuple):
    """A key of the configuration: its type and range, its value in the default option, and its meaning, in words."""

    name: str
    type: str
    default: str
    meaning: str


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the reference in place of its marker; called by MkDocs for every page."""
    return markdown.replace(MARKER, reference()) if MARKER in markdown else markdown


def reference() -> str:
    """A heading for every section, its options, and a table of its keys."""
    parts = ["## The run", table(run_keys())]
    for section, model in sections().items():
        parts += [f"## `{section}`", summary(model), option_list(section), table(section_keys(section, model))]
        if model is GeneratorSettings:
            for option, keys in generator_keys().items():
                parts += [f"### `{section}={option}`", table(keys)]
    for section in COMPONENTS:
        parts += [f"## `{section}`", Settings.model_fields[section].description or "", table(component_keys(section))]
    return "\n\n".join(part for part in parts if part)


def table(keys: Sequence[Key]) -> str:
    """Keys as a Markdown table."""
    rows = [[f"`{key.name}`", key.type, f"`{key.default}`", key.meaning] for key in keys]
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in ["key | type | default | meaning", "---|---|---|---", *lines])


# The typed settings


def sections() -> dict[str, type[BaseModel]]:
    """The sections of the settings, by name."""
    fields = Settings.model_fields.items()
    return {name: field.annotation for name, field in fields if _is_section(field)}  # type: ignore[misc]


def run_keys() -> list[Key]:
    """The keys outside sections."""
    fields = Settings.model_fields.items()
    return [
        _key(name, field, main_file().get(name))
        for name, field in fields
        if not _is_section(field) and name not in COMPONENTS
    ]


def component_keys(section: str) -> list[Key]:
    """The metrics or callbacks of a run by default; the meaning is the first paragraph of the class's docstring."""
    chosen = {name: value["_target_"] for name, value in section_values(section).items()}
    return [
        Key(f"{section}.{name}._target_", "text", target, summary(get_class(target))) for name, target in chosen.items()
    ]


def section_keys(section: str, model: type[BaseModel]) -> list[Key]:
    """The keys of a section, with their values in the option that is chosen by default."""
    values, keys = section_values(section), []
    for name, field in model.model_fields.items():
        name = field.alias or name
        keys.append(_key(f"{section}.{name}", field, values.get(name)))
        if inner := _inner_section(field):
            # Where the default option has none, the values are those of the first option that has one.
            given = [values, *(option_values(section, path.stem) for path in option_files(section))]
            chosen = next((each[name] for each in given if each.get(name)), {})
            keys += [_key(f"{section}.{name}.{key}", part, chosen.get(key)) for key, part in inner.model_fields.items()]
    return keys


def summary(model: type) -> str:
    """The first paragraph of a class's docstring, in one line."""
    return " ".join((inspect.getdoc(model) or "").split("\n\n")[0].split())


def _is_section(field: FieldInfo) -> bool:
    return _is_model(field.annotation)


def _inner_section(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a key of a section may hold."""
    optional = typing.get_origin(field.annotation) in (Union, types.UnionType)
    parts = typing.get_args(field.annotation) if optional else [field.annotation]
    return next((each for each in parts if _is_model(each)), None)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _key(name: str, field: FieldInfo, value: Any) -> Key:
    kind = ", ".join([in_words(field.annotation), *_bounds(field.metadata)])
    return Key(name, kind, as_typed(value), field.description or "")


def in_words(annotation: Any) -> str:
    """A type and its range, e.g. `integer, at least 1`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is Annotated:
        metadata = [part for extra in arguments[1:] for part in getattr(extra, "metadata", [extra])]
        return ", ".join([in_words(arguments[0]), *_bounds(metadata)])
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(each) for each in arguments)
    if origin in (list, tuple):
        return f"list of {in_words(arguments[0])}"
    if origin is dict:
        return f"names, each with {in_words(arguments[1])}"
    return "section" if _is_model(annotation) else WORDS[annotation]


def _bounds(metadata: Sequence[Any]) -> list[str]:
    found = [(word, getattr(part, name, None)) for part in metadata for name, word in BOUNDS.items()]
    return [f"{word} {bound:g}" for word, bound in found if bound is not None]


def as_typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_typed, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {as_typed(each)}" for name, each in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


# The files in `conf/`


@cache
def main_file() -> Mapping[str, Any]:
    """`conf/config.yaml`."""
    return _read(conf_dir() / "config.yaml")


def _read(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def option_files(section: str) -> list[Path]:
    """The files of a group's options, the one that is chosen by default first."""
    chosen = default_options().get(section)
    return sorted((conf_dir() / section).glob("[!_]*.yaml"), key=lambda path: (path.stem != chosen, path.stem))


def default_options() -> dict[str, str]:
    """The option that is chosen by default, by group."""
    return {
        group: option for entry in main_file()["defaults"] if isinstance(entry, dict) for group, option in entry.items()
    }


def section_values(section: str) -> dict[str, Any]:
    """The values of a section: those of its default option, or those in `config.yaml` where it has no options."""
    chosen = default_options().get(section)
    return {**(option_values(section, chosen) if chosen else {}), **main_file().get(section, {})}


def option_list(section: str) -> str:
    """The options of a group, each with the comment at the top of its file."""
    lines = [f"* `{section}={path.stem}`: {option_summary(section, path.stem)}" for path in option_files(section)]
    return "\n".join(lines)


# The generators' own keys


def generator_keys() -> dict[str, list[Key]]:
    """The keys that each generator has in addition to the common ones, by option."""
    common = {field.alias or name for name, field in GeneratorSettings.model_fields.items()}
    found = {}
    for path in option_files("generator"):
        values = option_values("generator", path.stem)
        own = {name: value for name, value in values.items() if name not in common}
        if own:
            found[path.stem] = list(class_keys("generator", own, values["_target_"]))
    return found


def class_keys(prefix: str, values: Mapping[str, Any], target: str) -> Iterator[Key]:
    """The arguments of a class: those that a file gives it, objects among them included, then the others."""
    cls = get_class(target)
    hints, meanings = typing.get_type_hints(cls.__init__), arguments_of(cls)
    for name, value in values.items():
        if isinstance(value, dict) and "_target_" in value:
            inner = {key: each for key, each in value.items() if key != "_target_"}
            yield from class_keys(f"{prefix}.{name}", inner, value["_target_"])
        else:
            annotation, meaning = GROUPING.get(name) or (hints[name], meanings[name])
            yield Key(f"{prefix}.{name}", in_words(annotation), as_typed(value), meaning)
    for name, parameter in inspect.signature(cls).parameters.items():
        if (
            name not in values
            and name not in MEASURED
            and (hints[name] in SIMPLE or typing.get_origin(hints[name]) is Literal)
        ):
            yield Key(f"+{prefix}.{name}", in_words(hints[name]), as_typed(parameter.default), meanings[name])


def arguments_of(cls: type) -> dict[str, str]:
    """The arguments of a class with their meanings, from its docstring and those of its bases."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        _, _, section = inspect.cleandoc(each.__doc__ or "").partition("\nArgs:\n")
        section = re.split(r"\n(?=\S)", section)[0]
        for entry in re.split(r"\n(?=    \S)", "\n" + section)[1:]:
            names, _, text = entry.partition(": ")
            meaning = re.sub(r"(, default [^,;]*)?\.$", "", " ".join(text.split()))
            for name in names.strip().split(", "):
                # For "see Base" in the docstring of a subclass, the meaning is that of its base.
                found[name] = found.get(name, meaning) if meaning.startswith("see ") else meaning
    return found
