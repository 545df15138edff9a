"""Errors of the federation, and the refusal of invalid messages with one short line that is safe to log."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager

from fed_a2v.errors import UserError

_MAX_REASON = 200  # characters

_short_repr = reprlib.Repr()
_short_repr.maxstring = _short_repr.maxother = 40


class FederationError(UserError, RuntimeError):
    """The federation cannot start or continue; the message gives the reason and the remedy."""


class InvalidReplyError(ValueError):
    """A received message fails a check. `str(error)` is one short line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason[:_MAX_REASON])


@contextmanager
def as_invalid_reply() -> Iterator[None]:
    """Turn unforeseen exceptions inside into an `InvalidReplyError`, because no message may cause a crash."""
    try:
        yield
    except InvalidReplyError:
        raise
    except Exception as error:
        raise InvalidReplyError(f"unreadable: {type(error).__name__}") from error


def show(value: object) -> str:
    """A short one-line repr of an untrusted value."""
    return _short_repr.repr(value)
