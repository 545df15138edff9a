"""Names of classes: a class is known by its name everywhere, however each data set spells it."""

from __future__ import annotations

import re
from collections.abc import Sequence


def clean_name(name: str) -> str:
    """A class name as words: lower case, with spaces for underscores and hyphens."""
    return " ".join(re.sub("[_-]", " ", name.casefold()).split())


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first names of many, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
