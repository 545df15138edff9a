"""The losses of an epoch of one VAE (`vae.py`), or of several that are trained together (`stacked.py`)."""

from __future__ import annotations

import torch
from torch import Tensor

from fed_a2v.core.generators.base import EpochLosses
from fed_a2v.core.losses import VAELossParts, loss_value


class EpochRecord:
    """Sums of the loss parts by class. They stay on the device until training ends: reading each would wait for it."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        self.total = torch.zeros((), device=device)
        self.number = 0
        self.sums = torch.zeros(len(names), 3, device=device)
        self.rows = torch.zeros(len(names), device=device)

    def add(self, loss: Tensor | VAELossParts, labels: Tensor) -> None:
        """Add the loss of B rows, or the losses of G generators with B rows each."""
        self.total += loss_value(loss).detach().sum() * labels.shape[-1]
        self.number += labels.numel()
        if isinstance(loss, VAELossParts):
            self.sums.index_add_(0, labels.flatten(), torch.stack([part.flatten() for part in loss[1:]], dim=1))
            self.rows.index_add_(0, labels.flatten(), torch.ones_like(loss.kl).flatten())

    def losses(self) -> EpochLosses:
        """Means over the rows of the epoch."""
        total = self.total.item() / self.number
        if not self.rows.any():
            return EpochLosses(total, {}, {})
        parts = ("reconstruction", "kl", "similarity")
        overall = (self.sums.sum(dim=0) / self.rows.sum()).tolist()
        means = (self.sums / self.rows.clamp(min=1).unsqueeze(-1)).tolist()
        per_class = {name: dict(zip(parts, row, strict=True)) for name, row in zip(self.names, means, strict=True)}
        return EpochLosses(total, dict(zip(parts, overall, strict=True)), per_class)
