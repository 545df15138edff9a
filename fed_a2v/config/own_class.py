"""Errors in a user's own class: its file and line, to tell them from bugs of this program."""

from __future__ import annotations

import traceback
from pathlib import Path

from fed_a2v.errors import UserError

# The import paths of users' classes that this process has loaded.
_loaded: dict[str, None] = {}
# What pathlib says of ~NAME without such a user.
NO_HOME = "Could not determine home directory."
# Longest message of an exception in one line.
LONGEST = 200


def remember(target: str) -> None:
    """Remember the import path of a class of the user, before it is imported."""
    if target.partition(".")[0] != "fed_a2v":
        _loaded[target] = None


def place_of(error: BaseException) -> str:
    """FILE:LINE of a user's class where an error was raised or passed through; "" if there is none.

    An `OSError` that this program raised below the class has none: a full disk is no fault of the class.
    """
    packages = {target.partition(".")[0] for target in _loaded}
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).stem in packages:
        return f"{error.filename}:{error.lineno}"
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package in packages:
            place = f"{frame.f_code.co_filename}:{line}"
        elif package == "fed_a2v" and isinstance(error, OSError):
            place = ""
    return place


def described(error: BaseException) -> str:
    """An error in one line: its type and message and, if a user's class raised it, the file and line."""
    message = " ".join(str(error).split())[:LONGEST]
    place = place_of(error)
    return f"{type(error).__name__}: {message}" + (f" ({place})" if place else "")


def explained(error: BaseException) -> str | None:
    """The line that a command ends with; None for a bug of this program, which keeps its traceback."""
    if isinstance(error, UserError):
        return str(error)
    if place_of(error):
        return f"your own class: {described(error)}; run.log has the traceback"
    if isinstance(error, RuntimeError) and str(error) == NO_HOME:
        return "a path begins with ~, and the home folder of this user is unknown; write the whole path"
    return str(error) if isinstance(error, OSError) else None


def add_origin(error: BaseException) -> None:
    """Say below the traceback of an error what it is: a bug, or what a user's class has returned."""
    own = f", or of what {', '.join(_loaded)} returned" if _loaded else ""
    error.add_note(f"This is a bug of fed_a2v{own}: please report it with the traceback above")
