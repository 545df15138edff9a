"""Names of classes and sites: one normal form for all spellings, checks of names, and names in messages."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

# Scripts with letters that look alike; a name may have letters of at most one of them.
LOOK_ALIKE = frozenset({"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC"})


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS stores file names with accents apart from their letters."""
    return unicodedata.normalize("NFC", name)


@lru_cache(maxsize=4096)
def clean_name(name: str) -> str:
    """A class name as words: lower case, composed, with spaces for underscores and hyphens."""
    return " ".join(re.sub("[_-]", " ", composed(composed(name).casefold())).split())


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known word that is most similar to `word`, for suggestions in errors; None if none is similar enough.

    Upper and lower case do not count.
    """
    by_folded = {name.casefold(): name for name in known}
    matches = difflib.get_close_matches(word.casefold(), list(by_folded), n=1, cutoff=cutoff)
    return by_folded[matches[0]] if matches else None


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first `most` names, comma-separated, and the number of the others."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def plain_name(text: str) -> str:
    """A name in Unicode's form NFKC without surrounding spaces, so that names that look equal are equal.

    Raises:
        ValueError: it is empty, has invisible characters, or mixes letters of scripts that look alike, such as the
            Cyrillic and the Latin "a" (Unicode Technical Standard 39, "mixed scripts").
    """
    name = unicodedata.normalize("NFKC", text).strip()
    if not name:
        raise ValueError("a name needs a letter or a digit")
    if invisible := next((character for character in name if not character.isprintable()), None):
        raise ValueError(f"a name must not have invisible characters, such as U+{ord(invisible):04X}")
    scripts = {unicodedata.name(letter, "").partition(" ")[0] for letter in name if letter.isalpha()} & LOOK_ALIKE
    if len(scripts) > 1:
        raise ValueError(
            f"a name must not mix alphabets, here {' and '.join(script.title() for script in sorted(scripts))}"
        )
    return name
