"""Random numbers that depend on what they are for, not on what ran before.

Every draw names its purpose, e.g. `torch_generator(seed, "site", 3, "round", 7)`. So a run that was killed and
resumed, and a run in another engine or order, draw the same numbers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_for(*purpose: int | str) -> int:
    """A seed in [0, 2**63) derived from the words and numbers of `purpose`."""
    digest = hashlib.sha256(repr(purpose).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def torch_generator(*purpose: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator seeded by `seed_for(*purpose)`."""
    import torch  # here: numpy's numbers are drawn without it, and it takes a second to import

    return torch.Generator(device=device).manual_seed(seed_for(*purpose))


def numpy_generator(*purpose: int | str) -> np.random.Generator:
    """A numpy generator seeded by `seed_for(*purpose)`."""
    return np.random.default_rng(seed_for(*purpose))
