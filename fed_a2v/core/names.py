"""Names: a class is known by its own everywhere, however each data set spells it; and names in messages."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

# Scripts whose letters look alike; of these a name has letters of one at most.
LOOK_ALIKE = frozenset({"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC"})


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


def plain_name(text: str) -> str:
    """A name that people and machines read alike: in Unicode's form NFKC, without spaces around it.

    Raises:
        ValueError: it is empty, has characters that cannot be seen, or mixes letters of scripts that look alike, such
            as the Cyrillic and the Latin "a" (Unicode Technical Standard 39, "mixed scripts").
    """
    name = unicodedata.normalize("NFKC", text).strip()
    if not name:
        raise ValueError("a name needs a letter or a digit")
    if hidden := next((sign for sign in name if not sign.isprintable()), None):
        raise ValueError(f"a name has no invisible character, such as U+{ord(hidden):04X}")
    scripts = {unicodedata.name(sign, "").partition(" ")[0] for sign in name if sign.isalpha()} & LOOK_ALIKE
    if len(scripts) > 1:
        raise ValueError(
            f"a name has letters of one alphabet, not of {' and '.join(script.title() for script in sorted(scripts))}"
        )
    return name
