import math

import pytest
import torch

from fed_a2v.core.metrics import retrieval
from tests.refusals import refused


def prompts(classes=7, tokens=3, width=16, crowding=5.0):
    """Class prompts that are close to each other, as text vectors are."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(classes, tokens, width, generator=generator) + crowding


def test_outputs_equal_to_their_prompts_rank_first():
    targets = prompts()
    labels = torch.tensor([3, 0, 6, 6])
    found = retrieval(targets[labels], labels, targets)
    assert found.ranks.tolist() == [1, 1, 1, 1]
    assert found.accuracy == found.accuracy_at_5 == 1
    torch.testing.assert_close(found.similarity, torch.ones(4))


def test_ranks_agree_with_sorting_each_row_by_hand():
    targets = prompts(classes=9)
    labels = torch.arange(9).repeat(4)
    outputs = targets[labels] + 4 * torch.randn(36, 3, 16, generator=torch.Generator().manual_seed(1))
    found = retrieval(outputs, labels, targets)
    mean = targets.mean(0)
    for row, label, rank in zip(outputs, labels.tolist(), found.ranks.tolist(), strict=True):
        cosines = torch.stack([torch.cosine_similarity((row - mean).ravel(), (p - mean).ravel(), 0) for p in targets])
        assert cosines.argsort(descending=True).tolist().index(label) + 1 == rank
    assert 0 < found.accuracy < found.accuracy_at_5 < 1
    assert found.accuracy == (found.ranks == 1).float().mean()


def test_a_constant_output_has_no_similarity():
    targets = prompts()
    labels = torch.arange(7)
    constant = targets.mean(0).expand(7, -1, -1) + 1e-3 * torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    assert abs(retrieval(constant, labels, targets).mean_similarity) < 0.2


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_collapsed_output_has_accuracy_zero(value):
    targets = prompts()
    found = retrieval(targets.mean(0) + torch.full_like(targets, value), torch.arange(7), targets)
    assert found.accuracy == 0
    assert found.accuracy_at_5 == 0


def test_with_fewer_than_five_classes_the_first_five_are_all_classes():
    targets = prompts(classes=3)
    assert retrieval(-targets, torch.arange(3), targets).accuracy_at_5 == 1
    assert retrieval(targets.flip(0), torch.arange(3), targets).accuracy == pytest.approx(1 / 3)


def test_a_single_class_is_compared_uncentred():
    targets = prompts(classes=1)
    found = retrieval(targets, torch.tensor([0]), targets)
    assert found.accuracy == 1
    assert found.mean_similarity == pytest.approx(1)


def test_half_precision_outputs_are_accepted():
    targets = prompts()
    assert retrieval(targets.half(), torch.arange(7), targets).accuracy == 1


def test_a_wrong_width_is_an_error_rather_than_a_broadcast():
    targets = prompts(tokens=1)
    with refused(ValueError, "(7, 16)", "(7, 1, 16)"):
        retrieval(targets[:, 0], torch.arange(7), targets)


def test_a_label_without_a_prompt_is_an_error():
    targets = prompts(classes=17)
    with refused(ValueError, "labels", 17):
        retrieval(targets, torch.arange(1, 18), targets)
    with refused(ValueError, "labels", 27, 17):
        retrieval(targets, torch.arange(11, 28), targets)
    with refused(ValueError, "labels", 17, "(16,)"):
        retrieval(targets, torch.arange(16), targets)
