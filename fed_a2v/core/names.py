"""Names of classes: a class is known by its name everywhere, however each data set spells it."""

from __future__ import annotations

import re


def clean_name(name: str) -> str:
    """A class name as words: lower case, with spaces for underscores and hyphens."""
    return " ".join(re.sub("[_-]", " ", name.casefold()).split())
