"""The map of the embedding space in a run's folder: `map.npz`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fed_a2v.core.projection import EmbeddingMap
from fed_a2v.storage.files import replacing


def save_map(path: Path, found: EmbeddingMap) -> Path:
    """Write a map as `.npz`; see `EmbeddingMap` for the arrays."""
    with replacing(path) as file:
        np.savez_compressed(file, **vars(found))
    return path


def load_map(path: Path) -> EmbeddingMap:
    """Read what `save_map` wrote.

    Raises:
        OSError, ValueError, KeyError: it is missing or damaged.
    """
    with np.load(path, allow_pickle=False) as arrays:
        return EmbeddingMap(**{name: arrays[name] for name in EmbeddingMap.__dataclass_fields__})
