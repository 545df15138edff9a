"""The prior of a label head: ties of classes to labels, and class means that are shrunk towards it."""

import pytest
import torch
from torch.nn import functional as F

from fed_a2v.core.class_sums import ClassSums, shared_gaussian
from fed_a2v.core.label_prior import class_weights, directions, informed_means, ties_by_name, ties_by_text
from fed_a2v.core.sum_bank import SumBank

CLASSES, COLUMNS, NOISE = 20, 30, 0.3


@pytest.fixture
def truth():
    """Unit directions of the classes, and means that are twice them and something else."""
    random = torch.Generator().manual_seed(0)
    prior = F.normalize(torch.randn(CLASSES, COLUMNS, generator=random, dtype=torch.float64), dim=1)
    rest = 0.1 * torch.randn(CLASSES, COLUMNS, generator=random, dtype=torch.float64)
    return prior, 2 * prior + rest


def noisy(means, deviation, seed=1):
    random = torch.Generator().manual_seed(seed)
    return means + deviation * torch.randn(means.shape, generator=random, dtype=means.dtype)


def test_ties_by_text_are_shares_of_the_nearest_labels():
    vectors = torch.eye(4)
    ties = ties_by_text(vectors, torch.cat([vectors, vectors.flip(0)]))
    torch.testing.assert_close(ties.sum(dim=1), torch.ones(4))
    assert torch.allclose(ties[0, 0], ties[0, 7])
    assert float(ties[0, [0, 7]].sum()) > 0.99


def test_ties_by_name_are_the_labels_with_most_words_in_common():
    labels = ["Walk, footsteps", "Waves, surf", "Sine wave", "Sneeze", "Siren", "Ambulance (siren)", "Train horn"]
    ties = ties_by_name(["footsteps", "sea_waves", "sneezing", "siren", "mouse"], labels)
    expected = torch.zeros(5, 7)
    for row, columns in enumerate([[0], [1], [3], [4, 5], []]):
        expected[row, columns] = 1 / max(len(columns), 1)
    # "Waves" is one of the label's alternatives, and half of "sea waves"; "Sine wave" shares a third of the words.
    torch.testing.assert_close(ties, expected)


def test_a_class_without_a_label_has_no_direction_and_the_others_are_centred_on_the_recorded():
    weight = torch.randn(6, COLUMNS, generator=torch.Generator().manual_seed(0))
    ties = torch.eye(6)[:5] * torch.tensor([1.0, 1, 0, 1, 1])[:, None]
    found = class_weights(ties, weight)
    assert not found[2].any()
    torch.testing.assert_close(class_weights(ties, weight + 3), found)  # a label head's scores have no common part
    toward = directions(found, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(toward.norm(dim=1), torch.tensor([1.0, 1, 0, 1, 1]))
    torch.testing.assert_close(toward[3], F.normalize(found[3] - found[:2].mean(dim=0), dim=0))
    assert not directions(torch.zeros(5, COLUMNS), torch.tensor([0, 1])).any()


def test_means_without_noise_stay_as_they_are(truth):
    prior, means = truth
    found, strength = informed_means(means, torch.zeros_like(means), prior)
    torch.testing.assert_close(found, means)
    assert strength == pytest.approx(2, abs=0.1)


def test_noisy_means_come_nearer_to_the_true_ones_and_a_false_prior_does_no_harm(truth):
    prior, means = truth
    seen, noise = noisy(means, NOISE), torch.full_like(means, NOISE**2)
    before = float((seen - means).square().mean())
    after = float((informed_means(seen, noise, prior)[0] - means).square().mean())
    assert after < 0.3 * before
    found, strength = informed_means(seen, noise, prior.flip(0))
    assert float((found - means).square().mean()) < before
    assert strength < 0.3


def test_the_noisier_class_follows_its_direction_more(truth):
    prior, means = truth
    noise = torch.full_like(means, NOISE**2)
    noise[0] = 100.0
    found, strength = informed_means(noisy(means, NOISE), noise, prior)
    expected = found.mean(dim=0)  # about the centre
    assert float((found[0] - strength * prior[0] - expected).norm()) < 0.5


def sums_of(clips, noise=0.0):
    """Sums of rows around the directions of the classes, and the directions."""
    random = torch.Generator().manual_seed(3)
    toward = F.normalize(torch.randn(CLASSES, COLUMNS, generator=random), dim=1)
    labels = torch.arange(CLASSES).repeat_interleave(clips)
    rows = F.normalize(toward[labels] + 0.5 * torch.randn(len(labels), COLUMNS, generator=random), dim=1)
    sums = ClassSums.of(rows, labels, CLASSES)
    shift = noise * torch.randn(sums.sums.shape, generator=random, dtype=torch.float64)
    return ClassSums(sums.counts, sums.sums + shift, sums.scatter), toward, rows, labels


def test_a_gaussian_with_noise_or_few_clips_is_better_with_a_prior_and_the_same_without():
    for clips, noise in ((20, 6.0), (3, 0.0)):
        sums, toward, *_ = sums_of(clips, noise)
        _, _, rows, labels = sums_of(25)
        plain = shared_gaussian(sums, class_noise=noise)
        informed = shared_gaussian(sums, class_noise=noise, prior=toward)
        assert plain.strength == 0 < informed.strength

        def accuracy(model, rows=rows, labels=labels):
            weight, bias = model.discriminant
            return float(((rows.double() @ weight.T + bias).argmax(dim=1) == labels).double().mean())

        assert accuracy(informed) > accuracy(plain) + 0.01
    one = ClassSums(sums.counts * (torch.arange(CLASSES) == 0), sums.sums, sums.scatter)
    assert shared_gaussian(one, prior=toward).strength == 0


def test_the_prior_is_part_of_the_bank_and_of_its_state():
    sums, toward, *_ = sums_of(3)
    names = tuple(f"class {number}" for number in range(CLASSES))
    bank = SumBank(names, COLUMNS, prior=toward, sites={"site": sums})
    other = SumBank(names, COLUMNS)
    other.load_state_dict(bank.state_dict())
    assert bank.model().strength == other.model().strength > 0
    torch.testing.assert_close(bank.model().means, other.model().means, rtol=0, atol=0)
