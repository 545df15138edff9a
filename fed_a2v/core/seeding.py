"""Random number generators seeded by their purpose, not by what ran before.

Every caller names its purpose, e.g. `torch_generator(seed, "site", 3, "round", 7)`. So a run that is killed and
resumed, or uses another engine or order, draws the same numbers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_for(*purpose: int | str) -> int:
    """A seed in [0, 2**63) derived from the words and numbers of `purpose`. Changing a word changes the results."""
    digest = hashlib.sha256(repr(purpose).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def torch_generator(*purpose: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator seeded by `seed_for(*purpose)`."""
    import torch  # here, as it takes a second to import and numpy_generator does not need it

    return torch.Generator(device=device).manual_seed(seed_for(*purpose))


def numpy_generator(*purpose: int | str) -> np.random.Generator:
    """A numpy generator seeded by `seed_for(*purpose)`."""
    return np.random.default_rng(seed_for(*purpose))
