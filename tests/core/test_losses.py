import math
from itertools import product

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional as F

from fed_a2v.core.adapters import AdapterOutput, Adapters, ClassPrompts
from fed_a2v.core.losses import AdapterLoss, AdapterLossWeights, VAELoss, loss_value
from tests.core.conftest import World, draws
from tests.refusals import refused


def adapter_loss(world, t5=None, **weights):
    return AdapterLoss(world.prompts(t5=t5), AdapterLossWeights(**weights))


# Adapter loss


def test_the_class_prompts_themselves_have_no_error():
    world = World()
    prompts, labels = world.prompts(t5=(3, 10)), torch.tensor([2, 0, 9, 9])
    total, parts = adapter_loss(world, t5=(3, 10))(AdapterOutput(prompts.clip[labels], prompts.t5[labels]), labels)
    assert parts["mse"] == pytest.approx(0, abs=1e-6)
    assert parts["cosine"] == pytest.approx(0, abs=1e-6)
    assert total == pytest.approx(float(parts["contrastive"]), abs=1e-5)


def test_each_part_is_what_its_formula_says():
    world = World()
    prompts, labels = world.prompts().clip, torch.tensor([4, 4, 1])
    outputs = prompts[labels] + torch.randn(3, 1, 24)
    _, parts = adapter_loss(world, temperature=0.5)(AdapterOutput(outputs, None), labels)
    centre = prompts.mean(0)
    wanted, got = (prompts - centre).flatten(1), (outputs - centre).flatten(1)
    assert parts["mse"] == pytest.approx(float((got - wanted[labels]).square().mean() / wanted.square().mean()))
    assert parts["cosine"] == pytest.approx(float(1 - F.cosine_similarity(got, wanted[labels]).mean()))
    logits = F.cosine_similarity(got.unsqueeze(1), wanted.unsqueeze(0), dim=-1) / 0.5
    assert parts["contrastive"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


@pytest.mark.parametrize("closed_form", [False, True])
@pytest.mark.parametrize("enlarged", [1.0, 30.0])
def test_highest_is_an_upper_bound_for_any_input_and_class(closed_form, enlarged):
    prompts = World().prompts(t5=None if closed_form else (3, 10))
    adapters = Adapters(48, prompts, 8, closed_form)
    adapters.load_weights([enlarged * torch.randn_like(weight) for weight in adapters.weights()])
    loss = AdapterLoss(prompts, AdapterLossWeights(mse=0.5, cosine=2.0, contrastive=3.0))
    highest = loss.highest(adapters.reach())
    outputs = adapters(torch.randn(500, 2, 48) * torch.logspace(-3, 6, 500)[:, None, None])
    assert highest.keys() == loss.parts.keys()
    for row in range(500):
        one = AdapterOutput(outputs.clip[row : row + 1], None if outputs.t5 is None else outputs.t5[row : row + 1])
        for kind, value in loss.sides(one, torch.tensor([row % 10])).items():
            assert 0 <= value <= highest[kind]


def test_the_highest_loss_is_reached_by_the_worst_output():
    prompts = ClassPrompts(("a", "b"), torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]]]), None)
    loss = AdapterLoss(prompts, AdapterLossWeights(temperature=2.0))
    worst = loss.sides(AdapterOutput(torch.tensor([[[-3.0, 0.0]]]), None), torch.tensor([0]))["clip"]
    # (3 + 1)^2 / 2 over a variance of 1/2; 1 - -1; ln(1 + e) for the logits -1/2 and 1/2, within 1 + ln 2.
    assert float(worst) == pytest.approx(16 + 2 + math.log(1 + math.e))
    assert loss.highest({"clip": 3.0})["clip"] == pytest.approx(16 + 2 + 1 + math.log(2))


def test_an_output_at_the_centre_of_crowded_prompts_is_not_rewarded():
    world = World()
    labels = torch.arange(10)
    centre = world.prompts().clip.mean(0).expand(10, 1, 24)
    _, parts = adapter_loss(world)(AdapterOutput(centre + 0.01 * torch.randn(10, 1, 24), None), labels)
    assert parts["cosine"] > 0.5


def test_outputs_with_and_without_a_token_axis_have_the_same_loss():
    """(B, 1, D) against (B, D) must not broadcast to (B, B, D)."""
    world = World()
    labels = torch.tensor([0, 3, 3, 7])
    outputs = torch.randn(4, 1, 24)
    loss = adapter_loss(world)
    assert torch.equal(
        loss(AdapterOutput(outputs, None), labels)[0], loss(AdapterOutput(outputs[:, 0], None), labels)[0]
    )


def test_targets_that_would_broadcast_over_the_tokens_are_refused():
    world = World()
    prompts = world.prompts(clip_tokens=5)
    loss = AdapterLoss(prompts, AdapterLossWeights())
    outputs, labels = AdapterOutput(torch.randn(4, 5, 24), None), torch.tensor([0, 3, 3, 7])
    with refused(RuntimeError, 24, 120):
        loss(outputs, labels, AdapterOutput(prompts.clip[:, :1], None))
    with refused(RuntimeError, 24, 120):
        loss(AdapterOutput(outputs.clip[:, :1], None), labels)


def test_targets_affect_mse_and_cosine_but_not_the_contrastive_term():
    world = World()
    prompts, labels = world.prompts(), torch.tensor([0, 3, 5])
    outputs = torch.randn(3, 1, 24)
    targets = world.prompts().clip.clone()
    targets[labels] = outputs
    loss = adapter_loss(world)
    _, own = loss(AdapterOutput(outputs, None), labels)
    _, theirs = loss(AdapterOutput(outputs, None), labels, AdapterOutput(targets[labels], None))
    assert theirs["mse"] == pytest.approx(0, abs=1e-6)
    assert theirs["cosine"] == pytest.approx(0, abs=1e-6)
    assert theirs["contrastive"] == own["contrastive"]
    assert own["mse"] > 0.1
    assert prompts.clip.shape == targets.shape


def test_clip_and_t5_both_affect_the_loss():
    world = World()
    clip, t5 = torch.randn(2, 1, 24, requires_grad=True), torch.randn(2, 3, 10, requires_grad=True)
    total, _ = adapter_loss(world, t5=(3, 10))(AdapterOutput(clip, t5), torch.tensor([1, 2]))
    total.backward()
    assert clip.grad.abs().sum() > 0
    assert t5.grad.abs().sum() > 0


def test_the_loss_is_the_mean_of_its_sides_and_each_is_that_of_its_prompts_alone():
    world = World()
    prompts, labels = world.prompts(t5=(3, 10)), torch.tensor([1, 2])
    outputs = AdapterOutput(torch.randn(2, 1, 24), torch.randn(2, 3, 10))
    loss = adapter_loss(world, t5=(3, 10), mse=0.5, temperature=0.3)
    sides = {kind: float(value.mean()) for kind, value in loss.sides(outputs, labels).items()}
    weights = loss.weights
    assert list(sides) == ["clip", "t5"]
    for kind, alone in (("clip", prompts.clip), ("t5", prompts.t5)):
        as_clip = AdapterLoss(ClassPrompts(prompts.names, alone, None), weights)
        assert sides[kind] == pytest.approx(float(as_clip(AdapterOutput(getattr(outputs, kind), None), labels)[0]))
    assert float(loss(outputs, labels)[0]) == pytest.approx(sum(sides.values()) / 2)


def test_a_single_class_has_a_finite_loss():
    world = World(classes=1)
    total, _ = adapter_loss(world)(AdapterOutput(torch.randn(3, 1, 24), None), torch.zeros(3, dtype=torch.long))
    assert total.isfinite()


# VAE loss


SCHEDULES, VARIANCES = ("constant", "linear", "cyclical"), ("unit", "optimal", "learned")


def vae_losses():
    """Every kind of loss, as arguments of `vae_loss`."""
    names = ("beta_schedule", "variance", "free_bits", "similarity_weight")
    return [dict(zip(names, values, strict=True)) for values in product(SCHEDULES, VARIANCES, (0.0, 0.3), (0.0, 0.5))]


def vae_loss(beta_schedule, variance, free_bits, similarity_weight):
    loss = VAELoss(beta_schedule, 0.7, 6, variance, free_bits, similarity_weight)
    if loss.log_variance is not None:
        torch.nn.init.constant_(loss.log_variance, -0.5)
    return loss


def batch(rows=6, width=20, latent=4):
    return torch.randn(rows, width), torch.randn(rows, width), torch.randn(rows, latent), torch.randn(rows, latent)


@pytest.mark.parametrize("variance", ["unit", "optimal"])
@pytest.mark.parametrize(("width", "latent"), [(8, 4), (640, 4), (20, 64)])
def test_the_total_is_the_negative_elbo_per_dimension_at_any_width(variance, width, latent):
    recon, x, mu, logvar = batch(width=width, latent=latent)
    total = VAELoss(variance=variance)(recon, x, mu, logvar, 0).total
    posterior = Independent(Normal(mu, (0.5 * logvar).exp()), 1)
    prior = Independent(Normal(torch.zeros(latent), torch.ones(latent)), 1)
    deviation = torch.ones(()) if variance == "unit" else (recon - x).square().mean().sqrt()
    likelihood = Independent(Normal(recon, deviation), 1).log_prob(x)
    elbo = (likelihood - kl_divergence(posterior, prior)).mean()
    left_out = 0.5 * math.log(2 * math.pi) if variance == "unit" else 0.0
    assert total == pytest.approx(float(-elbo / width) - left_out, rel=1e-5)


@pytest.mark.parametrize("variance", ["unit", "optimal"])
@pytest.mark.parametrize("times", [2, 17])
def test_repeating_data_and_latent_changes_neither_the_total_nor_the_proportion_of_terms(variance, times):
    tensors = batch()
    loss = VAELoss(variance=variance, similarity_weight=0.1)
    once, repeated = loss(*tensors, 0), loss(*(tensor.repeat(1, times) for tensor in tensors), 0)
    for one, other in zip(once, repeated, strict=True):
        torch.testing.assert_close(one, other)


def test_rows_with_tokens_have_the_same_loss_as_flat_rows():
    """(B, 1, D) against (B, D) must not broadcast to (B, B, D)."""
    recon, x, mu, logvar = batch()
    loss = VAELoss(similarity_weight=1.0)
    flat = loss(recon, x, mu, logvar, 0)
    assert torch.equal(loss(recon.unsqueeze(1), x, mu, logvar, 0).total, flat.total)
    assert torch.equal(loss(recon.view(6, 4, 5), x.view(6, 4, 5), mu, logvar, 0).total, flat.total)


@pytest.mark.parametrize("epoch", [0, 3, 6])
@pytest.mark.parametrize("settings", vae_losses(), ids=str)
def test_the_terms_are_given_for_each_row_and_add_up_to_the_loss(settings, epoch):
    total, *terms = vae_loss(**settings)(*batch(), epoch)
    assert [term.shape for term in terms] == [(6,)] * 3
    assert not any(term.requires_grad for term in terms)
    assert float(sum(term.mean() for term in terms)) == pytest.approx(total.item(), abs=1e-5)


@pytest.mark.parametrize("variance", VARIANCES)
def test_each_rows_terms_are_its_likelihood_kl_and_cosine_with_their_weights(variance):
    recon, x, mu, logvar = batch()
    loss = vae_loss("linear", variance, free_bits=0.0, similarity_weight=0.1)
    _, reconstruction, kl, similarity = loss(recon, x, mu, logvar, 3)  # beta is 0.7 x 3 / 6 there
    deviation = {
        "unit": torch.ones(()),
        "optimal": (recon - x).square().mean().sqrt(),
        "learned": torch.tensor(-0.5).exp().sqrt(),
    }[variance]
    likelihood = Normal(recon, deviation).log_prob(x).mean(dim=1)
    left_out = 0.5 * math.log(2 * math.pi) if variance == "unit" else 0.0
    torch.testing.assert_close(reconstruction, -likelihood - left_out)
    divergence = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(kl, 0.35 * divergence / 20)
    torch.testing.assert_close(similarity, 0.1 * (1 - F.cosine_similarity(recon, x, dim=1)))


@pytest.mark.parametrize("settings", vae_losses(), ids=str)
def test_a_decoder_may_supply_its_own_likelihood(settings):
    log_likelihood = torch.randn(6, requires_grad=True)
    total, *terms = vae_loss(**settings)(*batch(), 3, log_likelihood=log_likelihood)
    torch.testing.assert_close(terms[0], -log_likelihood.detach() / 20)
    assert float(sum(term.mean() for term in terms)) == pytest.approx(total.item(), abs=1e-5)
    total.backward()
    torch.testing.assert_close(log_likelihood.grad, torch.full((6,), -1 / 120))


def test_units_below_the_free_bits_count_the_same_for_every_row():
    recon, x, mu, logvar = batch()
    mu[:, 0], logvar[:, 0] = 0.1 * mu[:, 0], 0.0  # it carries next to nothing
    kl = VAELoss(free_bits=0.2)(recon, x, mu, logvar, 0).kl
    others = kl_divergence(Normal(mu[:, 1:], (0.5 * logvar[:, 1:]).exp()), Normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(kl, (others + 0.2) / 20)


def test_the_loss_is_negative_if_the_density_exceeds_one():
    _, x, mu, logvar = batch()
    surest = 1 / math.sqrt(2 * math.pi * math.e)  # 0.24
    losses = [VAELoss(beta_max=0.0)(x + error, x, mu, logvar, 0).total for error in (1.1 * surest, 0.9 * surest)]
    assert losses[0] > 0 > losses[1]


def test_a_perfect_reconstruction_has_a_finite_loss_and_gradient():
    _, x, mu, logvar = batch()
    recon = x.clone().requires_grad_()
    total = VAELoss()(recon, x, mu, logvar, 0).total
    total.backward()
    assert total.isfinite()
    assert recon.grad.isfinite().all()


def test_a_constant_schedule_never_changes():
    assert [VAELoss("constant", 0.7, 10).beta(epoch) for epoch in (0, 5, 1000)] == [0.7, 0.7, 0.7]


def test_a_linear_schedule_rises_from_zero_and_stays():
    assert [VAELoss("linear", 2.0, 10).beta(epoch) for epoch in (0, 5, 10, 1000)] == [0.0, 1.0, 2.0, 2.0]


def test_the_guides_name_of_the_weight_is_the_same():
    class Doubled(VAELoss):
        def beta(self, epoch):
            return 2 * super().beta(epoch)

    assert [Doubled("linear", 2.0, 10)._get_beta(epoch) for epoch in (0, 5)] == [0.0, 2.0]


def test_a_cyclical_schedule_rises_for_half_a_cycle_and_starts_again():
    loss = VAELoss("cyclical", 2.0, 8)
    assert [loss.beta(epoch) for epoch in range(9)] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 0.0]
    assert loss.beta(8 * 7 + 2) == 1.0


def test_the_epoch_sets_the_weight_of_the_kl_term():
    tensors = batch()
    loss = VAELoss("linear", 1.0, 10, variance="unit")
    start, end = loss(*tensors, 0), loss(*tensors, 10)
    torch.testing.assert_close(end.total - start.total, end.kl.mean())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"beta_schedule": "cosine"}, ("beta_schedule='cosine'", "constant", "linear", "cyclical")),
        ({"variance": "best"}, ("variance='best'", "unit", "optimal", "learned")),
        ({"beta_max": -1.0}, ("beta_max=-1",)),
        ({"beta_epochs": 0}, ("beta_epochs=0",)),
    ],
)
def test_an_unknown_setting_is_an_error_that_names_it(arguments, named):
    with refused(ValueError, *named):
        VAELoss(**arguments)


def test_loss_value_is_the_total_for_every_return_type():
    scalar = torch.tensor(3.0)
    assert loss_value(scalar) is scalar
    assert loss_value((scalar, torch.zeros(2))) is scalar
    parts = VAELoss()(*batch(), 0)
    assert loss_value(parts) is parts.total


def test_the_best_learned_variance_is_the_mean_squared_error():
    loss = VAELoss(variance="learned")
    random = draws(0)
    x, recon = torch.randn(200, 30, generator=random), torch.zeros(200, 30)
    latent = torch.zeros(200, 2)
    optimiser = torch.optim.LBFGS(loss.parameters(), line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        total = loss(recon, 0.2 * x, latent, latent, 0).total
        total.backward()
        return total

    optimiser.step(closure)
    assert loss.log_variance.exp().item() == pytest.approx((0.2 * x).square().mean().item(), rel=1e-3)
    # There, it is worth what the closed form is worth.
    best = VAELoss(variance="optimal")(recon, 0.2 * x, latent, latent, 0).total
    torch.testing.assert_close(closure().detach(), best)


def test_unseen_classes_are_not_negatives_of_the_contrastive_term():
    world = World()
    prompts, weights = world.prompts(), AdapterLossWeights(mse=0.0, cosine=0.0)
    unseen = torch.zeros(10, dtype=torch.bool)
    unseen[7] = True
    near = AdapterOutput(prompts.clip[[7]], None)  # an output that looks like the unseen class, of class 0
    label = torch.tensor([0])
    plain, masked = (AdapterLoss(prompts, weights, mask)(near, label)[0] for mask in (None, unseen))
    assert masked < plain
    same = AdapterLoss(prompts, weights, torch.zeros(10, dtype=torch.bool))(near, label)[0]
    assert torch.equal(same, plain)
