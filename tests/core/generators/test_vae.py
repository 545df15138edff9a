import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fed_a2v.core.generators.vae import ConditionedVAEGenerator
from fed_a2v.core.losses import VAELoss
from fed_a2v.core.statistics import PrototypeBatch
from fed_a2v.core.validation import active_units
from tests.core.conftest import World, assert_same_bits, draws, through_a_file
from tests.core.test_losses import vae_loss, vae_losses
from tests.refusals import refused


def generator_for(world, **settings):
    torch.manual_seed(7)
    shape = (world.shape[1], world.conditions.shape[1], 64, 8, world.shape[0])
    return ConditionedVAEGenerator(*shape, **{"learning_rate": 2e-3, **settings})


def trained(world, epochs=60, noise=0.1, rows=None, **settings):
    generator = generator_for(world, **settings)
    generator.fit(rows or world.rows(), world.conditions, epochs, noise, draws(0))
    return generator


@pytest.fixture(scope="module")
def generator(world):
    torch.set_num_threads(1)
    return trained(world)


class Watched(nn.Module):
    """A loss that records its arguments and results, and returns a scalar by default."""

    def __init__(self, inner=None, parts=False):
        super().__init__()
        self.inner = inner or VAELoss("linear", beta_epochs=8)
        self.parts = parts
        self.calls = []
        self.totals = []

    def forward(self, recon_x, x, mu, logvar, epoch):
        self.calls.append((x.clone(), mu.detach().clone(), epoch))
        loss = self.inner(recon_x, x, mu, logvar, epoch)
        self.totals.append(loss.total.item())
        return loss if self.parts else loss.total


class GuideLoss(VAELoss):
    """The custom loss of the guide, word by word: KL summed over rows and latent, reconstruction averaged."""

    def forward(self, recon_x, x, mu, logvar, epoch):
        recon_loss = F.mse_loss(recon_x, x, reduction="mean")
        beta = self._get_beta(epoch)
        kl_loss = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        sim_loss = 1 - F.cosine_similarity(recon_x, x, dim=-1).mean()
        return recon_loss + beta * kl_loss + 0.1 * sim_loss


# Construction and forward


def test_the_constructor_has_the_guides_signature_and_defaults():
    parameters = list(inspect.signature(ConditionedVAEGenerator).parameters.values())
    given = [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert given == [
        ("input_dim", 512),
        ("visual_dim", 768),
        ("hidden_dim", 1024),
        ("latent_dim", 256),
        ("sequence_length", 1),
    ]


@pytest.mark.parametrize(("tokens", "shape"), [(1, (6, 512)), (1, (6, 1, 512)), (3, (6, 3, 512))])
def test_forward_gives_reconstruction_mean_and_log_variance(tokens, shape):
    generator = ConditionedVAEGenerator(512, hidden_dim=32, latent_dim=16, sequence_length=tokens)
    recon, mu, logvar = generator(torch.randn(shape), torch.randn(6, 768))
    assert recon.shape == shape
    assert mu.shape == logvar.shape == (6, 16)


def test_a_condition_per_row_equals_row_by_row(world, generator):
    clips, labels = world.clips(3)
    order = torch.randperm(30, generator=draws(0))
    x, conditions = clips[order], world.conditions[labels[order]]
    together = generator(x, conditions)
    for row in range(30):
        alone = generator(x[row : row + 1], conditions[row])
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one, other[row : row + 1], rtol=1e-4, atol=1e-4)


def test_the_condition_of_a_row_changes_its_reconstruction(world, generator):
    x = world.clips(1)[0][:1]
    right, wrong = generator(x, world.conditions[0])[0], generator(x, world.conditions[1])[0]
    assert (right - wrong).abs().max() > 0.1


def test_the_latent_is_drawn_in_training_and_is_the_mean_otherwise(world):
    generator = generator_for(world)
    x = torch.randn(4, 48)
    generator.train()
    assert not torch.equal(generator(x, world.conditions[0])[0], generator(x, world.conditions[0])[0])
    generator.eval()
    assert torch.equal(generator(x, world.conditions[0])[0], generator(x, world.conditions[0])[0])


def test_t5_prompts_condition_it_as_the_guide_shows():
    world = World(classes=2, width=512, tokens=17, condition=4096)
    generator = ConditionedVAEGenerator(
        input_dim=512, visual_dim=4096, hidden_dim=1024, latent_dim=512, sequence_length=17
    )
    losses = generator.fit(world.rows(groups=2), world.conditions, 2, 0.1, draws(0))
    assert len(losses) == 2
    t5 = world.conditions[:1, None].repeat(1, 17, 1)
    samples = generator.sample(3, t5)
    assert samples.shape == (3, 17, 512)
    assert samples.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"input_dim": 0}, "input_dim=0"), ({"hidden_dim": -1}, "hidden_dim=-1"), ({"latent_dim": 0}, "latent_dim=0")],
)
def test_a_size_out_of_range_is_an_error_that_names_it(settings, named):
    with refused(ValueError, named):
        ConditionedVAEGenerator(**settings)


# Sampling


@pytest.mark.parametrize("shape", [{"width": 48}, {"width": 16, "tokens": 3}], ids=["one token", "three tokens"])
def test_samples_are_as_many_different_rows_as_asked_for(shape):
    world = World(**shape)
    rows = trained(world, epochs=2).sample(7, world.conditions[2])
    assert rows.shape == (7, *world.shape)
    assert len(rows.flatten(1).unique(dim=0)) == 7


def test_samples_arrive_on_the_device_that_is_asked_for(world, generator):
    assert generator.sample(2, world.conditions[0]).device.type == "cpu"
    assert generator.sample(2, world.conditions[0], "meta").device.type == "meta"


def test_samples_are_of_their_class_and_as_spread_as_clips(world, generator):
    samples = generator.sample_classes(world.conditions, 60, draws(0))
    labels = torch.arange(10).repeat_interleave(60)
    assert samples.shape == (10, 60, 1, 48)
    assert (world.nearest_class(samples.flatten(0, 1)) == labels).float().mean() > 0.9
    assert 0.7 < world.variance_ratio(samples.flatten(0, 1), labels) < 1.3


def test_every_row_of_a_mixed_batch_is_of_its_own_class(world, generator):
    labels = torch.randperm(40, generator=draws(0)) % 10
    rows = generator.sample(40, world.conditions[labels])
    assert (world.nearest_class(rows) == labels).float().mean() > 0.9


@pytest.mark.parametrize("condition", [lambda c: c, lambda c: c[None], lambda c: c.repeat(1, 77, 1)])
def test_a_class_is_found_by_a_vector_a_row_or_its_tokens(world, generator, condition):
    rows = generator.sample(20, condition(world.conditions[4]))
    assert (world.nearest_class(rows) == 4).float().mean() > 0.9


def test_an_output_near_a_classs_prompt_finds_that_class(world, generator):
    near = world.conditions[4] + 0.1 * torch.randn(24, generator=draws(0))
    assert (world.nearest_class(generator.sample(20, near)) == 4).float().mean() > 0.9


def test_unknown_conditions_are_decoded_beside_known_ones(world, generator):
    unknown = torch.randn(5, 24, generator=draws(8))
    rows = generator.sample(10, torch.cat([unknown, world.conditions[:5]]))
    assert rows.shape == (10, 1, 48)
    assert rows.isfinite().all()
    assert (world.nearest_class(rows[5:]) == torch.arange(5)).all()
    assert len(rows.flatten(1).unique(dim=0)) == 10


def test_sampling_works_before_any_training(world):
    rows = generator_for(world).sample(3, world.conditions[0])
    assert rows.shape == (3, 1, 48)
    assert rows.isfinite().all()


def test_the_same_seed_samples_the_same_bits_whatever_the_global_state(world, generator):
    one = generator.sample(5, world.conditions[0], random=draws(3))
    torch.manual_seed(99)
    assert torch.equal(one, generator.sample(5, world.conditions[0], random=draws(3)))
    assert not torch.equal(one, generator.sample(5, world.conditions[0], random=draws(4)))


def test_a_condition_of_the_wrong_width_is_an_error_with_both_widths(world, generator):
    with refused(ValueError, "visual_condition", 78, 24):
        generator.sample(3, torch.randn(78))
    with refused(ValueError, "visual_condition", 78, 24):
        generator(torch.randn(3, 48), torch.randn(3, 78))


@pytest.mark.parametrize("shape", [(41, 24), (41, 77, 24)])
def test_the_wrong_number_of_conditions_is_an_error_with_both_numbers(generator, shape):
    with refused(ValueError, "visual_condition", 41, 38):
        generator.sample(38, torch.randn(shape))


# Training


def test_outputs_are_unbounded():
    world = World(scale=50, offset=100)
    generator = trained(world)
    clips, labels = world.clips(24)
    recon = generator(clips, world.conditions[labels])[0]
    # Whatever the units: rows reach further than any bounded activation lets them.
    assert ((recon - clips.mean(0)) / clips.std(0)).abs().max() > 2
    assert (recon - clips).square().mean() < 0.3 * clips.var()
    samples = generator.sample_classes(world.conditions, 60, draws(0)).flatten(0, 1)
    labels = torch.arange(10).repeat_interleave(60)
    assert (world.nearest_class(samples) == labels).float().mean() > 0.9
    assert 0.7 < world.variance_ratio(samples, labels) < 1.3


def test_non_negative_data_gives_non_negative_samples_of_the_right_class():
    world = World(non_negative=True)
    generator = trained(world)
    samples = generator.sample_classes(world.conditions, 60, draws(0)).flatten(0, 1)
    assert samples.min() == 0
    assert (world.nearest_class(samples) == torch.arange(10).repeat_interleave(60)).float().mean() > 0.9
    assert generator.sample(5, torch.randn(24)).min() >= 0


def test_signed_data_gives_signed_samples(world, generator):
    assert generator.sample(20, world.conditions[0]).min() < -1
    assert generator.sample(20, torch.randn(24)).min() < 0


def test_the_posterior_does_not_collapse_within_the_classes(world, generator):
    clips, labels = world.clips(24)
    assert active_units(generator.posterior(clips, world.conditions[labels])[0], labels) > 0
    naive = trained(world, loss=GuideLoss())
    assert active_units(naive.posterior(clips, world.conditions[labels])[0], labels) == 0


def test_a_users_own_loss_that_returns_a_scalar_works(world):
    generator = generator_for(world, loss=GuideLoss(beta_max=1e-4))
    losses = generator.fit(world.rows(), world.conditions, 30, 0.1, draws(0))
    assert losses[-1].total < losses[0].total
    assert losses[0].parts == losses[0].per_class == {}
    assert generator.sample(3, world.conditions[0]).shape == (3, 1, 48)
    generator_for(world, loss=GuideLoss()).load_checkpoint(through_a_file(generator.checkpoint()))


@pytest.mark.parametrize("settings", vae_losses(), ids=str)
def test_the_loss_that_is_trained_is_the_sum_of_its_terms_and_the_mean_of_the_classes(settings):
    world = World(classes=4)
    rows = world.rows(groups=12)
    rows = rows.index_select((rows.labels != 1) | (torch.arange(48) % 12 == 0))  # 12, 1, 12 and 12 of the classes
    # Batches of 32 and 12: a class with more rows in the second counts no more than the others.
    loss = Watched(vae_loss(**settings), parts=True)
    losses = generator_for(world, loss=loss, batch_size=32).fit(rows, world.conditions, 3, 0.1, draws(0))
    trained_on = torch.tensor([12.0, 8.0, 12.0, 12.0])  # a rare class gets rows drawn from its moments
    assert len(losses) == 3
    for epoch, first, second in zip(losses, loss.totals[::2], loss.totals[1::2], strict=True):
        assert epoch.total == pytest.approx((32 * first + 12 * second) / 44, abs=1e-5)
        assert epoch.parts.keys() == {"reconstruction", "kl", "similarity"}
        assert sum(epoch.parts.values()) == pytest.approx(epoch.total, abs=1e-5)
        assert tuple(epoch.per_class) == world.names
        by_class = torch.tensor([sum(parts.values()) for parts in epoch.per_class.values()])
        assert float(trained_on @ by_class) / 44 == pytest.approx(epoch.total, abs=1e-5)


def test_noise_is_on_the_input_and_never_on_the_target(world):
    frozen = {"learning_rate": 0.0, "weight_decay": 0.0}
    seen = {}
    for noise in (0.0, 5.0):
        loss = Watched()
        trained(world, epochs=3, noise=noise, loss=loss, **frozen)
        seen[noise] = [torch.cat([call[part] for call in loss.calls]) for part in (0, 1)]
    targets, inputs = ({noise: len(both[part].unique(dim=0)) for noise, both in seen.items()} for part in (0, 1))
    # 80 rows three times: clean targets repeat in every epoch, noisy inputs never.
    assert targets == {0.0: 80, 5.0: 80}
    assert inputs[5.0] == 240
    assert torch.equal(seen[0.0][0].unique(dim=0), seen[5.0][0].unique(dim=0))
    spread = [float(seen[noise][1].std()) for noise in (0.0, 5.0)]
    assert spread[1] > 1.5 * spread[0]


def test_a_batch_holds_rows_of_many_classes_each_with_its_own_condition(world):
    loss = Watched()
    generator = trained(world, epochs=1, loss=loss, batch_size=40)
    assert [len(x) for x, _, _ in loss.calls] == [40, 40]
    classes = world.nearest_class(generator._restore(loss.calls[0][0]).unsqueeze(1)).unique()
    assert len(classes) > 5


def test_epochs_are_counted_over_the_whole_life(world):
    loss = Watched()
    generator = generator_for(world, loss=loss)
    for _ in range(2):
        generator.fit(world.rows(), world.conditions, 5, 0.1, draws(0))
    assert [epoch for _, _, epoch in loss.calls] == list(range(10))
    back = generator_for(world, loss=loss)
    back.load_checkpoint(through_a_file(generator.checkpoint()))
    back.fit(world.rows(), world.conditions, 1, 0.1, draws(0))
    assert loss.calls[-1][2] == 10


def test_the_optimiser_lives_on_across_fits(world):
    generator = generator_for(world)
    moments = []
    for _ in range(2):
        generator.fit(world.rows(), world.conditions, 5, 0.1, draws(0))
        moments.append(generator.training_state()["optimiser"]["state"][0])
    assert moments[-1]["step"] == 10
    assert moments[-1]["exp_avg_sq"].any()


def test_the_standardisation_is_taken_once(world):
    generator = trained(world, epochs=1)
    mean = generator.input_mean.clone()
    shifted = world.rows()
    shifted.embeddings.add_(3)
    generator.fit(shifted, world.conditions, 1, 0.1, draws(0))
    assert torch.equal(generator.input_mean, mean)


@pytest.mark.parametrize("closed_form", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(world, noise, closed_form):
    def fit(generator, seed):
        generator.fit(world.rows(seed=seed), world.conditions, 5, noise, draws(seed))

    uninterrupted, stopped = (generator_for(world, closed_form=closed_form) for _ in range(2))
    fit(uninterrupted, 1)
    fit(stopped, 1)
    resumed = ConditionedVAEGenerator(48, 24, 64, 8, 1, closed_form=closed_form, learning_rate=2e-3)
    resumed.load_checkpoint(through_a_file(stopped.checkpoint()))
    one, other = (each.sample(4, world.conditions[2], None, draws(5)) for each in (stopped, resumed))
    assert torch.equal(one, other)
    fit(uninterrupted, 2)
    fit(resumed, 2)
    assert_same_bits(resumed.checkpoint(), uninterrupted.checkpoint())
    one, other = (each.sample(4, world.conditions[2], None, draws(6)) for each in (uninterrupted, resumed))
    assert torch.equal(one, other)
    # The weights alone would not do: optimiser and epoch are needed as well.
    fit(stopped, 2)
    forgetful = generator_for(world, closed_form=closed_form)
    forgetful.load_state_dict(stopped.state_dict())
    fit(stopped, 3)
    fit(forgetful, 3)
    assert not torch.equal(stopped.encoder[0].weight, forgetful.encoder[0].weight)


def test_the_same_seed_trains_the_same_bits_whatever_the_global_state(world):
    states = []
    for start in (0, 1):
        generator = generator_for(world)
        torch.manual_seed(start)
        generator.fit(world.rows(), world.conditions, 3, 0.1, draws(0))
        states.append(generator.checkpoint())
    assert_same_bits(*states)


def test_a_checkpoint_of_other_dimensions_does_not_load(world):
    with refused(RuntimeError, "ConditionedVAEGenerator", "torch.Size([48])", "torch.Size([32])"):
        generator_for(World(width=32)).load_checkpoint(trained(world, epochs=1).checkpoint())


# Kinds of data


def test_dead_columns_survive(world):
    rows = world.rows()
    rows.embeddings[:, :, :6] = 4
    rows.variances[:, :, :6] = 0
    generator = trained(world, rows=rows)
    samples = generator.sample(50, world.conditions[0])
    assert samples.isfinite().all()
    torch.testing.assert_close(samples[..., :6], torch.full((50, 1, 6), 4.0), rtol=1e-3, atol=1e-3)
    assert generator.sample(5, torch.randn(24)).isfinite().all()


def test_data_without_any_variance_is_supported(world):
    rows = world.rows()
    rows.embeddings.fill_(3)
    rows.variances.zero_()
    assert trained(world, epochs=5, rows=rows).sample(3, world.conditions[0]).isfinite().all()


@pytest.mark.parametrize("variance", [True, False])
@pytest.mark.parametrize("classes", [1, 10])
def test_one_mean_a_class_is_enough(classes, variance):
    world = World(classes=classes)
    generator = trained(world, rows=world.rows(groups=1, size=24, variance=variance))
    samples = generator.sample_classes(world.conditions, 40, draws(0)).flatten(0, 1)
    labels = torch.arange(classes).repeat_interleave(40)
    assert samples.isfinite().all()
    assert (world.nearest_class(samples) == labels).float().mean() > 0.9
    if variance:
        assert 0.7 < world.variance_ratio(samples, labels) < 1.3


def test_uneven_classes_keep_their_own_spread():
    world = World(classes=4)
    rows = world.rows(groups=12)
    keep = torch.ones(48, dtype=torch.bool)
    keep[1:12], keep[15:24] = False, False
    generator = trained(world, rows=rows.index_select(keep))
    samples = generator.sample_classes(world.conditions, 60, draws(0)).flatten(0, 1)
    labels = torch.arange(4).repeat_interleave(60)
    assert (world.nearest_class(samples) == labels).float().mean() > 0.9
    assert 0.7 < world.variance_ratio(samples, labels) < 1.3


@pytest.mark.parametrize("closed_form", [False, True])
def test_classes_may_come_and_go_between_fits(closed_form):
    world = World()
    rows = world.rows()
    first = rows.index_select(rows.labels < 3)
    generator = generator_for(world, closed_form=closed_form)
    early = PrototypeBatch(first.embeddings, first.labels, first.counts, first.variances, world.names[:3])
    generator.fit(early, world.conditions[:3], 30, 0.1, draws(0))
    generator.fit(rows, world.conditions, 60, 0.1, draws(1))
    samples = generator.sample_classes(world.conditions, 30, draws(0)).flatten(0, 1)
    assert (world.nearest_class(samples) == torch.arange(10).repeat_interleave(30)).float().mean() > 0.9


# The network alone


def test_its_likelihood_of_clips_of_their_own_class_is_the_larger(world, generator):
    clips, labels = world.clips(3)
    noise = torch.full((48,), 0.1)
    right, wrong = (
        generator.log_likelihood(clips, world.conditions[of], noise, draws(1)) for of in (labels, (labels + 1) % 10)
    )
    assert right.shape == (30,)
    assert (right > wrong).float().mean() > 0.9


def test_its_likelihood_is_one_of_the_embeddings_in_their_own_units(world):
    """A density of rows that are ten times as large is, for each column, a tenth."""
    large = World(scale=10.0)
    small, other = (
        trained(each, epochs=2).log_likelihood(
            each.clips(2)[0], each.conditions[each.clips(2)[1]], torch.full((48,), 0.1 * each.scale), draws(1)
        )
        for each in (world, large)
    )
    torch.testing.assert_close(other, small - 48 * torch.tensor(10.0).log(), rtol=1e-3, atol=0.1)


def test_raw_samples_have_no_calibration(world, generator):
    labels = torch.arange(10).repeat_interleave(50)
    before = trained(world, epochs=0)
    raw = before.sample_raw(world.conditions[labels], draws(0))
    assert raw.shape == (500, 1, 48)
    assert torch.isfinite(raw).all()
    assert (world.nearest_class(raw) == labels).float().mean() < 0.5
    assert (world.nearest_class(before.sample(500, world.conditions[labels], None, draws(0))) == labels).all()
    raw = generator.sample_raw(world.conditions[labels], draws(0))
    assert (world.nearest_class(raw) == labels).float().mean() > 0.8


@pytest.mark.parametrize("closed_form", [False, True])
def test_what_is_reconstructed_is_what_forward_gives(world, closed_form):
    made = trained(world, epochs=2, closed_form=closed_form)
    clips, labels = world.clips(2)
    rows = made.reconstruct(clips, world.conditions[labels])
    assert torch.equal(rows, made(clips, world.conditions[labels])[0])


# A start in closed form


@pytest.mark.parametrize("shape", [{"width": 48}, {"width": 16, "tokens": 3}], ids=["one token", "three tokens"])
@pytest.mark.parametrize("epochs", [0, 30])
def test_from_the_closed_form_samples_are_of_their_class_and_as_spread_as_clips(shape, epochs):
    world = World(**shape)
    made = trained(world, epochs, closed_form=True)
    labels = torch.arange(10).repeat_interleave(100)
    for samples in (made.sample(1000, world.conditions[labels], None, draws(0)),):
        assert samples.shape == (1000, *world.shape)
        assert (world.nearest_class(samples) == labels).float().mean() > 0.95
        assert 0.8 < world.variance_ratio(samples, labels) < 1.25
    assert (world.nearest_class(made.sample_raw(world.conditions[labels], draws(0))) == labels).float().mean() > 0.9


def test_its_loss_is_the_negative_elbo_and_falls(world):
    losses = generator_for(world, closed_form=True).fit(world.rows(), world.conditions, 40, 0.1, draws(0))
    assert losses[-1].total < losses[0].total
    assert sum(losses[-1].parts.values()) == pytest.approx(losses[-1].total, abs=1e-4)
    assert set(losses[-1].per_class) == set(world.names)


def test_a_custom_loss_gets_the_likelihood(world):
    told = []

    def loss(recon_x, x, mu, logvar, epoch, log_likelihood):
        told.append(log_likelihood.shape)
        return -log_likelihood.mean()

    trained(world, epochs=1, closed_form=True, loss=loss)
    assert told == [(80,)]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_untrained_it_is_as_it_started_and_the_trained_one_stays_as_it_is(world, ema):
    made = trained(world, epochs=20, closed_form=True, ema=ema)
    before, kept = trained(world, epochs=0, closed_form=True, ema=ema), made.checkpoint()
    clips, labels = world.clips(2)
    start = made.untrained()
    assert start is not None
    for one, other in zip(
        start.posterior(clips, world.conditions[labels]), before.posterior(clips, world.conditions[labels]), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert not torch.equal(
        start.posterior(clips, world.conditions[labels])[0], made.posterior(clips, world.conditions[labels])[0]
    )
    assert_same_bits(made.checkpoint(), kept)
    assert generator_for(world).untrained() is None


def test_an_unknown_condition_near_known_ones_is_sampled_near_them(world):
    made = trained(world, epochs=10, closed_form=True)
    between = (world.conditions[2] + world.conditions[3]) / 2
    drawn = made.sample(200, between, None, draws(0)).flatten(1).mean(dim=0)
    distance = (world.means - drawn).norm(dim=1)
    assert set(distance.argsort()[:2].tolist()) == {2, 3}
    assert torch.isfinite(generator_for(world, closed_form=True).sample(3, between, None, draws(0))).all()


def test_its_checkpoint_has_the_closed_form_start(world):
    plain, closed = generator_for(world), generator_for(world, closed_form=True)
    assert dict(closed.checkpoint()["dimensions"]).items() - plain.checkpoint()["dimensions"].items() == {
        ("closed_form", 1)
    }


# Variants


def test_an_unconditioned_vae_still_draws_each_known_class(world):
    generator = trained(world, conditional=False)
    assert generator.condition_map is None
    samples = generator.sample_classes(world.conditions, 40, draws(0)).flatten(0, 1)
    labels = torch.arange(10).repeat_interleave(40)
    assert (world.nearest_class(samples) == labels).float().mean() > 0.95


def test_an_unconditioned_network_does_not_see_the_condition(world):
    generator = trained(world, epochs=2, conditional=False)
    clips, _ = world.clips(1)
    one, other = (generator(clips, world.conditions[label])[0] for label in (0, 1))
    assert torch.equal(one, other)


def test_sampling_uses_the_running_average_of_the_weights(world):
    generator = trained(world, epochs=20, ema=0.9)
    before = generator.sample(5, world.conditions[0], random=draws(1))
    with torch.no_grad():
        for parameter in generator.decoder.parameters():
            parameter.zero_()
    assert torch.equal(before, generator.sample(5, world.conditions[0], random=draws(1)))
    generator.train()
    assert not torch.equal(before, generator.sample(5, world.conditions[0], random=draws(1)))


def test_the_running_average_follows_the_weights_with_its_decay(world):
    generator = generator_for(world, ema=0.75)
    start = generator.decoder[0].weight.detach().clone()
    generator.fit(world.rows(), world.conditions, 1, 0.0, draws(0))  # one batch: one step
    now = generator.decoder[0].weight.detach()
    average = dict(generator.averaged.networks.named_parameters())["decoder.0.weight"]
    torch.testing.assert_close(average, 0.75 * start + 0.25 * now)


@pytest.mark.parametrize("ema", [-0.1, 1.0])
def test_an_impossible_decay_is_refused(world, ema):
    with refused(ValueError, f"ema={ema}"):
        generator_for(world, ema=ema)


def test_the_learned_variance_is_trained_with_the_network(world):
    loss = VAELoss("linear", beta_max=0.05, beta_epochs=10, variance="learned")
    generator = generator_for(world, loss=loss, batch_size=32, learning_rate=5e-3)
    generator.fit(world.rows(), world.conditions, 100, 0.0, draws(0))
    assert loss.log_variance.detach().exp() < 0.5  # it started at 1


def test_free_bits_keep_latent_units_alive_under_a_heavy_kl_term(world):
    clips, labels = world.clips(24)

    def active(free_bits):
        loss = VAELoss(beta_max=20.0, free_bits=free_bits)
        generator = trained(world, epochs=60, loss=loss, batch_size=32)
        return active_units(generator.posterior(clips, world.conditions[labels])[0], labels)

    assert active(0.0) <= 1
    assert active(0.5) >= 6
