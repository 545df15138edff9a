"""Log densities, used to measure how likely held-out rows are under a generator (`network`, the VAEs).

A density depends on the units, and is unbounded on a column that never varies. So all densities that are compared use
the same coordinates, those of the training rows, and Gaussian noise of `NOISE` times each column's deviation is added
to the rows (Theis et al. 2016), which bounds a density at 1.38 nats per dimension. Results are in nats per dimension of
the standardised rows; standardising shifts all of them by the same amount.

Shapes: B rows of D columns; R factors; K draws of the latent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NOISE = 0.1
"""Standard deviation of the noise in standardised units; the default `augmentation_noise` of generators."""
DRAWS = 64
"""Draws of the latent for one importance-weighted bound."""
LOG_2_PI = math.log(2 * math.pi)


def column_scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of (B, D) rows, for standardising.

    The deviations are at least 0.3 times their root mean square, so that a column that is active in a few rows is not
    amplified and a constant one stays finite.
    """
    std = rows.std(dim=0, correction=0)
    return rows.mean(dim=0), torch.maximum(std, (0.3 * std.square().mean().sqrt()).clamp(min=1e-6))


def gaussian_log_density(offsets: Tensor, factors: Tensor, variances: Tensor) -> Tensor:
    """(B,) log densities of a Gaussian with covariance factors' factors + diag(variances), in double precision.

    Uses the matrix inversion lemma if there are fewer factors than dimensions.

    Args:
        offsets: (B, D) differences from the mean.
        factors: (R, D).
        variances: (D,), positive.
    """
    deviations = variances.double().sqrt()
    x, factors = offsets.double() / deviations, factors.double() / deviations
    small = len(factors) < factors.shape[1]
    gram = factors @ factors.T if small else factors.T @ factors
    root = torch.linalg.cholesky(gram + torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    solved = torch.linalg.solve_triangular(root, (x @ factors.T if small else x).T, upper=False).square().sum(dim=0)
    distance = x.square().sum(dim=1) - solved if small else solved
    volume = 2 * (deviations.log().sum() + root.diagonal().log().sum())
    density: Tensor = -0.5 * (distance + volume + offsets.shape[1] * LOG_2_PI)
    return density


def normal_log_density(offsets: Tensor, log_variance: Tensor) -> Tensor:
    """Elementwise log densities of normal distributions at `offsets` from their means."""
    return -0.5 * (offsets.square() * (-log_variance).exp() + log_variance + LOG_2_PI)


def student_log_density(offsets: Tensor, log_variance: Tensor, freedom: int) -> Tensor:
    """Elementwise log densities of Student's t with `freedom` degrees of freedom; `log_variance` is 2 ln(scale)."""
    height = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    tail = torch.log1p(offsets.square() * (-log_variance).exp() / freedom)
    return height - 0.5 * log_variance - (freedom + 1) / 2 * tail


def importance_bound(log_weights: Tensor) -> Tensor:
    """(B,) lower bounds on log densities, from (K, B) `log p(x, z) - log q(z | x)` at draws z from q.

    The logarithm of the mean weight (Burda et al. 2016), where the ELBO is the mean of the logarithms. It approaches
    the log density from below as K grows.
    """
    return log_weights.logsumexp(dim=0) - math.log(len(log_weights))
