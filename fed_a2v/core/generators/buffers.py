"""Buffers whose shapes depend on the data."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def take_shapes(module: nn.Module, names: Iterable[str], state_dict: dict[str, Tensor], prefix: str) -> None:
    """Give the buffers `names` the checkpoint's shapes, before they are loaded. Device and type stay as they are."""
    for name in names:
        if prefix + name in state_dict:
            buffer = module.get_buffer(name)
            setattr(module, name, torch.empty_like(state_dict[prefix + name], dtype=buffer.dtype, device=buffer.device))
