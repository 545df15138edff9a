"""The linear model that a VAE starts from recovers the parameters of the rows."""

import pytest
import torch

from fed_a2v.core.generators.parts.factors import FactorModel, widened
from tests.core.conftest import draws

CLASSES, CLIPS, WIDTH = 6, 200, 20


@pytest.fixture(scope="module")
def truth():
    """Rows of a linear model: two factors, a rest of its own in each column, and a loudness."""
    random = draws(0)
    made = FactorModel(WIDTH, 3)
    made.rest = torch.rand(WIDTH, generator=random) / 2 + 0.2
    # Independent given a row, as fitted factors are.
    turned = torch.linalg.qr(torch.randn(WIDTH, 2, generator=random)).Q
    made.loadings = made.rest.sqrt().unsqueeze(1) * turned * torch.tensor([5.0, 3.0])
    made.loudness = torch.tensor(0.3)
    made.centre = 3 * torch.randn(CLASSES + 1, WIDTH, generator=random)
    made.scale = torch.ones(CLASSES + 1, WIDTH)
    return made


def rows_of(model, per_class=CLIPS, seed=1):
    random = draws(seed)
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    latent = torch.randn(len(labels), 3, generator=random)
    mean, log_variance = model.decode(latent)
    offsets = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=random)
    return model.centre[labels] + model.scale[labels] * offsets, labels, latent


def fitted(rows, labels, latent_dim=3):
    model = FactorModel(WIDTH, latent_dim)
    groups = [rows[labels == label] for label in range(CLASSES)]
    mean, std = (torch.stack([getattr(torch, name)(of, dim=0) for of in groups]) for name in ("mean", "std"))
    model.measure(mean, std, torch.tensor([float(len(of)) for of in groups]))
    model.fit(rows, labels)
    return model


def correlation(model):
    covariance = model.loadings @ model.loadings.T + model.rest.diag()
    deviation = covariance.diagonal().sqrt()
    return covariance / deviation / deviation.unsqueeze(1)


def test_it_finds_correlation_and_loudness(truth):
    rows, labels, _ = rows_of(truth)
    model = fitted(rows, labels)
    torch.testing.assert_close(correlation(model), correlation(truth), rtol=0, atol=0.1)
    # 20 columns determine the loudness of a row only approximately.
    assert model.loudness == pytest.approx(0.3, abs=0.1)


def test_the_posterior_finds_the_latents_that_made_the_rows(truth):
    rows, labels, latent = rows_of(truth)
    mean, log_variance, _ = truth.posterior(rows - truth.centre[labels], labels)
    error = (mean - latent)[:, 1:]
    assert error.square().mean() < 0.15
    assert (error.square() / log_variance[:, 1:].exp()).mean() == pytest.approx(1, abs=0.5)
    assert torch.corrcoef(torch.stack([mean[:, 0], latent[:, 0]]))[0, 1] > 0.7


def test_what_is_encoded_and_decoded_is_near_the_row(truth):
    rows, labels, _ = rows_of(truth)
    offsets = rows - truth.centre[labels]
    decoded, _ = truth.decode(truth.posterior(offsets, labels)[0])
    left = (truth.rest * truth.loudness.mul(2).exp()).mean()  # variance that the factors do not explain
    assert (decoded - offsets).square().mean() < left < 0.6 * offsets.square().mean()


def test_the_variance_of_a_class_with_few_clips_is_nearly_that_of_all():
    model = FactorModel(2, 2)
    model.measure(torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [3.0, 3.0]]), torch.tensor([2.0, 10_000.0]))
    alone, known, unknown = model.scale[:, 0].tolist()
    assert known == pytest.approx(3, abs=0.01)
    assert unknown == pytest.approx(5**0.5, abs=0.01)
    assert 1 < alone < unknown


@pytest.mark.parametrize("per_class", [1, 2])
def test_one_or_two_rows_per_class_are_enough(truth, per_class):
    rows, labels, _ = rows_of(truth, per_class)
    model = FactorModel(WIDTH, 8)
    model.measure(truth.centre[:-1], truth.scale[:-1], torch.full((CLASSES,), float(per_class)))
    model.fit(rows, labels)
    mean, log_variance, seen = model.posterior(rows - model.centre[labels], labels)
    assert all(torch.isfinite(part).all() for part in (*model.decode(mean), mean, log_variance, seen))


def test_rows_that_made_their_mean_are_moved_as_far_as_others_are():
    random = draws(5)
    labels = torch.arange(500).repeat_interleave(4)
    rows = torch.randn(2000, 3, generator=random)
    centre = torch.stack([of.mean(dim=0) for of in rows.split(4)])[labels]
    assert (rows - centre).square().mean() == pytest.approx(0.75, abs=0.05)
    assert (widened(rows, centre, labels) - centre).square().mean() == pytest.approx(1, abs=0.06)
