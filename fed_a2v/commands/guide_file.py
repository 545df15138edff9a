"""The option `--config FILE`: reads the file in the guide's format and prints the overrides that it gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.legacy_json import GuideFile
from fed_a2v.config.schema import Settings
from fed_a2v.storage.plain_text import say


def read_guide(files: Sequence[str]) -> GuideFile | None:
    """The file of `--config`; None without one.

    Args:
        files: the values of `--config`.

    Raises:
        ConfigError: the file is missing or unreadable, or there are two.
    """
    if len(files) > 1 or "" in files:
        raise ConfigError("--config takes one file in the guide's format: --config my_experiment.json")
    return GuideFile(Path(files[0]).expanduser()) if files else None


def compose_with(guide: GuideFile | None, overrides: Sequence[str]) -> Settings:
    """Settings of the file and the overrides, which have precedence; errors also name the file's key.

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
    """Print a line for each key of the file: its overrides, or why it is ignored."""
    lines = [f"Overrides from {guide.path}:"]
    for parsed in guide.parsed_keys:
        overrides = [f"{key}={json.dumps(value)}" for key, value in parsed.overrides.items()]
        note = [f"({parsed.note})"] if parsed.note else []
        lines.append(f"  {parsed.key} = {json.dumps(parsed.value)} -> {' '.join(overrides + note)}")
    say(console, *lines)


def _with_origin(line: str, guide: GuideFile) -> str:
    """An error line that begins with one of our keys, followed by the file's key that sets it."""
    ours = line.removeprefix("unknown key ").split(" ")[0].split("=")[0].rstrip(":")
    theirs = guide.key_of(ours)
    return f"{line} ({guide.path}: {theirs})" if theirs else line
