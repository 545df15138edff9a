"""Random numbers for the generators: drawn on the device of their source, then moved to that of the tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(shape: tuple[int, ...], like: Tensor, random: torch.Generator) -> Tensor:
    """Standard normal numbers with the type and the device of `like`."""
    return torch.randn(shape, generator=random, device=random.device, dtype=like.dtype).to(like.device)


def normal_like(like: Tensor, random: torch.Generator) -> Tensor:
    """Standard normal numbers in the shape of `like`."""
    return normal(like.shape, like, random)


def uniform(shape: tuple[int, ...], like: Tensor, random: torch.Generator) -> Tensor:
    """Numbers between 0 and 1 with the type and the device of `like`."""
    return torch.rand(shape, generator=random, device=random.device).to(like)
