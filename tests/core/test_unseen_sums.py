"""Classes without clips, from class sums, class vectors and a label prior."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fed_a2v.core.class_sums import ClassSums, shared_gaussian
from fed_a2v.core.unseen_sums import CLASS_PENALTY, ROW_PENALTY, calibrated_discriminant, unseen_discriminant

CLASSES, COLUMNS, WIDTH, RECORDED = 20, 12, 16, 16


@pytest.fixture(scope="module")
def world():
    """Classes whose vectors and label weights are maps of their means, and the sums of the first 16."""
    random = torch.Generator().manual_seed(0)
    means = torch.randn(CLASSES, COLUMNS, generator=random)
    vectors = means @ torch.randn(COLUMNS, WIDTH, generator=random) + 5
    prior = means + 0.3 * torch.randn(CLASSES, COLUMNS, generator=random)
    labels = torch.arange(CLASSES).repeat_interleave(30)
    rows = F.normalize(means[labels] + 0.8 * torch.randn(len(labels), COLUMNS, generator=random), dim=1)
    seen = labels < RECORDED
    sums = ClassSums.of(rows[seen], labels[seen], CLASSES)
    return sums, vectors, prior, rows.double(), labels


UNSEEN = torch.arange(RECORDED, CLASSES)


def accuracy(scores, rows, labels, among=None):
    of = torch.ones(len(labels), dtype=torch.bool) if among is None else torch.isin(labels, among)
    places = scores(rows[of])
    if among is not None:
        places = places.masked_fill(~torch.isin(scores.labels, among), -torch.inf)
    return float((scores.labels[places.argmax(dim=1)] == labels[of]).double().mean())


@pytest.mark.parametrize("with_prior", [False, True])
def test_clips_of_unseen_classes_are_told_apart(world, with_prior):
    sums, vectors, prior, rows, labels = world
    prior = prior if with_prior else None
    scores = unseen_discriminant(shared_gaussian(sums, prior=prior), UNSEEN, vectors, prior)
    assert scores.labels.tolist() == list(range(CLASSES))
    assert scores.weight.shape == (CLASSES, COLUMNS)
    assert accuracy(scores, rows, labels, UNSEEN) > 0.7


def test_recorded_classes_are_scored_as_without_unseen_ones_if_there_is_no_prior_direction(world):
    """A prior of zeros adds no score and predicts the mean of all for unseen classes."""
    sums, vectors, _, rows, _ = world
    nothing = torch.zeros(CLASSES, COLUMNS)
    model = shared_gaussian(sums)
    scores = unseen_discriminant(model, UNSEEN, vectors, nothing)
    bilinear = unseen_discriminant(model, UNSEEN, vectors)
    weight, _ = model.discriminant
    rest = scores.weight[:RECORDED] - weight
    ratio = rest / bilinear.weight[:RECORDED]
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-6, atol=1e-6)
    assert scores(rows[:3]).isfinite().all()


def test_the_bilinear_form_is_solved_as_from_rows(world):
    """W = (X'X / K + g I)^-1 X'Y T (T'T + l I)^-1 of the class means, if rows do not spread around them."""
    sums, vectors, *_ = world
    model = replace(shared_gaussian(sums), covariance=1e-9 * torch.eye(COLUMNS).double())
    scores = unseen_discriminant(model, UNSEEN, vectors)
    x = model.means
    candidates = F.normalize((vectors - vectors[:RECORDED].mean(dim=0)).double(), dim=1)
    targets, signs = candidates[:RECORDED], 2 * torch.eye(RECORDED).double() - 1
    inner = torch.linalg.inv(x.T @ x / RECORDED + ROW_PENALTY * torch.eye(COLUMNS))
    outer = torch.linalg.inv(targets.T @ targets + CLASS_PENALTY * torch.eye(WIDTH))
    expected = candidates @ (inner @ x.T @ signs @ targets @ outer).T
    ratio = scores.weight / expected
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4, atol=0)


def test_a_constant_is_subtracted_from_recorded_classes(world):
    sums, vectors, prior, rows, labels = world
    model = shared_gaussian(sums, prior=prior)
    plain = unseen_discriminant(model, UNSEEN, vectors, prior)
    scores, constant = calibrated_discriminant(model, UNSEEN, vectors, prior, seed=0)
    assert constant > 0
    difference = plain.bias - scores.bias
    torch.testing.assert_close(difference[:RECORDED], torch.full((RECORDED,), constant).double())
    assert not difference[RECORDED:].any()
    unseen = labels >= RECORDED
    assert accuracy(scores, rows[unseen], labels[unseen]) > accuracy(plain, rows[unseen], labels[unseen])
    again, same = calibrated_discriminant(model, UNSEEN, vectors, prior, seed=0)
    assert same == constant
    assert torch.equal(again.bias, scores.bias)


def test_too_few_recorded_classes_have_no_constant(world):
    sums, vectors, prior, *_ = world
    few = replace(sums, counts=sums.counts * (torch.arange(CLASSES) < 4))
    model = shared_gaussian(few, prior=prior)
    scores, constant = calibrated_discriminant(model, torch.arange(4, CLASSES), vectors, prior, seed=0)
    assert constant == 0
    assert len(scores.labels) == CLASSES
