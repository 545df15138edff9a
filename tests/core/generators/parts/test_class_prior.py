import pytest
import torch

from fed_a2v.core.generators.parts.class_prior import ClassPrior
from tests.core.conftest import draws, through_a_file, within_variance

CLASSES, ROWS, LATENT, WIDTH = 3, 8, 5, 12
LABELS = torch.arange(CLASSES).repeat_interleave(ROWS)


def posterior():
    """Means far from N(0, I), and a class that is more spread than the others."""
    mu = 5 * torch.arange(CLASSES)[LABELS, None] + torch.randn(len(LABELS), LATENT, generator=draws(0))
    mu[LABELS == 2] += 2 * torch.randn(ROWS, LATENT, generator=draws(1))
    return mu, torch.full_like(mu, -2.0)


def fitted(residual=1.0):
    prior = ClassPrior()
    mu, logvar = posterior()
    prior.fit(mu, logvar, residual * torch.randn(len(LABELS), WIDTH, generator=draws(2)), LABELS, CLASSES)
    return prior


def keep_latent(latent, labels):
    """A decoder that returns the latent, so that tests can check its draws."""
    return torch.nn.functional.pad(latent, (0, WIDTH - LATENT))


def test_latents_are_drawn_around_the_class_not_around_zero():
    labels = torch.arange(CLASSES).repeat_interleave(500)
    drawn = fitted(residual=0).draw(keep_latent, labels, draws(0))[:, :LATENT]
    mu, _ = posterior()
    for label in range(CLASSES):
        torch.testing.assert_close(drawn[labels == label].mean(0), mu[label == LABELS].mean(0), rtol=0, atol=0.5)


def test_latents_have_the_spread_of_their_own_class():
    labels = torch.arange(CLASSES).repeat_interleave(500)
    drawn = fitted(residual=0).draw(keep_latent, labels, draws(0))[:, :LATENT]
    wide, narrow = (
        within_variance(drawn[labels == 2], labels[labels == 2]),
        within_variance(drawn[labels == 0], labels[labels == 0]),
    )
    assert wide.mean() > 1.5 * narrow.mean()
    mu, logvar = posterior()
    expected = (within_variance(mu, LABELS) + logvar.exp().mean()).mean()
    assert within_variance(drawn, labels).mean() == pytest.approx(expected.item(), rel=0.2)


def test_a_latent_that_is_normal_within_the_classes_is_drawn_so():
    labels = torch.arange(CLASSES).repeat_interleave(2000)
    prior = ClassPrior(normal=True)
    mu, logvar = posterior()
    prior.fit(mu, logvar, torch.zeros(len(LABELS), WIDTH), LABELS, CLASSES)
    drawn = prior.draw(keep_latent, labels, draws(0))[:, :LATENT]
    spreads = []
    for label in range(CLASSES):
        own = mu[label == LABELS]
        torch.testing.assert_close(drawn[labels == label].mean(0), own.mean(0), rtol=0, atol=0.2)
        spreads.append(drawn[labels == label].var(dim=0).mean())
        # Three tenths are the class's own, the rest is N(0, 1).
        assert spreads[-1] == pytest.approx(0.7 + 0.3 * float(own.var(dim=0).mean() + logvar.exp().mean()), rel=0.1)
    assert spreads[2] > 1.2 * spreads[0]


def test_the_noise_that_the_decoder_leaves_out_comes_back():
    prior = fitted()
    labels = torch.arange(CLASSES).repeat_interleave(500)
    drawn = prior.draw(lambda latent, _: latent.new_zeros(len(latent), WIDTH), labels, draws(0))
    assert within_variance(drawn, labels).mean() == pytest.approx(prior.residual_rms.square().mean().item(), rel=0.15)


def test_a_class_with_a_single_row_is_drawn_with_the_others_spread():
    prior = ClassPrior()
    mu, logvar = posterior()
    alone = torch.cat([torch.tensor([0]), torch.arange(ROWS, CLASSES * ROWS)])
    prior.fit(mu[alone], logvar[alone], torch.randn(len(alone), WIDTH), LABELS[alone], CLASSES)
    drawn = prior.draw(keep_latent, torch.zeros(200, dtype=torch.long), draws(0))
    assert drawn.isfinite().all()
    assert drawn[:, :LATENT].std(0).min() > 0.1


def test_an_unseen_class_gets_the_residual_noise_of_all():
    prior = fitted()
    noise = prior.pooled_residuals(2000, draws(0))
    assert noise.shape == (2000, WIDTH)
    torch.testing.assert_close(noise.std(0), prior.residual_rms.square().mean(0).sqrt(), rtol=0.1, atol=0)


def test_it_comes_back_from_a_file_whatever_the_shapes_were():
    source, other = fitted(), ClassPrior()
    other.fit(torch.randn(4, 2), torch.randn(4, 2), torch.randn(4, 3), torch.tensor([0, 0, 1, 1]), 2)
    other.load_state_dict(through_a_file(source.state_dict()))
    one, two = (each.draw(keep_latent, LABELS, draws(0)) for each in (source, other))
    assert torch.equal(one, two)
