"""The option `--config FILE`, a file in the guide's format: taking it from the words, and showing what it became."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.legacy_json import GuideFile
from fed_a2v.config.schema import Settings
from fed_a2v.storage.plain_text import say


def take_guide(words: Sequence[str]) -> tuple[list[str], GuideFile | None]:
    """The words without `--config FILE` or `--config=FILE`, and the file, if one is given.

    Raises:
        ConfigError: no file follows, two are given, or the file cannot be read.
    """
    rest: list[str] = []
    files: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word == "--config":
            files.append(next(remaining, ""))
        elif word.startswith("--config="):
            files.append(word.partition("=")[2])
        else:
            rest.append(word)
    if not files:
        return rest, None
    if len(files) > 1 or not files[0]:
        raise ConfigError("--config takes one file in the guide's format: --config my_experiment.json")
    return rest, GuideFile(Path(files[0]).expanduser())


def compose_with(guide: GuideFile | None, overrides: Sequence[str]) -> Settings:
    """The settings of the file and the overrides, which win; errors name the file's key as well.

    Raises:
        ConfigError: see `compose_settings`.
    """
    if guide is None:
        return compose_settings(overrides)
    try:
        return compose_settings([*guide.overrides(overrides), *overrides])
    except ConfigError as error:
        raise ConfigError("\n".join(_with_origin(line, guide) for line in str(error).splitlines())) from error


def show_guide(guide: GuideFile, console: Console) -> None:
    """A line for each key of the file: what it became, or why it has no meaning here."""
    lines = [f"What {guide.path} became:"]
    for reading in guide.readings:
        became = [f"{key}={json.dumps(value)}" for key, value in reading.became.overrides.items()]
        note = [f"({reading.became.note})"] if reading.became.note else []
        lines.append(f"  {reading.key} = {json.dumps(reading.value)} -> {' '.join(became + note)}")
    say(console, *lines)


def _with_origin(line: str, guide: GuideFile) -> str:
    """The line of an error, with the file's key behind a key of ours that it begins with."""
    ours = line.removeprefix("unknown key ").split(" ")[0].split("=")[0].rstrip(":")
    theirs = guide.key_of(ours)
    return f"{line} ({guide.path}: {theirs})" if theirs else line
