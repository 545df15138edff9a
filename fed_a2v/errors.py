"""Errors that a user can mend, told from faults of the program."""

from __future__ import annotations


class UserError(Exception):
    """A fault that the user can mend: the message names the thing, the value and the remedy.

    Commands end with the message alone, without a traceback. Every such error of the package derives from this
    class and, so that `except ValueError` goes on to work, from the built-in error that it is.
    """


def interrupted(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C, or what a library made of it on its way: torch's files end in one of their own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


# Beside our own errors, the operating system's: a full disk, a folder that cannot be written.
MENDABLE = (UserError, OSError)
