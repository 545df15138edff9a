"""Sums over clips: additive, exactly removable, and the Gaussian model that they give."""

import pytest
import torch
from torch.nn import functional as F

from fed_a2v.core.class_sums import ClassSums, shared_gaussian, symmetric, triangle_size

CLASSES, COLUMNS = 4, 6


def unit_rows(number, seed=0, classes=CLASSES):
    """Rows of Gaussian classes with one covariance, and their labels."""
    random = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(CLASSES, COLUMNS, generator=torch.Generator().manual_seed(9))
    scale = torch.linspace(0.3, 1.5, COLUMNS)
    labels = torch.arange(number) % classes
    return F.normalize(means[labels] + scale * torch.randn(number, COLUMNS, generator=random), dim=1), labels


def sums(number, seed=0, classes=CLASSES):
    return ClassSums.of(*unit_rows(number, seed, classes), CLASSES)


def assert_close(first, second):
    assert torch.equal(first.counts, second.counts)
    torch.testing.assert_close(first.sums, second.sums, rtol=0, atol=1e-9)
    torch.testing.assert_close(first.scatter, second.scatter, rtol=0, atol=1e-9)


def test_the_sums_are_those_of_the_definition():
    rows, labels = unit_rows(10)
    found = ClassSums.of(rows, labels, CLASSES)
    assert found.counts.tolist() == [3, 3, 2, 2]
    torch.testing.assert_close(found.sums[2], rows[labels == 2].double().sum(dim=0))
    torch.testing.assert_close(found.scatter_matrix(), rows.double().T @ rows.double())
    assert found.scatter.shape == (triangle_size(COLUMNS),) == (21,)
    assert float(found.scatter_matrix().trace()) == pytest.approx(10), "every row has length 1"


def test_sites_add_up_in_any_order_and_a_site_can_be_taken_away_again():
    first, second, third = (sums(number, seed) for seed, number in enumerate((7, 12, 30)))
    rows, labels = zip(*(unit_rows(number, seed) for seed, number in enumerate((7, 12, 30))), strict=True)
    together = ClassSums.of(torch.cat(rows), torch.cat(labels), CLASSES)
    assert_close(first + second + third, together)
    assert_close(third + first + second, together)
    assert_close(first + second + third - second, first + third)
    assert_close(ClassSums.zero(CLASSES, COLUMNS) + first, first)


def test_a_triangle_and_its_matrix_are_the_same_numbers():
    matrix = torch.randn(5, 5, dtype=torch.float64)
    matrix = matrix + matrix.T
    assert torch.equal(symmetric(matrix[*torch.triu_indices(5, 5)], 5), matrix)


def test_the_model_has_the_means_and_the_pooled_covariance():
    rows, labels = unit_rows(4000)
    model = shared_gaussian(ClassSums.of(rows, labels, CLASSES), shrinkage=0.0)
    within = torch.cat([rows[labels == label] - rows[labels == label].mean(dim=0) for label in range(CLASSES)])
    expected = within.double().T @ within.double() / (4000 - CLASSES)
    share = COLUMNS / (COLUMNS + 4000 - CLASSES)
    shrunk = (1 - share) * expected + share * expected.trace() / COLUMNS * torch.eye(COLUMNS, dtype=torch.float64)
    torch.testing.assert_close(model.covariance, shrunk, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.means[1], rows[labels == 1].double().mean(dim=0))


def test_the_discriminant_is_the_bayes_rule_of_the_model():
    rows, labels = unit_rows(400)
    model = shared_gaussian(ClassSums.of(rows, labels, CLASSES))
    weight, bias = model.discriminant
    densities = torch.stack(
        [
            torch.distributions.MultivariateNormal(mean, model.covariance).log_prob(rows.double())
            for mean in model.means
        ],
        dim=1,
    )
    torch.testing.assert_close((rows.double() @ weight.T + bias).log_softmax(1), densities.log_softmax(1))
    assert ((rows.double() @ weight.T + bias).argmax(1) == labels).float().mean() > 0.8


def test_draws_are_unit_rows_with_the_mean_and_covariance_of_their_class():
    model = shared_gaussian(sums(4000))
    labels = torch.zeros(20_000, dtype=torch.int64)
    drawn = model.draw(labels, torch.Generator().manual_seed(1))
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(20_000))
    raw = model.means[0] + torch.randn(20_000, COLUMNS, dtype=torch.float64) @ torch.linalg.cholesky(model.covariance).T
    torch.testing.assert_close(drawn.double().mean(0), F.normalize(raw, dim=1).mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.double().T.cov(), F.normalize(raw, dim=1).T.cov(), rtol=0, atol=0.02)
    again = model.draw(labels, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again)


def test_classes_without_clips_are_left_out():
    model = shared_gaussian(sums(30, classes=2))
    assert model.labels.tolist() == [0, 1]
    assert model.counts.tolist() == [15, 15]
    assert len(model.means) == len(model.discriminant[0]) == 2
    with pytest.raises(ValueError, match="clip"):
        shared_gaussian(ClassSums.zero(CLASSES, COLUMNS))


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_clip_a_class_still_gives_a_model(number):
    model = shared_gaussian(sums(number))
    assert torch.isfinite(model.discriminant[0]).all()
    assert torch.isfinite(model.draw(torch.arange(len(model.labels)), torch.Generator())).all()


def noisy(exact, classes, scatter, seed):
    random = torch.Generator().manual_seed(seed)
    draw = lambda like, deviation: deviation * torch.randn(like.shape, generator=random, dtype=like.dtype)  # noqa: E731
    return ClassSums(exact.counts, exact.sums + draw(exact.sums, classes), exact.scatter + draw(exact.scatter, scatter))


def test_known_noise_is_taken_out_of_the_model():
    exact = sums(4000)
    true = shared_gaussian(exact)
    means, covariances, blind = [], [], []
    for seed in range(20):
        released = noisy(exact, 300.0, 30.0, seed)
        model = shared_gaussian(released, 300.0, 30.0)
        means.append(float((model.means - true.means).square().mean()))
        covariances.append(float((model.covariance - true.covariance).trace().abs()))
        blind.append(shared_gaussian(released))
        assert torch.linalg.eigvalsh(model.covariance).min() > 0
    assert sum(means) < sum(float((each.means - true.means).square().mean()) for each in blind)
