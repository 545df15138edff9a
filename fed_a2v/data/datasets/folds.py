"""Folds for data sets that have no official ones, and the order in which clips are drawn.

What is drawn for a clip depends on the seed and its name alone, not on the clips beside it: a data set that
grows keeps nearly all of its folds.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from fed_a2v.core.names import composed

FOLDS = 5


def drawn(seed: int, name: str) -> bytes:
    """Eight random bytes that depend on the seed and the name alone: sorting by them shuffles."""
    return hashlib.blake2b(composed(name).encode(), digest_size=8, key=str(seed).encode()[:64]).digest()


def assign_folds(categories: Sequence[str], sources: Sequence[str], folds: int, seed: int) -> list[int]:
    """Deal N clips to the folds 1, 2, ..., so that each has a like share of every class.

    Clips of one source stay together; where it has clips of several classes, the first class by name decides.

    Args:
        categories: the N classes.
        sources: the N recordings or videos that the clips were cut from.
        folds: how many.
        seed: of the drawing.

    Returns:
        The N folds.
    """
    first: dict[str, str] = {}
    for category, source in zip(categories, sources, strict=True):
        first[source] = min(category, first.get(source, category))
    sizes = Counter(sources)
    members: dict[str, list[str]] = {}
    for source, category in first.items():
        members.setdefault(category, []).append(source)
    fold_of: dict[str, int] = {}
    for names in members.values():
        total, before = sum(sizes[name] for name in names), 0
        for name in sorted(names, key=lambda name: (drawn(seed, name), name)):
            # The middle of the source's clips in the row of all decides: three clips are enough for both ends.
            fold_of[name] = int((before + sizes[name] / 2) / total * folds) + 1
            before += sizes[name]
    return [fold_of[source] for source in sources]
