"""What is wrong with a configuration, in one line each: the key, the value, what is allowed, the nearest key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from pydantic import ValidationError

from fed_a2v.config.tree import known_keys, options, options_with
from fed_a2v.core.names import nearest

# What pydantic adds to the path of a value that may have one of several types.
UNION_BRANCH = re.compile(r"^(constrained-\w+|function-.*|literal\[.*|(list|dict|tuple)\[.*|int|float|str|bool)$")

# Keys and options that have another name now.
RENAMED = {"aggregation.patience": "aggregation.max_skipped_rounds", "targets=anchors": "targets=random"}

# Hydra's options that come with an extra of this package.
EXTRAS = {"joblib": "sweeps", "optuna": "sweeps"}
HOW_TO_WRITE = "write KEY=VALUE, GROUP=OPTION or ~KEY, and text with blanks, commas or brackets as KEY=\"'a, b'\""


def explain_composition(error: Exception, words: Sequence[str]) -> str:
    """Hydra's complaint about the overrides `words`."""
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
            return f"{group}={option} is called {now} now"
        if group and choices:
            missing = f"; pip install 'fed-a2v[{EXTRAS[option]}]' brings it" if option in EXTRAS else ""
            return f"{group}={option}: no such option; choose from {_listed(option, choices)}{missing}"
        if not group:
            return _unknown_key(option, words)
    if wrong := next((word for word in words if _cannot_be_parsed(word)), None):
        return f"{wrong!r} is no override ({message}); {HOW_TO_WRITE}"
    return message


def explain_validation(error: ValidationError, section: str = "") -> str:
    """All that is wrong with the values, a line for each key; `section` goes before the keys."""
    lines: dict[tuple[str, str], list[str]] = {}
    for entry in error.errors():
        parts = [str(part) for part in entry["loc"] if not UNION_BRANCH.match(str(part))]
        key = ".".join([section, *parts] if section else parts)
        start, message = _describe(key, entry)
        lines.setdefault((key, start), []).append(message)
    return "\n".join(start + " or ".join(dict.fromkeys(messages)) for (_, start), messages in lines.items())


def _describe(key: str, entry: Any) -> tuple[str, str]:
    """`key = value: ` and what is wrong with it."""
    message = str(entry["msg"]).removeprefix("Value error, ")
    kind = entry["type"]
    if kind == "extra_forbidden" and key in RENAMED:
        return "", f"{key} is called {RENAMED[key]} now"
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
        message += "; a word that YAML takes for a number or a truth value stands in quotes"
    return f"{key} = {entry['input']!r}: ", message


def _unknown_key(key: str, words: Sequence[str]) -> str:
    if key in RENAMED:
        return f"{key} is called {RENAMED[key]} now"
    given = next((word for word in words if word.lstrip("+~").startswith(key)), key)
    if having := options_with(key):
        group = key.split(".")[0]
        chosen = next((word for word in reversed(words) if word.startswith(f"{group}=")), f"the {group} chosen")
        return f"unknown key {key} in {given!r}: {chosen} has none; {', '.join(having)} {_have(having)}"
    return f"unknown key {key} in {given!r}{_did_you_mean(nearest(key, known_keys()))}"


def _no_option(message: str, words: Sequence[str]) -> str:
    """A group that is given a number, a list or null for an option."""
    for word in words:
        group = word.lstrip("+").split("=")[0]
        if options(group) and word.partition("=")[2] not in options(group):
            return f"{word}: no such option; choose from {', '.join(options(group))}"
    return message


def _have(having: Sequence[str]) -> str:
    return "have it" if len(having) > 1 else "has it"


def _did_you_mean(near: str | None) -> str:
    return f"; did you mean {near}?" if near else "; `fed-a2v config` lists the keys"


def _listed(option: str, choices: Sequence[str]) -> str:
    near = nearest(option, choices)
    return ", ".join(choices) + (f"; did you mean {near}?" if near else "")


def _cannot_be_parsed(word: str) -> bool:
    if word.startswith("="):
        return True
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return True
    return False
