"""The map of the embedding space in a run's folder: `map.npz`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fed_a2v.core.projection import EmbeddingMap
from fed_a2v.storage.files import replacing
from fed_a2v.storage.npz import read_arrays

# Thousands of points of 32 numbers and a site's name; a compressed file could stand for more than memory holds.
LARGEST_MAP = 64_000_000


def save_map(path: Path, found: EmbeddingMap) -> Path:
    """Write a map as `.npz`; see `EmbeddingMap` for the arrays."""
    with replacing(path) as file:
        np.savez_compressed(file, **vars(found))
    return path


def load_map(path: Path) -> EmbeddingMap:
    """Read what `save_map` wrote.

    Raises:
        ArrayFileError: it is missing or damaged, or larger than any map.
    """
    return EmbeddingMap(**read_arrays(path, tuple(EmbeddingMap.__dataclass_fields__), most=LARGEST_MAP))
