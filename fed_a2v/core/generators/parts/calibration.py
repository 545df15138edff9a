"""The map from a model's own samples to the known moments of each class.

Shapes: C classes, D = S x Da data dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fed_a2v.core.generators.parts.buffers import take_shapes
from fed_a2v.core.generators.parts.moments import ClassMoments

# Samples per class from which a model's own mean and deviation are measured.
CALIBRATION_SAMPLES = 100
LARGEST_CALIBRATION = 3.0


class Calibration(nn.Module):
    """What a model's own samples look like, and the map from there to the classes' moments.

    A network trained on a thousand rows draws too little spread around means that are a little off. Both are
    known per class and dimension from the prototypes, so they are put right after the fact; the network is left
    with the shape of the distribution. Only classes with known moments can be calibrated.
    """

    sampled_mean: Tensor  # (C, D), in the units of the data
    sampled_std: Tensor  # (C, D)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sampled_mean", torch.empty(0))
        self.register_buffer("sampled_std", torch.empty(0))

    @staticmethod
    def labels(classes: int, device: torch.device) -> Tensor:
        """The classes of the samples that `fit` wants."""
        return torch.arange(classes, device=device).repeat_interleave(CALIBRATION_SAMPLES)

    @torch.no_grad()
    def fit(self, rows: Tensor, mean: Tensor, std: Tensor) -> None:
        """Measure the model's own moments.

        Args:
            rows: (C * CALIBRATION_SAMPLES, D) standardised samples of the classes that `labels` gives.
            mean, std: (D,) of the standardisation: the units of the data are restored by `rows * std + mean`.
        """
        by_class = rows.unflatten(0, (-1, CALIBRATION_SAMPLES))
        self.sampled_mean = by_class.mean(dim=1) * std + mean
        self.sampled_std = by_class.std(dim=1) * std

    def apply_to(self, rows: Tensor, labels: Tensor, moments: ClassMoments) -> Tensor:
        """(B, D) samples of the classes `labels`, in the units of the data, with the classes' `drawn` moments."""
        scale = (moments.drawn_std / self.sampled_std.clamp(min=1e-12)).clamp(max=LARGEST_CALIBRATION)
        return moments.drawn_mean[labels] + scale[labels] * (rows - self.sampled_mean[labels])

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        take_shapes(self, self._buffers, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)
