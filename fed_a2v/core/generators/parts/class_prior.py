"""The prior of each class that a trained VAE is sampled with, and the noise that its decoder leaves out.

`vae.py` fits it after training. The decoder's mean at N(0, I) has hardly any spread: the aggregate posterior of a class
is far from N(0, I), and the decoder drops what it cannot explain. Measured on real embeddings, the prior and the noise
restore part of the spread of a class's clips, and calibration (`calibration.py`) the rest.

Shapes: C classes, K rows of a class at most, L latent dimensions, D data dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fed_a2v.core.generators.parts.buffers import DataSizedModule
from fed_a2v.core.generators.parts.draws import normal, normal_like
from fed_a2v.core.generators.parts.moments import ClassMoments

# Share of the variance that comes from the class itself. The rest comes from all classes together (latent), or is
# independent in each dimension (residuals).
CLASS_SHARE = 0.7
# The same for a latent that is N(0, I) within the classes, as in a linear model.
NORMAL_CLASS_SHARE = 0.3


class ClassPrior(DataSizedModule):
    """Per class: a Gaussian over the latent, and the decoder's residuals.

    All are measured on the training rows after each fit, and are buffers, so that a checkpoint has them.

    Args:
        normal: whether the latent is N(0, I) within the classes; default false: measured over all of them.
    """

    latent_mean: Tensor  # (C, L)
    latent_rows: Tensor  # (C, K, L): directions of the class's posterior means
    latent_std: Tensor  # (C, L): mean posterior deviation
    pooled_rows: Tensor  # (N, L): directions of all classes' posterior means
    residual_rows: Tensor  # (C, K, D)
    residual_rms: Tensor  # (C, D)

    def __init__(self, normal: bool = False) -> None:
        super().__init__()
        self.normal = normal
        for name in self.__annotations__:
            self.register_buffer(name, torch.empty(0))

    @torch.no_grad()
    def fit(self, mu: Tensor, logvar: Tensor, residuals: Tensor, labels: Tensor, classes: int) -> None:
        """Measure the classes' latents and residuals.

        Args:
            mu, logvar: (N, L) posterior of each row.
            residuals: (N, D) row minus its reconstruction.
            labels: (N,).
            classes: C.
        """
        counts = torch.bincount(labels, minlength=classes).clamp(min=1)
        self.latent_mean = _class_means(mu, labels, counts)
        self.latent_std = _class_means(logvar.exp(), labels, counts).sqrt()
        offsets = mu - self.latent_mean[labels]
        self.latent_rows = _table(offsets / (counts - 1).clamp(min=1).sqrt()[labels, None], labels, classes)
        self.pooled_rows = offsets / max(1, len(labels) - classes) ** 0.5
        self.residual_rows = _table(residuals / counts.sqrt()[labels, None], labels, classes)
        self.residual_rms = _class_means(residuals.square(), labels, counts).sqrt()

    def draw(self, decode: Callable[[Tensor, Tensor], Tensor], labels: Tensor, random: torch.Generator) -> Tensor:
        """(B, D) samples of the classes `labels`, before calibration; `decode` maps latents and labels to rows."""
        own = ClassMoments.draw_directions(self.latent_rows, labels, random)
        own = own + self.latent_std[labels] * normal_like(own, random)
        if self.normal:
            share, common = NORMAL_CLASS_SHARE, normal_like(own, random)
        else:
            share, common = CLASS_SHARE, normal((len(labels), len(self.pooled_rows)), own, random) @ self.pooled_rows
            common = common + self.latent_std.square().mean(dim=0).sqrt() * normal_like(own, random)
        latent = self.latent_mean[labels] + share**0.5 * own + (1 - share) ** 0.5 * common
        noise = CLASS_SHARE**0.5 * ClassMoments.draw_directions(self.residual_rows, labels, random)
        independent = normal_like(noise, random) * self.residual_rms[labels]
        rows: Tensor = decode(latent, labels) + noise + (1 - CLASS_SHARE) ** 0.5 * independent
        return rows

    def residual_variance(self) -> Tensor:
        """(): mean square of the residuals over classes and dimensions; 1 before the first fit."""
        return self.residual_rms.square().mean() if len(self.residual_rms) else self.residual_rms.new_ones(())

    def pooled_residuals(self, number: int, random: torch.Generator) -> Tensor:
        """(number, D) residual noise for an unknown class."""
        rms = self.residual_rms.square().mean(dim=0).sqrt()
        return normal((number, len(rms)), rms, random) * rms


def _class_means(values: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    sums = values.new_zeros(len(counts), values.shape[1]).index_add_(0, labels, values)
    return sums / counts.unsqueeze(-1)


def _table(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(N, X) rows as (C, K, X), padded with zero rows."""
    groups = [values[labels == label] for label in range(classes)]
    return nn.utils.rnn.pad_sequence(groups, batch_first=True)
