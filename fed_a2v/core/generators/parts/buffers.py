"""Modules with buffers whose shapes depend on the data, such as one row for each known class."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn


class DataSizedModule(nn.Module):
    """A module that gives its buffers the shapes of a checkpoint before it loads them. Device and type stay."""

    # Names of the buffers that may have other shapes; None: all buffers of the module itself.
    data_sized: ClassVar[tuple[str, ...] | None] = None

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        for name in self._buffers if self.data_sized is None else self.data_sized:
            if prefix + name in state_dict:
                buffer, saved = self.get_buffer(name), state_dict[prefix + name]
                setattr(self, name, torch.empty_like(saved, dtype=buffer.dtype, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
