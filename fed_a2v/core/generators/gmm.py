"""A mixture of Gaussians per class, in closed form except for a short EM."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fed_a2v.core.generators.base import EpochLosses, at_most_one
from fed_a2v.core.generators.parts.class_conditional import TrainingData
from fed_a2v.core.generators.parts.moments import SHRINKAGE, ClassMoments
from fed_a2v.core.generators.parts.reduced import ReducedGenerator
from fed_a2v.core.one_thread import one_thread

Covariance = Literal["spherical", "diag", "tied", "full"]
Matrix = NDArray[np.float64]
# EM's floor under variances, in units of the main directions' mean deviation.
SMALLEST_VARIANCE = 1e-3


class GMMGenerator(ReducedGenerator):
    """Per-class Gaussian mixtures (scikit-learn) in the main directions of the standardised embeddings.

    `tied` and `full` covariances are shrunk to the component's own deviations with the pooled correlation of all
    classes, because a few rows span only a few directions. The noise outside the main directions has the spread of the
    class. The condition only finds the class: the nearest known one is sampled. Each `fit` starts again.

    Args:
        input_dim, visual_dim, sequence_length: see `Generator`.
        components: number of components of each class's mixture; fewer if the class has few rows.
        covariance: `spherical`, `diag`, `tied` (one for all components of a class) or `full`.
        shrinkage: share of a `tied` or `full` covariance that comes from the pooled correlation.
        rows_per_component: rows that each component needs; a class with fewer rows than that is a Gaussian with the
            pooled covariance.
        reduced_dim: main directions that are modelled.
        calibrate: move samples to the classes' moments.
    """

    kind: ClassVar[str] = "gmm"
    draws_unknown: ClassVar[bool] = False
    data_sized: ClassVar[tuple[str, ...]] = (*ReducedGenerator.data_sized, "weights", "means", "factors")
    weights: Tensor  # (C, M)
    means: Tensor  # (C, M, k)
    factors: Tensor  # (C, M, k, k): w @ factor with w ~ N(0, I) has the component's covariance

    def __init__(
        self,
        input_dim: int = 512,
        visual_dim: int = 768,
        sequence_length: int = 1,
        *,
        components: int = 2,
        covariance: Covariance = "full",
        shrinkage: float = SHRINKAGE,
        rows_per_component: int = 4,
        reduced_dim: int = 64,
        calibrate: bool = True,
    ) -> None:
        super().__init__(input_dim, visual_dim, sequence_length, reduced_dim, False, calibrate)
        if covariance not in get_args(Covariance):
            raise ValueError(f"covariance={covariance!r}: choose one of {', '.join(get_args(Covariance))}")
        if components < 1 or rows_per_component < 2:
            raise ValueError(
                f"components={components} must be at least 1, rows_per_component={rows_per_component} at least 2"
            )
        at_most_one(shrinkage=shrinkage)
        self.components = components
        self.covariance: Covariance = covariance
        self.shrinkage = shrinkage
        self.rows_per_component = rows_per_component
        for name in ("weights", "means", "factors"):
            self.register_buffer(name, torch.empty(0))

    def _train_reduced(self, data: TrainingData) -> list[EpochLosses]:
        z, labels, random = data.x, data.labels, data.random
        table, classes = z.double().cpu().numpy(), labels.cpu().numpy()
        centre = np.stack([table[classes == label].mean(0) for label in range(len(data.names))])
        pooled = _covariance(table - centre[classes], len(data.names))
        # Rows drawn from the moments in place of missing ones do not count.
        own_rows = (self.moments.directions.square().sum(dim=2) > 0).sum(dim=1).tolist()
        fitted = []
        for label, number in enumerate(own_rows):
            seed = int(torch.randint(2**31, (1,), generator=random, device=random.device))
            if number < self.rows_per_component:
                fitted.append((np.ones(1), centre[label][None], pooled[None]))
            else:
                components = min(self.components, number // self.rows_per_component)
                fitted.append(self._mixture(table[classes == label], components, pooled, seed))
        self.weights, self.means, factors = (
            torch.stack([_padded(part, self.components) for part in parts]).to(z) for parts in zip(*fitted, strict=True)
        )
        self.factors = torch.linalg.cholesky(factors.double().cpu()).mT.to(z).contiguous()
        return []

    def _mixture(self, rows: Matrix, components: int, pooled: Matrix, seed: int) -> tuple[Matrix, Matrix, Matrix]:
        """Weights (M,), means (M, k) and covariances (M, k, k) of one class."""
        from sklearn.mixture import GaussianMixture  # here: it takes seconds to import

        mixture = GaussianMixture(
            components, covariance_type=self.covariance, reg_covar=SMALLEST_VARIANCE, random_state=seed
        )
        with one_thread():
            mixture.fit(rows)
        width = rows.shape[1]
        if self.covariance == "spherical":
            return mixture.weights_, mixture.means_, mixture.covariances_[:, None, None] * np.eye(width)
        if self.covariance == "diag":
            return mixture.weights_, mixture.means_, mixture.covariances_[:, None, :] * np.eye(width)
        own = np.broadcast_to(mixture.covariances_, (components, width, width))
        deviation = np.sqrt(np.diagonal(own, axis1=1, axis2=2))
        correlation = pooled / np.sqrt(np.outer(np.diag(pooled), np.diag(pooled)))
        target = deviation[:, :, None] * correlation * deviation[:, None, :]
        return mixture.weights_, mixture.means_, (1 - self.shrinkage) * own + self.shrinkage * target

    def _draw_reduced(self, directions: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        del directions
        chosen = torch.multinomial(self.weights[labels].to(random.device), 1, generator=random).flatten()
        index = labels * self.components + chosen.to(labels)
        spread = ClassMoments.draw_directions(self.factors.flatten(0, 1), index, random)
        return self.means.flatten(0, 1)[index] + spread


def _covariance(residuals: Matrix, classes: int) -> Matrix:
    """Pooled covariance of rows minus their class's mean, positive definite."""
    freedom = max(1, len(residuals) - classes)
    own: Matrix = residuals.T @ residuals / freedom
    return own + SMALLEST_VARIANCE * np.eye(len(own))


def _padded(part: Matrix, components: int) -> Tensor:
    """(M', ...) as (M, ...): components that a class lacks have weight 0."""
    missing = components - len(part)
    if part.ndim == 3:
        part = np.concatenate([part, np.broadcast_to(np.eye(part.shape[1]), (missing, *part.shape[1:]))])
        return torch.from_numpy(part)
    return F.pad(torch.from_numpy(part), (0, 0) * (part.ndim - 1) + (0, missing))
