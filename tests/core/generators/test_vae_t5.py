import pytest
import torch

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.core.generators.vae import ConditionedVAEGenerator
from fed_a2v.core.generators.vae_t5 import VAEWithT5Generator
from fed_a2v.core.losses import AdapterLoss, AdapterLossWeights, VAELoss
from fed_a2v.core.metrics import retrieval
from fed_a2v.core.server_step import ServerStep, ServerStepSettings
from fed_a2v.federation.server.step_factory import make_generator
from tests.core.conftest import assert_same_bits, draws, through_a_file
from tests.core.test_generator_training import OwnLoss
from tests.refusals import refused

T5 = (3, 40)


def generator_for(**settings):
    torch.manual_seed(7)
    return VAEWithT5Generator(48, 24, 64, 8, t5_dim=T5[1], **{"learning_rate": 2e-3, **settings})


@pytest.fixture(scope="module")
def prompts(world):
    return world.prompts(t5=T5)


@pytest.fixture(scope="module")
def conditions(prompts):
    return generator_for().conditions_from(prompts.clip, prompts.t5)


@pytest.fixture(scope="module")
def generator(world, conditions):
    torch.set_num_threads(1)
    made = generator_for()
    made.fit(world.rows(), conditions, 60, 0.1, draws(0))
    return made


def test_a_condition_is_the_mean_of_the_tokens_of_both_prompts(prompts, conditions):
    assert conditions.shape == (10, 24 + 40)
    torch.testing.assert_close(conditions[3], torch.cat([prompts.clip[3].mean(0), prompts.t5[3].mean(0)]))


def test_without_t5_prompts_there_is_no_condition(prompts):
    with refused(ValueError, "vae_t5", "T5"):
        generator_for().conditions_from(prompts.clip, None)


def test_the_vae_of_clip_is_the_one_that_there_is_without_the_other(world, prompts, generator):
    torch.manual_seed(7)
    alone = ConditionedVAEGenerator(48, 24, 64, 8, learning_rate=2e-3)
    alone.fit(world.rows(), prompts.clip.mean(1), 60, 0.1, draws(0))
    assert_same_bits(alone.checkpoint(), generator.clip.checkpoint())


def test_each_adapter_gets_samples_of_the_vae_of_its_own_condition(world, prompts, conditions, generator):
    clip, t5 = generator.sample_sides(conditions, 20, draws(1))
    assert clip.shape == t5.shape == (10, 20, 1, 48)
    random = draws(1)
    assert torch.equal(clip, generator.clip.sample_classes(prompts.clip.mean(1), 20, random))
    assert torch.equal(t5, generator.t5.sample_classes(prompts.t5.mean(1), 20, random))
    labels = torch.arange(10).repeat_interleave(20)
    for side in (clip, t5):
        assert (world.nearest_class(side.flatten(0, 1)) == labels).float().mean() > 0.9


@torch.no_grad()
def test_the_networks_of_the_second_know_the_class_by_its_t5_prompt_alone(world, prompts, generator):
    conditions = prompts.t5.mean(1)
    frame = generator.t5._frame(conditions, torch.full((10,), -1))
    means = generator.t5._restore(
        generator.t5._decode(torch.zeros(10, 8), generator.t5._condition(conditions), *frame)[0]
    )
    assert torch.equal(world.nearest_class(means), torch.arange(10))


def test_where_one_set_is_wanted_every_second_sample_is_the_seconds(prompts, conditions, generator):
    rows = generator.sample(7, conditions[2], random=draws(1))
    assert len(rows.flatten(1).unique(dim=0)) == 7
    random = draws(1)
    assert torch.equal(rows[::2], generator.clip.sample(4, prompts.clip[2].mean(0), random=random))
    assert torch.equal(rows[1::2], generator.t5.sample(3, prompts.t5[2].mean(0), random=random))


def test_a_clip_condition_alone_asks_the_first(prompts, generator):
    wanted = generator.clip.sample(5, prompts.clip[4].mean(0), random=draws(1))
    assert torch.equal(generator.sample(5, prompts.clip[4].mean(0), random=draws(1)), wanted)


def test_its_density_is_that_of_both_in_equal_parts(world, prompts, conditions, generator):
    clips, labels = world.clips(2)
    noise, random = torch.full((48,), 0.1), draws(1)
    parts = [
        vae.log_likelihood(clips, part[labels], noise, random).exp()
        for vae, part in ((generator.clip, prompts.clip.mean(1)), (generator.t5, prompts.t5.mean(1)))
    ]
    found = generator.log_likelihood(clips, conditions[labels], noise, draws(1))
    torch.testing.assert_close(found.exp(), sum(parts) / 2)
    raw = generator.sample_raw(conditions[labels], draws(1))
    assert torch.equal(raw[::2], generator.clip.sample_raw(prompts.clip.mean(1)[labels][::2], draws(1)))


def test_a_single_sample_can_be_drawn(conditions, generator):
    assert generator.sample(1, conditions[0], "meta").shape == (1, 1, 48)


def test_a_condition_of_the_wrong_width_is_an_error_with_both_widths(generator):
    with refused(ValueError, "visual_condition", 78, 64):
        generator.sample(3, torch.ones(78))


def test_the_loss_is_that_of_both_and_its_terms_stand_apart(world, conditions):
    both = generator_for(loss=VAELoss(variance="learned")).fit(world.rows(), conditions, 3, 0.1, draws(0))
    terms = ("reconstruction", "kl", "similarity")
    for epoch in both:
        assert list(epoch.parts) == [*terms, *(f"t5_{name}" for name in terms)]
        assert sum(epoch.parts.values()) == pytest.approx(epoch.total, abs=1e-5)
        assert list(epoch.per_class) == list(world.names)
        mean = sum(sum(parts.values()) for parts in epoch.per_class.values()) / 10
        assert mean == pytest.approx(epoch.total, abs=1e-5)


def test_a_custom_scalar_loss_is_reported_for_both_vaes(world, conditions):
    (epoch,) = generator_for(loss=OwnLoss()).fit(world.rows(), conditions, 1, 0.1, draws(0))
    assert epoch.parts.keys() == {"clip", "t5"}
    assert sum(epoch.parts.values()) == pytest.approx(epoch.total, abs=1e-5)
    assert epoch.per_class == {}


def test_each_vae_has_its_own_learned_variance(world, conditions):
    loss = VAELoss(variance="learned")
    generator = generator_for(loss=loss)
    assert generator.clip.loss is not generator.t5.loss
    generator.fit(world.rows(), conditions, 2, 0.1, draws(0))
    assert len({part.log_variance.item() for part in (loss, generator.clip.loss, generator.t5.loss)}) == 3


def test_the_posterior_has_the_latents_of_both_vaes(world, prompts, conditions, generator):
    x, labels = world.clips(2)
    mu, logvar = generator.posterior(x, conditions[labels])
    assert mu.shape == logvar.shape == (20, 16)
    assert torch.equal(mu[:, :8], generator.clip.posterior(x, prompts.clip.mean(1)[labels])[0])
    assert torch.equal(mu[:, 8:], generator.t5.posterior(x, prompts.t5.mean(1)[labels])[0])


def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(world, conditions):
    def fit(generator, seed):
        generator.fit(world.rows(seed=seed), conditions, 5, 0.1, draws(seed))

    whole, stopped, resumed = generator_for(), generator_for(), generator_for()
    for generator in (whole, stopped):
        fit(generator, 1)
    resumed.load_checkpoint(through_a_file(stopped.checkpoint()))
    for generator in (whole, resumed):
        fit(generator, 2)
    assert_same_bits(resumed.checkpoint(), whole.checkpoint())


def test_each_vae_has_a_checkpoint_of_its_own(conditions, generator):
    files = {key: through_a_file(checkpoint) for key, checkpoint in generator.checkpoints().items()}
    assert tuple(files) == generator.keys == ("clip", "t5")
    for key, file in files.items():
        assert (file["generator_type"], file["key"], file["family"]) == ("vae_t5", key, ["clip", "t5"])
        assert file["dimensions"] == generator.dimensions
    assert generator.dimensions.items() >= {"visual_dim": 24, "t5_dim": 40}.items()
    again = generator_for()
    again.load_checkpoints(files)
    assert_same_bits(again.checkpoint(), generator.checkpoint())
    one, other = (each.sample(6, conditions[1], random=draws(3)) for each in (again, generator))
    assert torch.equal(one, other)


@pytest.mark.parametrize("settings", [{"t5_dim": 0}, {"latent_dim": 0}])
def test_impossible_settings_are_refused_by_name(settings):
    with refused(ValueError, *(f"{key}={value}" for key, value in settings.items())):
        VAEWithT5Generator(48, 24, **settings)


# In the server step


class Watched:
    """Keeps what an adapter has been trained on, and on nothing else."""

    def __init__(self, adapter):
        self.seen = []
        adapter.register_forward_pre_hook(self._keep)

    def _keep(self, adapter, inputs):
        if torch.is_grad_enabled():
            self.seen.append(inputs[0].detach().clone())

    def share_of(self, rows):
        """Share of what was seen that is in (N, S, Da) `rows`."""
        known = {row.numpy().tobytes() for row in rows.flatten(1)}
        seen = torch.cat(self.seen).flatten(1)
        return sum(row.numpy().tobytes() in known for row in seen) / len(seen)


class Remembering(VAEWithT5Generator):
    """Keeps the samples that it has drawn for each adapter."""

    def sample_sides(self, conditions, num_samples, random):
        self.drawn = super().sample_sides(conditions, num_samples, random)
        return self.drawn


def step_of(world, prompts, **settings):
    torch.manual_seed(7)
    generator = Remembering(48, 24, 64, 8, t5_dim=T5[1], learning_rate=2e-3)
    quick = {"training_epochs": 5, "validation_frequency": 1, "first_steps": 30, "steps": 5, **settings}
    loss = AdapterLoss(prompts, AdapterLossWeights())
    return ServerStep(world.adapters(t5=T5), prompts, generator, loss, ServerStepSettings(**quick))


@pytest.mark.parametrize("distil", [False, True])
def test_each_adapter_is_fine_tuned_on_its_own_samples_and_on_the_same_prototypes(world, prompts, distil):
    step = step_of(world, prompts, distil=distil, finetune=not distil)
    watched = {name: Watched(getattr(step.adapters, name)) for name in ("clip", "t5")}
    updates = [update._replace(weights=step.adapters.weights()) for update in world.updates()]
    step.run(1, updates)
    trained_on, _ = step.bank.rows().split(step.settings.holdout)
    samples = dict(zip(("clip", "t5"), step.generator.drawn, strict=True))
    for name, other in (("clip", "t5"), ("t5", "clip")):
        own, foreign, real = (
            watched[name].share_of(step.adapters.standardised(rows))
            for rows in (samples[name].flatten(0, 1), samples[other].flatten(0, 1), trained_on.embeddings)
        )
        assert foreign == 0
        assert own + real == pytest.approx(1)
        assert own == pytest.approx(0.5, abs=0.1)


def test_each_takes_as_many_steps_as_are_asked_for(world, prompts):
    step = step_of(world, prompts, training_epochs=2, min_steps=9)
    step.run(1, world.updates())
    for vae in (step.generator.clip, step.generator.t5):
        assert int(vae.training_state()["optimiser"]["state"][0]["step"]) == 9


def test_a_round_validates_both_and_goes_on_bit_for_bit(world, prompts):
    whole, stopped, resumed = (step_of(world, prompts) for _ in range(3))
    for step in (whole, stopped):
        row = step.run(1, world.updates())
    assert row["server/generator_validation_similarity"] > 0.5
    assert row["generator/t5_reconstruction"] != row["generator/reconstruction"]
    resumed.load_state_dict(through_a_file(stopped.state_dict()))
    for step in (whole, resumed):
        step.run(2, world.updates())
    assert_same_bits(resumed.state_dict(), whole.state_dict())


def test_replay_by_two_vaes_preserves_both_adapters(world, prompts):
    step = step_of(world, prompts, keep_prototypes=False, training_epochs=60, first_steps=150, steps=60)
    step.run(1, world.updates())
    step.run(2, [])
    clips, labels = world.clips(20, seed=8)
    with torch.no_grad():
        outputs = step.adapters(clips)
    for found, wanted in zip(outputs, (prompts.clip, prompts.t5), strict=True):
        assert retrieval(found, labels, wanted).accuracy > 0.9


# In the configuration


def test_the_configuration_makes_one_that_fits_the_prompts():
    generator = make_generator(compose_settings("generator=vae_t5 adapters=flux"), (1, 24), 40)
    assert isinstance(generator, VAEWithT5Generator)
    assert (generator.visual_dim, generator.t5_dim) == (40, 4096)


@pytest.mark.parametrize("adapters", ["compact", "sd", "bilinear"])
def test_adapters_without_a_t5_side_are_refused_with_the_remedy(adapters):
    settings = compose_settings(f"generator=vae_t5 adapters={adapters}")
    with refused(ConfigError, "generator=vae_t5", f"adapters={adapters}", "adapters=flux", "generator=vae"):
        make_generator(settings, (1, 24), 40)


@pytest.mark.parametrize("name", ["vae_t5", "multimodal"])
def test_one_for_each_class_is_refused(name):
    settings = compose_settings(f"generator={name} adapters=flux +generator.granularity=per_class")
    with refused(ConfigError, f"generator={name}", "unified"):
        make_generator(settings, (1, 24), 40, ("dog", "rain"))
