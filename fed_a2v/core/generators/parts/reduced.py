"""What lies between a small model and the embeddings: few dimensions inside, the classes' known moments outside.

A model of some hundred rows cannot learn a thousand dimensions. It learns their main directions
(`ReducedSpace`); what lies outside them is drawn from the class's own spread; and every class's samples are
moved to the mean and deviation that are known of the class (`Calibration`). `CalibratedGenerator` puts the three
together.

Shapes: C classes, D = S x Da data dimensions, k reduced dimensions, V the width of the condition.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fed_a2v.core.generators.base import SAME_CLASS_COSINE, EpochLosses, Generator, as_rows, at_least_one
from fed_a2v.core.generators.parts.buffers import take_shapes
from fed_a2v.core.generators.parts.calibration import Calibration
from fed_a2v.core.generators.parts.moments import ClassMoments
from fed_a2v.core.likelihood import column_scale
from fed_a2v.core.prototype_bank import PrototypeBatch

# Share of the variance outside the main directions that comes from all classes together.
POOLED_SHARE = 0.3


class ReducedSpace(nn.Module):
    """Standardised rows in their k main directions (principal components), and the way back.

    Args:
        most: k is this, or fewer where the rows have fewer directions.
        whiten: give every direction unit variance, instead of one scale for all.
    """

    mean: Tensor  # (D,)
    std: Tensor  # (D,)
    basis: Tensor  # (k, D), orthonormal
    scale: Tensor  # (k,)

    def __init__(self, most: int, whiten: bool) -> None:
        super().__init__()
        at_least_one(reduced_dim=most)
        self.most = most
        self.whiten = whiten
        for name in ("mean", "std", "basis", "scale"):
            self.register_buffer(name, torch.empty(0))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Take mean, deviation and directions from (N, D) rows."""
        from sklearn.decomposition import PCA  # here: it takes seconds to import

        self.mean, self.std = column_scale(x)
        size = max(1, min(self.most, len(x) - 1, x.shape[1]))
        with np.errstate(invalid="ignore"):  # rows that are all the same have no share of variance to explain
            pca = PCA(size, random_state=0).fit(self.standardise(x).cpu().double().numpy())
        self.basis = torch.from_numpy(pca.components_).to(x)
        deviation = torch.from_numpy(pca.explained_variance_).to(x).sqrt()
        floor = 1e-3 * deviation.max().clamp(min=1e-3)
        self.scale = torch.maximum(deviation, floor) if self.whiten else deviation.mean().clamp(min=floor).expand(size)
        self.scale = self.scale.clone()

    def standardise(self, x: Tensor) -> Tensor:
        """(B, D) rows in units of the columns' deviations."""
        return (x - self.mean) / self.std

    def restore(self, x: Tensor) -> Tensor:
        """The inverse of `standardise`."""
        return x * self.std + self.mean

    def reduce(self, x: Tensor) -> Tensor:
        """(B, k) of (B, D) standardised rows."""
        return x @ self.basis.T / self.scale

    def expand(self, z: Tensor) -> Tensor:
        """(B, D) standardised rows of (B, k), without anything outside the main directions."""
        return (z * self.scale) @ self.basis

    def outside(self, x: Tensor) -> Tensor:
        """What `reduce` loses of (B, D) standardised rows."""
        return x - (x @ self.basis.T) @ self.basis

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        take_shapes(self, self._buffers, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class CalibratedGenerator(Generator):
    """A model that draws reduced rows under the class's condition, and is calibrated to the classes' moments.

    Mean, deviations and main directions are taken at the first `fit` and kept with the weights: a later change
    would pull the ground from under them. A condition of no known class is drawn from the model alone,
    without calibration, and with the classes' average noise outside the main directions.

    Args:
        input_dim, visual_dim, sequence_length: see `Generator`.
        reduced_dim: k, at most.
        whiten: see `ReducedSpace`.
        calibrate: move samples to the classes' moments.
    """

    condition_mean: Tensor
    conditions: Tensor

    def __init__(
        self,
        input_dim: int,
        visual_dim: int,
        sequence_length: int,
        reduced_dim: int,
        whiten: bool,
        calibrate: bool,
    ) -> None:
        super().__init__(input_dim, visual_dim, sequence_length)
        self.space = ReducedSpace(min(reduced_dim, input_dim * sequence_length), whiten)
        self.calibrate = calibrate
        self.moments = ClassMoments()
        self.calibration = Calibration()
        self.register_buffer("condition_mean", torch.zeros(visual_dim))
        self.register_buffer("conditions", torch.empty(0, visual_dim))
        self.epoch = 0

    @property
    def reduced_dim(self) -> int:
        """Width of the vectors that the model draws; the last of them may be unused."""
        return self.space.most

    @abstractmethod
    def _train(
        self,
        z: Tensor,
        labels: Tensor,
        names: tuple[str, ...],
        epochs: int,
        noise: float,
        random: torch.Generator,
    ) -> list[EpochLosses]:
        """Train on (N, reduced_dim) rows of the classes `labels`."""

    @abstractmethod
    def _draw(self, directions: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        """(B, reduced_dim) draws under (B, V) conditions, as `directions` gives them; -1 labels no known class."""

    def fit(
        self, rows: PrototypeBatch, conditions: Tensor, epochs: int, noise: float, random: torch.Generator
    ) -> list[EpochLosses]:
        """See `Generator.fit`."""
        self.moments.fit(rows)
        self.conditions = conditions.clone()
        x, labels = self.moments.training_rows(rows, random)
        if self.epoch == 0:
            self.space.fit(x)
            if len(conditions) > 1:
                self.condition_mean.copy_(conditions.mean(dim=0))
        z = self.space.reduce(self.space.standardise(x))
        unused = self.reduced_dim - z.shape[1]
        self.train()
        losses = self._train(F.pad(z, (0, unused)), labels, rows.names, epochs, noise, random)
        self.epoch += epochs
        self.eval()
        if self.calibrate:
            labels = self.calibration.labels(len(conditions), x.device)
            drawn = self._draw_standardised(conditions[labels], labels, random)
            self.calibration.fit(drawn, self.space.mean, self.space.std)
        return losses

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        visual_condition: Tensor,
        device: torch.device | str | None = None,
        random: torch.Generator | None = None,
    ) -> Tensor:
        """See `Generator.sample`. Raises RuntimeError before the first `fit`."""
        if not len(self.conditions):
            raise RuntimeError("the generator has seen no class yet: call fit, or load a checkpoint")
        conditions = as_rows(visual_condition.to(self.conditions), num_samples, self.visual_dim)
        labels = self._labels(conditions)
        rows = self.space.restore(self._draw_standardised(conditions, labels, random or torch.default_generator))
        known = labels >= 0
        if self.calibrate and known.any():
            rows[known] = self.calibration.apply_to(rows[known], labels[known], self.moments)
        return self.moments.cut(rows).view(-1, self.sequence_length, self.input_dim).to(device or rows.device)

    @torch.no_grad()
    def sample_raw(self, conditions: Tensor, random: torch.Generator) -> Tensor:
        """See `Generator.sample_raw`: without calibration, with the classes' noise outside the main directions."""
        rows = self.space.restore(self._draw_standardised(conditions, self._labels(conditions), random))
        return self.moments.cut(rows).view(-1, self.sequence_length, self.input_dim)

    @torch.no_grad()
    def _draw_standardised(self, conditions: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        """(B, D): the model's draws, and noise in the directions that it knows nothing of."""
        z = self._draw(self.directions(conditions), labels, random)[:, : len(self.space.basis)]
        return self.space.expand(z) + outside_noise(self.space, self.moments, labels, random)

    def directions(self, conditions: Tensor) -> Tensor:
        """Centred conditions of unit variance: text vectors crowd together, and their length says nothing."""
        return F.normalize(conditions - self.condition_mean, dim=-1) * math.sqrt(self.visual_dim)

    def _labels(self, conditions: Tensor) -> Tensor:
        """The known class of each (B, V) condition, or -1."""
        # Repeated conditions are looked up once; a lone class was never centred, see `fit`.
        distinct, inverse = conditions.unique(dim=0, return_inverse=True)
        wanted, known = self.directions(distinct), self.directions(self.conditions)
        cosine, label = (wanted @ known.T / self.visual_dim).max(dim=1)
        return torch.where(cosine >= SAME_CLASS_COSINE, label, -1)[inverse]

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        # One row per known class: the number of classes is the checkpoint's.
        take_shapes(self, ["conditions"], state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def outside_noise(space: ReducedSpace, moments: ClassMoments, labels: Tensor, random: torch.Generator) -> Tensor:
    """(B, D) standardised noise outside the main directions, with the spread of each row's class.

    A label of -1 stands for a class of which nothing is known: it gets the classes' average spread.
    """
    known = labels >= 0
    noise = torch.empty(len(labels), len(space.mean), device=space.mean.device)
    if known.any():
        noise[known] = moments.residuals(labels[known], POOLED_SHARE, random)
    if not known.all():
        average = moments.std.square().mean(dim=0).sqrt()
        noise[~known] = moments.pooled_noise(int((~known).sum()), random) * average
    return space.outside(noise / space.std)
