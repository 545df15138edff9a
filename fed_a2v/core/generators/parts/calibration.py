"""The map from a model's own samples to the known moments of each class, which `ClassConditionalGenerator` applies.

Shapes: C classes, D = S x Da data dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fed_a2v.core.generators.parts.buffers import DataSizedModule
from fed_a2v.core.generators.parts.moments import ClassMoments

# Samples per class from which a model's own mean and deviation are measured.
CALIBRATION_SAMPLES = 100
# Largest factor by which the deviation of samples is scaled.
LARGEST_CALIBRATION = 3.0


class Calibration(DataSizedModule):
    """The moments of a model's own samples, and the map from these to the classes' moments.

    A network trained on a thousand rows samples too little spread around slightly wrong means. Both are known per class
    and dimension from the prototypes, so they are corrected afterwards; the network contributes the shape of the
    distribution. Only classes with known moments can be calibrated.
    """

    sampled_mean: Tensor  # (C, D), in the units of the data
    sampled_std: Tensor  # (C, D)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sampled_mean", torch.empty(0))
        self.register_buffer("sampled_std", torch.empty(0))

    @staticmethod
    def labels(classes: int, device: torch.device) -> Tensor:
        """The classes of the samples that `fit` expects."""
        return torch.arange(classes, device=device).repeat_interleave(CALIBRATION_SAMPLES)

    @torch.no_grad()
    def fit(self, rows: Tensor, mean: Tensor, std: Tensor) -> None:
        """Measure the moments of the model's own samples.

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
