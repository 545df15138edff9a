"""What a model's density says about rows that it has not seen.

A density depends on the units, and on a column that never varies it can be made as large as one likes. So all
densities that are compared are taken in the same coordinates, those of the rows that the models learn from, and each
is that of the rows with Gaussian noise on them (Theis et al. 2016), of `NOISE` times each column's deviation: no
density can exceed 1.38 nats a dimension. They are given in nats a dimension of the standardised rows, which only
shifts all of them by the same amount.

Shapes: B rows of D columns; R factors; K draws of the latent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NOISE = 0.1
"""Deviation of the noise, in standardised units; the same as the generators' default `augmentation_noise`."""
DRAWS = 64
"""Draws of the latent behind a bound."""
LOG_2_PI = math.log(2 * math.pi)


def column_scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (D,) of (B, D) rows, for standardising.

    A column that is active in a few rows only must not be blown up, and a dead one stays finite: no deviation is less
    than 0.3 times the root mean square of all.
    """
    std = rows.std(dim=0, correction=0)
    return rows.mean(dim=0), torch.maximum(std, (0.3 * std.square().mean().sqrt()).clamp(min=1e-6))


def gaussian_log_density(offsets: Tensor, factors: Tensor, variances: Tensor) -> Tensor:
    """(B,) log densities of (B, D) offsets from the mean of a Gaussian with covariance factors' factors + variances.

    By the matrix inversion lemma where there are fewer factors than dimensions; in double precision.

    Args:
        offsets: (B, D).
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
    """Log densities, entry by entry, of offsets from the mean of normal distributions."""
    return -0.5 * (offsets.square() * (-log_variance).exp() + log_variance + LOG_2_PI)


def student_log_density(offsets: Tensor, log_variance: Tensor, freedom: int) -> Tensor:
    """The same of Student's t with `freedom` degrees of freedom, of the square of whose scale `log_variance` is."""
    height = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    tail = torch.log1p(offsets.square() * (-log_variance).exp() / freedom)
    return height - 0.5 * log_variance - (freedom + 1) / 2 * tail


def importance_bound(log_weights: Tensor) -> Tensor:
    """(B,) lower bounds on log densities, from (K, B) `log p(x, z) - log q(z | x)` at draws z of q.

    Burda et al. 2016: the mean of the weights in place of the mean of their logarithms, which is the ELBO. It tends
    to the log density from below as K grows.
    """
    return log_weights.logsumexp(dim=0) - math.log(len(log_weights))
