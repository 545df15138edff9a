"""Checks of an error: its type, and the keys, values and files that it names, but not its wording."""

from contextlib import contextmanager

import pytest


@contextmanager
def refused(kind, *named):
    """The block raises `kind`, whose message names each of `named`: keys, values, files."""
    with pytest.raises(kind) as caught:
        yield caught
    message = str(caught.value)
    missing = [str(name) for name in named if str(name) not in message]
    assert not missing, f"{missing} not named in: {message}"
