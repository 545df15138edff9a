"""One-line error messages about a configuration, from the exceptions of Hydra and pydantic; used by `compose`.

A message names the key, the value, the allowed values and the nearest known key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from pydantic import ValidationError

from fed_a2v.config.tree import known_keys, options, options_with
from fed_a2v.core.names import nearest
from fed_a2v.install import install_hint

# Parts that pydantic adds to the path of a value with several allowed types.
UNION_BRANCH = re.compile(r"^(constrained-\w+|function-.*|literal\[.*|(list|dict|tuple)\[.*|int|float|str|bool)$")

# Old names of keys and options, with the new ones.
RENAMED = {"aggregation.patience": "aggregation.max_skipped_rounds", "targets=anchors": "targets=random"}

# Hydra's options that need an extra of this package.
EXTRAS = {"joblib": "sweeps", "optuna": "sweeps"}
SYNTAX = "write KEY=VALUE, GROUP=OPTION or ~KEY; quote text with spaces, commas or brackets: KEY=\"'a, b'\""


def explain_composition(error: Exception, words: Sequence[str]) -> str:
    """Message for Hydra's error about the overrides `words`."""
    message = str(error).splitlines()[0]
    if message.startswith("Ambiguous value"):
        return f"{message}: -m sweeps over the values, KEY=[A,B] is a list"
    if message.startswith("Config group override must be a string"):
        return _no_option(message, words)
    unknown = re.search(r"Could not (?:override|find|delete)[^'\"]*['\"]([\w./@+-]+)", str(error))
    if unknown:
        group, _, option = unknown[1].rpartition("/")
        choices = options(group) if group else []
        choices = choices or re.findall(r"^\t(\w+)$", str(error), flags=re.MULTILINE)
        if now := RENAMED.get(f"{group}={option}"):
            return f"{group}={option} is now called {now}"
        if group and choices:
            missing = f"; {install_hint(EXTRAS[option])} adds it" if option in EXTRAS else ""
            near = nearest(option, choices)
            hint = f"; did you mean {near}?" if near else ""
            return f"{group}={option}: no such option; choose from {', '.join(choices)}{hint}{missing}"
        if not group:
            return _unknown_key(option, words)
    if wrong := next((word for word in words if _cannot_be_parsed(word)), None):
        return f"{wrong!r} is not an override ({message}); {SYNTAX}"
    return message


def explain_validation(error: ValidationError, section: str = "") -> str:
    """Message for a validation error, one line per key; `section` is a prefix of the keys."""
    lines: dict[tuple[str, str], list[str]] = {}
    for entry in error.errors():
        parts = [str(part) for part in entry["loc"] if not UNION_BRANCH.match(str(part))]
        key = ".".join([section, *parts] if section else parts)
        start, message = _describe(key, entry)
        lines.setdefault((key, start), []).append(message)
    return "\n".join(start + " or ".join(dict.fromkeys(messages)) for (_, start), messages in lines.items())


def _describe(key: str, entry: Any) -> tuple[str, str]:
    """`key = value: ` and the error."""
    message = str(entry["msg"]).removeprefix("Value error, ")
    kind = entry["type"]
    if kind == "extra_forbidden" and key in RENAMED:
        return "", f"{key} is now called {RENAMED[key]}"
    if kind == "extra_forbidden":
        return "", f"unknown key {key}{_did_you_mean(nearest(key, known_keys()))}"
    if kind == "value_error" and isinstance(entry["input"], dict):
        return "", message  # a section's values contradict each other: the message names them
    if kind == "missing":
        return f"{key}: ", message
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(entry["ctx"]["expected"]))
        near = nearest(str(entry["input"]), allowed, cutoff=0.6)
        message += f"; did you mean {near}?" if near else ""
    if kind == "string_type" and isinstance(entry["input"], bool | int | float):
        message += "; quote a word that YAML parses as a number or a boolean"
    return f"{key} = {entry['input']!r}: ", message


def _unknown_key(key: str, words: Sequence[str]) -> str:
    if key in RENAMED:
        return f"{key} is now called {RENAMED[key]}"
    given = next((word for word in words if word.lstrip("+~").startswith(key)), key)
    if others := options_with(key):
        group = key.split(".")[0]
        chosen = next((word for word in reversed(words) if word.startswith(f"{group}=")), f"the chosen {group}")
        verb = "have" if len(others) > 1 else "has"
        return f"unknown key {key} in {given!r}: {chosen} does not have it; {', '.join(others)} {verb} it"
    return f"unknown key {key} in {given!r}{_did_you_mean(nearest(key, known_keys()))}"


def _no_option(message: str, words: Sequence[str]) -> str:
    """Message for a group that is set to a number, a list or null instead of an option."""
    for word in words:
        group = word.lstrip("+").split("=")[0]
        if options(group) and word.partition("=")[2] not in options(group):
            return f"{word}: no such option; choose from {', '.join(options(group))}"
    return message


def _did_you_mean(near: str | None) -> str:
    return f"; did you mean {near}?" if near else "; `fed-a2v config` lists the keys"


def _cannot_be_parsed(word: str) -> bool:
    if word.startswith("="):
        return True
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return True
    return False
