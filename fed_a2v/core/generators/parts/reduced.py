"""Generators of a few main directions of the embeddings; `flow.py`, `gan.py` and `gmm.py` derive from them.

A model of a few hundred rows cannot learn a thousand dimensions. It learns their main directions (`ReducedSpace`), and
the rest of a sample is noise with the spread of its class.

Shapes: C classes, D = S x Da data dimensions, k reduced dimensions, V the width of the condition.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fed_a2v.core.generators.base import EpochLosses, at_least_one
from fed_a2v.core.generators.parts.buffers import DataSizedModule
from fed_a2v.core.generators.parts.class_conditional import ClassConditionalGenerator, TrainingData
from fed_a2v.core.generators.parts.moments import SHRINKAGE, ClassMoments
from fed_a2v.core.likelihood import column_scale
from fed_a2v.core.one_thread import one_thread


class ReducedSpace(DataSizedModule):
    """Standardised rows in their k main directions (principal components), and the way back.

    Args:
        most: k is this, or fewer if the rows have fewer directions.
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
        """Measure mean, deviation and directions of (N, D) rows."""
        from sklearn.decomposition import PCA  # here: it takes seconds to import

        self.mean, self.std = column_scale(x)
        size = max(1, min(self.most, len(x) - 1, x.shape[1]))
        with one_thread(), np.errstate(invalid="ignore"):  # rows that are all the same have no variance to explain
            pca = PCA(size, random_state=0).fit(self.standardise(x).cpu().double().numpy())
        self.basis = torch.from_numpy(pca.components_).to(x)
        deviation = torch.from_numpy(pca.explained_variance_).to(x).sqrt()
        floor = 1e-3 * deviation.max().clamp(min=1e-3)
        self.scale = torch.maximum(deviation, floor) if self.whiten else deviation.mean().clamp(min=floor).expand(size)
        self.scale = self.scale.clone()

    def standardise(self, x: Tensor) -> Tensor:
        """(B, D) rows in units of the columns' deviations."""
        return (x - self.mean) / self.std

    def reduce(self, x: Tensor) -> Tensor:
        """(B, k) of (B, D) standardised rows."""
        return x @ self.basis.T / self.scale

    def expand(self, z: Tensor) -> Tensor:
        """(B, D) standardised rows of (B, k), with nothing outside the main directions."""
        return (z * self.scale) @ self.basis

    def outside(self, x: Tensor) -> Tensor:
        """The part of (B, D) standardised rows that `reduce` loses."""
        return x - (x @ self.basis.T) @ self.basis


class ReducedGenerator(ClassConditionalGenerator):
    """A model that draws reduced rows under the class's condition.

    Under a condition of no known class, samples have the classes' average noise outside the main directions.

    Args:
        input_dim, visual_dim, sequence_length, calibrate, batch_size, ema: see `ClassConditionalGenerator`.
        reduced_dim: k, at most.
        whiten: see `ReducedSpace`.
    """

    def __init__(
        self,
        input_dim: int,
        visual_dim: int,
        sequence_length: int,
        reduced_dim: int,
        whiten: bool,
        calibrate: bool,
        batch_size: int = 0,
        ema: float = 0.0,
    ) -> None:
        super().__init__(input_dim, visual_dim, sequence_length, calibrate, batch_size, ema)
        self.space = ReducedSpace(min(reduced_dim, input_dim * sequence_length), whiten)

    @property
    def reduced_dim(self) -> int:
        """Width of the vectors that the model draws; the last of them may be unused."""
        return self.space.most

    @property
    def scale(self) -> tuple[Tensor, Tensor]:
        """See `ClassConditionalGenerator.scale`."""
        return self.space.mean, self.space.std

    def _measure_scale(self, x: Tensor) -> None:
        self.space.fit(x)

    @abstractmethod
    def _train_reduced(self, data: TrainingData) -> list[EpochLosses]:
        """Train on data whose `x` is (N, reduced_dim)."""

    @abstractmethod
    def _draw_reduced(self, directions: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        """(B, reduced_dim) draws under (B, V) conditions, as `directions` gives them; -1 labels no known class."""

    def _train(self, data: TrainingData) -> list[EpochLosses]:
        z = self.space.reduce(data.x)
        return self._train_reduced(data._replace(x=F.pad(z, (0, self.reduced_dim - z.shape[1]))))

    @torch.no_grad()
    def _draw(self, conditions: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        z = self._draw_reduced(self.directions(conditions), labels, random)[:, : len(self.space.basis)]
        return self.space.expand(z) + outside_noise(self.space, self.moments, labels, random)

    @torch.no_grad()
    def sample_raw(self, conditions: Tensor, random: torch.Generator) -> Tensor:
        """See `Generator.sample_raw`: without calibration, with the classes' noise outside the main directions."""
        return self._embeddings(self._restore(self._draw(conditions, self._labels(conditions), random)))


def outside_noise(space: ReducedSpace, moments: ClassMoments, labels: Tensor, random: torch.Generator) -> Tensor:
    """(B, D) standardised noise outside the main directions, with the spread of each row's class.

    A label of -1 stands for an unknown class, which gets the classes' average spread.
    """
    known = labels >= 0
    noise = torch.empty(len(labels), len(space.mean), device=space.mean.device)
    if known.any():
        noise[known] = moments.residuals(labels[known], SHRINKAGE, random)
    if not known.all():
        average = moments.std.square().mean(dim=0).sqrt()
        noise[~known] = moments.pooled_noise(int((~known).sum()), random) * average
    return space.outside(noise / space.std)
