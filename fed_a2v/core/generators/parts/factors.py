"""The linear-Gaussian model that a VAE with `closed_form` starts from: factor analysis within the classes.

    x = centre_c + scale_c * t * (loadings z + rest),   z ~ N(0, I),   log t ~ N(0, loudness^2)

Centres and scales are those of the clips of class c. All classes share the correlation: a few factors and an
uncorrelated rest (factor analysis, Rubin & Thayer 1982; fitted by principal components in units of the rest of the
previous pass). Rows differ in loudness t, which scales all columns together. The first of the L latent dimensions is
log t in units of its deviation, the others are z.

Given a row, the posterior of z is normal and known. So a VAE that starts here has this density from the beginning, with
a tight bound, and its networks learn corrections of it.

Shapes: N rows of D columns, standardised; C classes; L latent dimensions.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fed_a2v.core.generators.parts.buffers import DataSizedModule
from fed_a2v.core.generators.parts.moments import ledoit_wolf_shrinkage
from fed_a2v.core.likelihood import NOISE

# Weight, in clips, of the average of all classes in a class's own variance.
PRIOR_CLIPS = 12
# Passes of the factor analysis, and steps of power iteration in each.
PASSES = 5
POWER_STEPS = 2
LEAST_VARIANCE = 1e-4
LEAST_LOUDNESS = 0.05


class FactorModel(DataSizedModule):
    """The linear part of a VAE, as buffers, so that a checkpoint has it.

    Args:
        width: D.
        latent_dim: L.
    """

    # One row for each class, and a last row for unknown classes; the number of classes is the checkpoint's.
    data_sized: ClassVar[tuple[str, ...]] = ("centre", "scale")
    centre: Tensor  # (C + 1, D)
    scale: Tensor  # (C + 1, D)
    loadings: Tensor  # (D, L - 1)
    rest: Tensor  # (D,): variance that the factors leave
    loudness: Tensor  # (): deviation of log t

    def __init__(self, width: int, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(1, width))
        self.register_buffer("scale", torch.ones(1, width))
        self.register_buffer("loadings", torch.randn(width, latent_dim - 1) / latent_dim**0.5)
        self.register_buffer("rest", torch.ones(width))
        self.register_buffer("loudness", torch.tensor(LEAST_LOUDNESS))

    @torch.no_grad()
    def measure(self, mean: Tensor, std: Tensor, clips: Tensor) -> None:
        """Set centres and scales from the (C, D) means and deviations of the classes' clips, and their (C,) numbers.

        The fewer clips a class has, the more its variances are shrunk to those of all classes.
        """
        own = (clips / (clips + PRIOR_CLIPS)).unsqueeze(1)
        pooled = std.square().mean(dim=0, keepdim=True)
        variance = torch.cat([own * std.square() + (1 - own) * pooled, pooled])
        self.scale = (variance + LEAST_VARIANCE).sqrt()
        self.centre = torch.cat([mean, mean.mean(dim=0, keepdim=True)])

    @torch.no_grad()
    def fit(self, x: Tensor, labels: Tensor) -> None:
        """Fit what the classes share to (N, D) `widened` rows."""
        rows = ((x - self.centre[labels]) / self.scale[labels]).double()
        log_t, *_ = _infer(rows, *_factor_analysis(rows, self.loadings.shape[1]))
        log_t = log_t - log_t.mean()
        self.loudness = log_t.std(correction=0).clamp(min=LEAST_LOUDNESS).to(x)
        loadings, rest = _factor_analysis((-log_t).exp() * rows, self.loadings.shape[1])
        self.loadings, self.rest = loadings.to(x), rest.to(x)

    @torch.no_grad()
    def posterior(self, offsets: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The latents of (N, D) offsets from the centres of the classes `labels`.

        Returns:
            (N, L) mean and log variance, and the (N, D) offsets in units of their class's scale and their loudness.
        """
        rows = offsets / self.scale[labels]
        mean, log_variance = (rows.new_empty(len(rows), 1 + self.loadings.shape[1]) for _ in range(2))
        for label in labels.unique().tolist():
            of = labels == label
            rest = self.rest + (NOISE / self.scale[label]).square()
            log_t, z, log_variance[of, 1:] = _infer(rows[of], self.loadings, rest)
            mean[of] = torch.cat([log_t / self.loudness, (-log_t).exp() * z], dim=1)
        log_variance[:, 0] = -(2 * rows.shape[1] * self.loudness.square()).log()
        return mean, log_variance, (-self.loudness * mean[:, :1]).exp() * rows

    def decode(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) mean and log variance of rows with (..., L) latents, in units of their class's scale."""
        log_t = self.loudness * latent[..., :1]
        return log_t.exp() * (latent[..., 1:] @ self.loadings.T), 2 * log_t + self.rest.log()


def widened(x: Tensor, centre: Tensor, labels: Tensor) -> Tensor:
    """(N, D) rows as far from their class's (N, D) centre as rows that the centre was not computed from."""
    counts = labels.bincount().to(x)[labels].unsqueeze(1)
    return centre + (counts / (counts - 1).clamp(min=1)).sqrt() * (x - centre)


def _factor_analysis(rows: Tensor, factors: int) -> tuple[Tensor, Tensor]:
    """(D, factors) loadings and the (D,) rest of centred (N, D) rows, shrunk to a multiple of the identity."""
    number, width = rows.shape
    used = min(factors, number - 1, width)
    variance = rows.square().mean(dim=0).clamp(min=LEAST_VARIANCE)
    rest, loadings = variance, rows.new_zeros(width, factors)
    start = torch.randn(width, used, generator=torch.Generator().manual_seed(0), dtype=rows.dtype)
    basis = torch.linalg.qr(start.to(rows.device)).Q
    for _ in range(PASSES if used > 0 else 0):
        scaled = rows / (number * rest).sqrt()
        for _ in range(POWER_STEPS):
            basis = torch.linalg.qr(scaled.T @ (scaled @ basis)).Q
        _, values, turn = torch.linalg.svd(scaled @ basis, full_matrices=False)
        basis = basis @ turn.T
        loadings[:, :used] = basis * (values.square() - 1).clamp(min=0).sqrt() * rest.sqrt().unsqueeze(1)
        rest = (variance - loadings.square().sum(dim=1)).clamp(min=LEAST_VARIANCE)
    shrinkage = ledoit_wolf_shrinkage(rows)
    return (1 - shrinkage) ** 0.5 * loadings, (1 - shrinkage) * rest + shrinkage * variance.mean()


def _infer(rows: Tensor, loadings: Tensor, rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, 1) log loudness of rows, (N, L - 1) posterior mean of their factors times it, and its log variance."""
    weighted = loadings / rest.unsqueeze(1)
    precision = loadings.T @ weighted + torch.eye(loadings.shape[1], dtype=rows.dtype, device=rows.device)
    projected = rows @ weighted
    z = torch.cholesky_solve(projected.T, torch.linalg.cholesky(precision)).T
    distance = (rows.square() / rest).sum(dim=1) - (projected * z).sum(dim=1)
    log_t = 0.5 * (distance / rows.shape[1]).clamp(min=1e-6).log().unsqueeze(1)
    return log_t, z, -precision.diagonal().log().expand_as(z)
