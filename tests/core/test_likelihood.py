"""Densities are those that torch's own distributions give."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, StudentT

from fed_a2v.core.likelihood import (
    column_scale,
    gaussian_log_density,
    importance_bound,
    normal_log_density,
    student_log_density,
)
from tests.core.conftest import draws


@pytest.mark.parametrize("factors", [1, 3, 12], ids=lambda number: f"{number} factors of 6 columns")
def test_a_gaussian_of_factors_is_the_one_with_that_covariance(factors):
    random = draws(0)
    offsets, rows = torch.randn(5, 6, generator=random), torch.randn(factors, 6, generator=random)
    variances = torch.rand(6, generator=random) + 0.1
    covariance = (rows.T @ rows + variances.diag()).double()
    wanted = MultivariateNormal(torch.zeros(6, dtype=torch.float64), covariance).log_prob(offsets.double())
    torch.testing.assert_close(gaussian_log_density(offsets, rows, variances), wanted, rtol=1e-5, atol=1e-5)


def test_elementwise_densities_are_those_of_torch():
    random = draws(1)
    offsets, log_variance = torch.randn(4, 3, generator=random), torch.randn(4, 3, generator=random)
    scale = (0.5 * log_variance).exp()
    torch.testing.assert_close(normal_log_density(offsets, log_variance), Normal(0.0, scale).log_prob(offsets))
    wanted = StudentT(8.0, 0.0, scale).log_prob(offsets)
    torch.testing.assert_close(student_log_density(offsets, log_variance, 8), wanted)


def test_the_bound_rises_towards_the_density_with_the_draws():
    # p(x) of x = z + noise at x = 1, with draws from a posterior that is too wide.
    random = draws(2)
    wanted = Normal(0.0, math.sqrt(2)).log_prob(torch.tensor(1.0)).item()
    bounds = []
    for number in (1, 8, 64):
        z = 0.5 + 1.5 * torch.randn(number, 4000, generator=random)
        log_weights = (
            Normal(0, 1).log_prob(z) + Normal(z, 1.0).log_prob(torch.tensor(1.0)) - Normal(0.5, 1.5).log_prob(z)
        )
        bounds.append(float(importance_bound(log_weights).mean()))
    assert bounds[0] < bounds[1] < bounds[2] < wanted
    assert bounds[2] == pytest.approx(wanted, abs=0.02)


def test_columns_that_hardly_vary_are_not_amplified():
    rows = torch.randn(200, 4, generator=draws(3)) * torch.tensor([1.0, 1.0, 1e-3, 0.0]) + 5
    mean, scale = column_scale(rows)
    torch.testing.assert_close(mean, rows.mean(dim=0))
    torch.testing.assert_close(scale[:2], rows.std(dim=0, correction=0)[:2])
    assert scale[2] == scale[3] == pytest.approx(0.3 * float(rows.var(dim=0, correction=0).mean().sqrt()))
    assert (column_scale(torch.ones(3, 2))[1] > 0).all()
