"""The adapter of linear discriminant analysis."""

import pytest
import torch
from torch.nn import functional as F

from fed_a2v.core.adapters import PosteriorAdapter
from fed_a2v.core.class_sums import ClassSums, shared_gaussian

CLASSES, COLUMNS = 5, 8


@pytest.fixture
def rows():
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4  # the fifth class has no clip
    means = 3 * F.normalize(torch.randn(CLASSES, COLUMNS, generator=random), dim=1)
    return F.normalize(means[labels] + 0.5 * torch.randn(200, COLUMNS, generator=random), dim=1), labels


@pytest.fixture
def prompts():
    return torch.randn(CLASSES, 3, 6, generator=torch.Generator().manual_seed(1))


def test_untrained_it_gives_the_mean_prompt(prompts):
    adapter = PosteriorAdapter(COLUMNS, prompts)
    out = adapter(torch.randn(2, 1, COLUMNS))
    torch.testing.assert_close(out, prompts.mean(dim=0).expand(2, -1, -1))


def test_solved_it_gives_the_prompts_by_their_posterior(rows, prompts):
    audio, labels = rows
    model = shared_gaussian(ClassSums.of(audio, labels, CLASSES))
    adapter = PosteriorAdapter(COLUMNS, prompts)
    adapter.load_discriminant(model.labels, *model.discriminant)
    weight, bias = model.discriminant
    posterior = (audio.double() @ weight.T + bias).softmax(dim=1).float()
    expected = torch.einsum("nc,ctd->ntd", posterior, prompts[:4])
    torch.testing.assert_close(adapter(audio.unsqueeze(1)), expected, rtol=1e-4, atol=1e-4)
    nearest = torch.cdist(adapter(audio.unsqueeze(1)).flatten(1), prompts.flatten(1)).argmin(dim=1)
    assert (nearest == labels).float().mean() > 0.9
    far = (adapter(audio.unsqueeze(1)) - prompts.mean(dim=0)).flatten(1).norm(dim=1)
    assert float(far.detach().max()) <= adapter.reach() + 1e-5


def test_its_weights_travel_and_its_prompts_do_not(prompts):
    assert PosteriorAdapter(COLUMNS, prompts).state_dict().keys() == {"weight", "bias"}
