"""Errors that a user can fix, as opposed to bugs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class UserError(Exception):
    """An error that the user can fix: the message names the thing, the value and the remedy.

    Commands print the message without a traceback. Every such error of the package derives from this class and from
    the fitting built-in error, so that for example `except ValueError` works.
    """


class ConfigError(UserError, ValueError):
    """A setting is unknown, has the wrong type, is out of range, or contradicts another."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C ended a run that can be resumed.

    Attributes:
        folder: folder of the run, or of the sweep.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(f"stopped: {folder}")
        self.folder = folder


def interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C caused an error; some libraries, such as torch's file writer, raise their own error instead."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


# Includes errors of the operating system: a full disk, a folder that cannot be written.
MENDABLE = (UserError, OSError)
