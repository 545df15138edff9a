"""JSON with comments, the format of the original guide's files; `legacy_json` reads them with it.

The file may contain `//` and `/* */` comments and commas before a closing bracket.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fed_a2v.errors import ConfigError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file with comments; see the module's docstring for what else is allowed.

    Raises:
        ConfigError: no such file, not JSON, not an object, a duplicate key, NaN or infinity.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror or error}; --config=FILE names a file in the guide's format"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    try:
        tree = json.loads(strip_comments(text), object_pairs_hook=_object, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1].strip() if error.lineno <= len(text.splitlines()) else ""
        near = f" near {line!r}" if line else ""
        raise ConfigError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}{near}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f'{path}: contains a {type(tree).__name__}, not an object {{"feda2v": {{...}}}}')
    return tree


def strip_comments(text: str) -> str:
    """JSON without comments and without commas before a closing bracket; every other character keeps its position.

    Raises:
        ValueError: a `/*` has no `*/`.
    """
    string = r'"(?:\\.|[^"\\\n])*"'

    def blank(match: re.Match[str]) -> str:
        token = match[0]
        if token.startswith('"'):
            return token
        if token == "/*":
            line = text.count("\n", 0, match.start()) + 1
            raise ValueError(f"the comment /* in line {line} is not closed; close it with */")
        return re.sub(r"[^\n]", " ", token)

    bare = re.sub(rf"{string}|//[^\n]*|/\*.*?\*/|/\*", blank, text, flags=re.DOTALL)
    return re.sub(rf"{string}|,(?=\s*[\]}}])", blank, bare)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if duplicates := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"duplicate key {duplicates[0]!r} in one object; keep one")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not allowed; set a finite number")
