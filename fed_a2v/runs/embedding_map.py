"""Reader and writer of `map.npz`, the map of the embedding space in a run's folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fed_a2v.core.projection import EmbeddingMap
from fed_a2v.storage.files import replacing
from fed_a2v.storage.npz import read_arrays

# Bytes; enough for thousands of points with 32 numbers and a site's name. A compressed file could exceed the memory.
LARGEST_MAP = 64_000_000


def save_map(path: Path, content: EmbeddingMap) -> Path:
    """Write a map as `.npz`; see `EmbeddingMap` for the arrays."""
    with replacing(path) as file:
        np.savez_compressed(file, **vars(content))
    return path


def load_map(path: Path) -> EmbeddingMap:
    """Read a map written by `save_map`.

    Raises:
        ArrayFileError: the file is missing, damaged or too large.
    """
    return EmbeddingMap(**read_arrays(path, tuple(EmbeddingMap.__dataclass_fields__), most=LARGEST_MAP))
