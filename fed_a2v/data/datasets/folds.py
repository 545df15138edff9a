"""Folds for data sets without official ones, and the seeded order in which clips are sampled.

The order of a clip depends only on the seed and its name, not on other clips: a data set that grows keeps nearly all
of its folds.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from fed_a2v.core.names import composed

FOLDS = 5


def shuffle_key(seed: int, name: str) -> bytes:
    """Eight pseudorandom bytes that depend on the seed and the name only; sorting by them shuffles."""
    return hashlib.blake2b(composed(name).encode(), digest_size=8, key=str(seed).encode()[:64]).digest()


def assign_folds(categories: Sequence[str], sources: Sequence[str], folds: int, seed: int) -> list[int]:
    """Assign N clips to the folds 1, 2, ..., so that each fold has a similar share of every class.

    Clips of one source are in the same fold; a source with clips of several classes counts for the first by name.

    Args:
        categories: N classes of the clips.
        sources: N recordings or videos that the clips were cut from.
        folds: number of folds.
        seed: seed of the draw.

    Returns:
        N folds.
    """
    first: dict[str, str] = {}
    for category, source in zip(categories, sources, strict=True):
        first[source] = min(category, first.get(source, category))
    sizes = Counter(sources)
    sources_of: dict[str, list[str]] = {}
    for source, category in first.items():
        sources_of.setdefault(category, []).append(source)
    fold_of: dict[str, int] = {}
    for names in sources_of.values():
        total, before = sum(sizes[name] for name in names), 0
        for name in sorted(names, key=lambda name: (shuffle_key(seed, name), name)):
            # The fold is that of the middle of the source's clips in the shuffled sequence, so that even a class of
            # three clips has clips in the first and the last fold.
            fold_of[name] = int((before + sizes[name] / 2) / total * folds) + 1
            before += sizes[name]
    return [fold_of[source] for source in sources]
