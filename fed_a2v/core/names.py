"""Names: a class is known by its own everywhere, however each data set spells it; and names in messages."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): a Mac's files have their accents apart from the letters."""
    return unicodedata.normalize("NFC", name)


def clean_name(name: str) -> str:
    """A class name as words: lower case, composed, with spaces for underscores and hyphens."""
    return " ".join(re.sub("[_-]", " ", composed(composed(name).casefold())).split())


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known word that is most like `word`; None where none is."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return near[0] if near else None


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first names of many, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
