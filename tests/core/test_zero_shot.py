"""Retrieval of classes without recordings."""

import pytest
import torch
from torch.nn import functional as F

from fed_a2v.core.adapters import Adapters, ClassPrompts
from fed_a2v.core.statistics import PrototypeBatch
from fed_a2v.core.zero_shot import (
    ROW_LENGTH,
    BilinearMap,
    choose_calibration,
    solve_adapter,
    unseen_accuracy,
    without,
)
from tests.core.conftest import draws
from tests.refusals import refused


class MeaningfulWorld:
    """Sounds whose mean is a linear function of their class vector, so that unrecorded classes can be guessed."""

    def __init__(self, classes=24, width=60, condition=12, own=0.0):
        random = draws(1)
        self.names = tuple(f"class {number:02}" for number in range(classes))
        self.vectors = torch.randn(classes, condition, generator=random) + 2  # crowded, as text vectors are
        directions = F.normalize(self.vectors - self.vectors.mean(0), dim=1)
        self.means = directions @ torch.randn(condition, width, generator=random) * 2 + 5
        # Part of a class that its vector does not determine: it moves unrecorded classes towards recorded ones.
        self.means += own * torch.randn(classes, width, generator=random)

    def rows(self, per_class=8, seed=2):
        labels = torch.arange(len(self.names)).repeat_interleave(per_class)
        noise = 0.5 * torch.randn(len(labels), self.means.shape[1], generator=draws(seed))
        audio = (self.means[labels] + noise).unsqueeze(1)
        return PrototypeBatch(audio, labels, torch.ones(len(labels)), torch.zeros_like(audio), self.names)


@pytest.fixture(scope="module")
def world():
    return MeaningfulWorld()


@pytest.fixture(scope="module")
def absent():
    mask = torch.zeros(24, dtype=torch.bool)
    mask[::4] = True
    return mask


def fitted(world, absent, **penalties):
    return BilinearMap.fit(without(world.rows(), absent), world.vectors[~absent], **penalties)


def test_unseen_classes_are_retrieved_among_each_other(world, absent):
    test = world.rows(20, seed=3)
    found = unseen_accuracy(fitted(world, absent)(test.embeddings, world.vectors), test.labels, absent)
    assert found.among_unseen > 0.7  # chance is 1 in 6
    assert found.seen > 0.5


def test_shuffled_vectors_of_unseen_classes_are_not_retrieved(world, absent):
    vectors = world.vectors.clone()
    vectors[absent] = vectors[absent].roll(1, dims=0)
    test = world.rows(20, seed=3)
    assert unseen_accuracy(fitted(world, absent)(test.embeddings, vectors), test.labels, absent).among_unseen < 0.3


def test_the_closed_form_is_the_one_of_the_paper(world, absent):
    rows, vectors = without(world.rows(), absent), world.vectors[~absent]
    found = BilinearMap.fit(rows, vectors, row_penalty=3.0, class_penalty=2.0)
    x = ROW_LENGTH * F.normalize((rows.embeddings.flatten(1) - found.mean) / found.std, dim=1).double()
    targets = F.normalize(vectors - vectors.mean(0), dim=1).double()
    signs = 2.0 * F.one_hot(rows.labels, len(vectors)).double() - 1
    left = torch.linalg.inv(x.T @ x + 3.0 * len(x) * torch.eye(60, dtype=torch.double))
    right = torch.linalg.inv(targets.T @ targets + 2.0 * torch.eye(12, dtype=torch.double))
    torch.testing.assert_close(found.weight.double(), left @ x.T @ signs @ targets @ right, rtol=1e-4, atol=1e-7)


def test_group_means_with_their_variance_standardise_as_clips_do(world):
    clips = world.rows(24)
    groups = clips.embeddings.view(-1, 3, 1, 60)
    rows = PrototypeBatch(
        groups.mean(1), clips.labels[::3], torch.full((len(groups),), 3.0), groups.var(1, correction=0), world.names
    )
    one, other = (BilinearMap.fit(each, world.vectors) for each in (clips, rows))
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.std, other.std)


def test_a_constant_column_has_no_effect(world, absent):
    rows = without(world.rows(), absent)
    rows.embeddings[..., 0] = 7.0
    assert BilinearMap.fit(rows, world.vectors[~absent]).weight.isfinite().all()


@pytest.mark.parametrize("vectors", [1, 13])
def test_vectors_that_do_not_fit_are_refused(world, vectors):
    with refused(ValueError, vectors, 24):
        BilinearMap.fit(world.rows(), world.vectors[:vectors])


def test_calibration_raises_the_accuracy_on_unseen_classes(absent):
    world = MeaningfulWorld(condition=40, own=0.7)
    seen = without(world.rows(), absent)
    calibration = choose_calibration(BilinearMap.fit, seen, world.vectors[~absent])
    assert calibration > 0
    test = world.rows(20, seed=3)
    scores = fitted(world, absent)(test.embeddings, world.vectors)
    plain, calibrated = (unseen_accuracy(scores, test.labels, absent, value) for value in (0.0, calibration))
    assert calibrated.harmonic > plain.harmonic + 0.1
    assert calibrated.unseen > plain.unseen
    assert calibrated.among_unseen == plain.among_unseen


def test_the_calibration_uses_recorded_classes_only(world):
    """It is fitted to parts of the recorded classes only, each class being left out once."""
    fits = []

    def watched(rows, vectors):
        fits.append(set(rows.names))
        return BilinearMap.fit(rows, vectors)

    choose_calibration(watched, world.rows(), world.vectors, groups=4)
    assert len(fits) == 4
    left_out = [set(world.names) - names for names in fits]
    assert set.union(*left_out) == set(world.names)
    assert sum(map(len, left_out)) == len(world.names)


def test_one_mean_per_class_suffices_to_choose_a_calibration(world, absent):
    rows = without(world.rows(1), absent)
    assert choose_calibration(BilinearMap.fit, rows, world.vectors[~absent]) >= 0


def test_too_few_classes_for_a_calibration_are_refused(world):
    gone = torch.ones(24, dtype=torch.bool)
    gone[:19] = False
    with refused(ValueError, 19, 10):
        choose_calibration(BilinearMap.fit, without(world.rows(), gone), world.vectors[:19], groups=10)


def test_the_harmonic_mean_is_zero_if_either_accuracy_is():
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    labels, unseen = torch.tensor([0, 1]), torch.tensor([False, True])
    assert unseen_accuracy(scores, labels, unseen).harmonic == 0
    assert unseen_accuracy(scores, labels, unseen, 2.0) == unseen_accuracy(scores.flip(1), labels, unseen)
    both = unseen_accuracy(torch.eye(2), labels, unseen)
    assert (both.seen, both.unseen, both.harmonic) == (1.0, 1.0, 1.0)


# As adapters of a federation


def closed_form(world, tokens=1):
    prompts = ClassPrompts(world.names, world.vectors.unflatten(1, (tokens, -1)), None)
    adapters = Adapters(60, prompts, closed_form=True)
    adapters.set_standardisation(torch.full((60,), 3.0), torch.full((60,), 2.0))
    return adapters, prompts


@pytest.mark.parametrize("tokens", [1, 2])
def test_the_closed_form_adapters_rank_as_the_bilinear_map_does(world, absent, tokens):
    adapters, prompts = closed_form(world, tokens)
    rows = without(world.rows(), absent)
    solve_adapter(adapters, rows, prompts.clip[~absent])
    test = world.rows(5, seed=3)
    output = adapters(test.embeddings).clip
    assert output.shape == (len(test), tokens, 12 // tokens)
    # The map centres by the recorded classes, the adapters by all: their direction before that is the same.
    direction = F.normalize((output - adapters.clip.centre).flatten(1), dim=1)
    found = BilinearMap.fit(rows, world.vectors[~absent])
    x = F.normalize((test.embeddings.flatten(1) - found.mean) / found.std, dim=1)
    torch.testing.assert_close(direction, F.normalize(x @ found.weight, dim=1), atol=1e-3, rtol=1e-2)


def test_a_solution_survives_half_precision(world):
    adapters, prompts = closed_form(world)
    solve_adapter(adapters, world.rows(), prompts.clip)
    test = world.rows(5, seed=3).embeddings
    before = adapters(test).clip
    adapters.load_weights([weight.half().float() for weight in adapters.weights()])
    torch.testing.assert_close(adapters(test).clip, before, atol=2e-2, rtol=2e-2)


def test_the_closed_form_has_no_t5(world):
    prompts = ClassPrompts(world.names, world.vectors.unsqueeze(1), torch.randn(24, 3, 5))
    with refused(ValueError, "T5"):
        Adapters(60, prompts, closed_form=True)
