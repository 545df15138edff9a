"""How a message from the other side is refused: with one short line that is safe to log, whatever was sent."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager

_MAX_REASON = 200  # characters

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 40


class InvalidReplyError(ValueError):
    """A message from the other side is not what it should be. `str(error)` is one short line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason[:_MAX_REASON])


@contextmanager
def only_bad_reply() -> Iterator[None]:
    """The last resort: whatever the checks inside did not foresee is a bad reply, too, and no crash."""
    try:
        yield
    except InvalidReplyError:
        raise
    except Exception as error:
        raise InvalidReplyError(f"unreadable: {type(error).__name__}") from error


def show(value: object) -> str:
    """A short one-line repr of a value that a stranger wrote."""
    return _brief.repr(value)
