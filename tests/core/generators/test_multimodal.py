import pytest
import torch
from torch.nn import functional as F

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.core.generators.multimodal import MultimodalVAEGenerator
from fed_a2v.core.losses import AdapterLoss, AdapterLossWeights
from fed_a2v.core.server_step import ServerStep, ServerStepSettings
from fed_a2v.federation.server.step_factory import make_generator
from tests.core.conftest import assert_same_bits, draws, through_a_file
from tests.refusals import refused

T5 = (3, 40)


def generator_for(**settings):
    torch.manual_seed(7)
    return MultimodalVAEGenerator(48, 24, 64, 8, t5_dim=T5[1], **{"learning_rate": 2e-3, **settings})


def trained(world, epochs=150, **settings):
    generator = generator_for(**settings)
    prompts = world.prompts(t5=T5)
    generator.fit(world.rows(), generator.conditions_from(prompts.clip, prompts.t5), epochs, 0.1, draws(0))
    return generator


@pytest.fixture(scope="module")
def prompts(world):
    return world.prompts(t5=T5)


@pytest.fixture(scope="module")
def generator(world):
    torch.set_num_threads(1)
    return trained(world)


def given(prompts, label, parts):
    """Keyword arguments of `sample` for one class."""
    found = {"visual_condition": prompts.clip[label].mean(0), "t5_condition": prompts.t5[label].mean(0)}
    return {name: found[name] for name in parts}


BOTH = ("visual_condition", "t5_condition")


@pytest.mark.parametrize("parts", [BOTH, BOTH[:1], BOTH[1:]])
def test_samples_are_those_of_the_class_whichever_condition_is_given(world, prompts, generator, parts):
    for label in range(10):
        samples = generator.sample(20, **given(prompts, label, parts), random=draws(1))
        assert samples.shape == (20, 1, 48)
        assert (world.nearest_class(samples) == label).float().mean() >= 0.95
        assert len(samples.unique(dim=0)) == 20


@torch.no_grad()
def decoded(generator, prompts, parts):
    """What the decoder makes of each class's condition alone, without any latent or prior: (10, 48)."""
    found = {"visual_condition": prompts.clip.mean(1), "t5_condition": prompts.t5.mean(1)}
    joined = generator._join(10, *(found[name] if name in parts else None for name in BOTH))
    frame = generator._frame(joined, torch.full((10,), -1))
    return generator._restore(generator._decode(torch.zeros(10, 8), generator._condition(joined), *frame)[0])


def test_condition_dropout_makes_each_part_sufficient_alone(world, prompts, generator):
    never = trained(world, condition_dropout=0.0)
    for part in BOTH:
        with_dropout, without = (
            float((decoded(made, prompts, [part]) - decoded(made, prompts, BOTH)).square().mean())
            for made in (generator, never)
        )
        assert with_dropout < 0.5 * without
    for parts in (BOTH, BOTH[:1], BOTH[1:]):
        assert torch.equal(world.nearest_class(decoded(generator, prompts, parts)), torch.arange(10))


def test_rows_in_training_see_both_parts_or_the_other_one_doubled():
    generator = generator_for(condition_dropout=0.4)
    seen = generator._drop_conditions(torch.ones(4000, 24 + T5[1]), draws(0))
    clip, t5 = seen[:, 0], seen[:, -1]
    assert set(zip(clip.tolist(), t5.tolist(), strict=True)) == {(1.0, 1.0), (2.0, 0.0), (0.0, 2.0)}
    assert abs(float((clip == 2).float().mean()) - 0.2) < 0.03
    assert abs(float((t5 == 2).float().mean()) - 0.2) < 0.03


def test_a_row_that_has_one_part_keeps_it_in_training():
    generator = generator_for(condition_dropout=1.0)
    directions = F.pad(torch.ones(50, 24), (0, T5[1]))
    assert torch.equal(generator._drop_conditions(directions, draws(0)), directions)


def test_each_part_counts_the_same_however_wide_and_large_it_is(prompts):
    generator = generator_for()
    conditions = generator.conditions_from(100 * prompts.clip, prompts.t5)
    clip, t5 = generator._parts(generator.directions(conditions))
    torch.testing.assert_close(clip.square().mean(1), torch.ones(10))
    torch.testing.assert_close(t5.square().mean(1), torch.ones(10))


def test_it_trains_on_clip_alone_where_there_is_no_t5(world, prompts):
    generator = generator_for()
    generator.fit(world.rows(), generator.conditions_from(prompts.clip, None), 60, 0.1, draws(0))
    samples = generator.sample_classes(generator.conditions_from(prompts.clip, None), 20, draws(1))
    labels = torch.arange(10).repeat_interleave(20)
    assert (world.nearest_class(samples.flatten(0, 1)) == labels).float().mean() >= 0.95


def test_conditions_are_accepted_with_tokens_and_side_by_side(prompts, generator):
    clip, t5 = prompts.clip[3], prompts.t5[3]
    wanted = generator.sample(5, clip.mean(0), t5_condition=t5.mean(0), random=draws(4))
    joined = torch.cat([clip.mean(0), t5.mean(0)])
    for conditions in ({"visual_condition": joined}, {"visual_condition": clip[None], "t5_condition": t5[None]}):
        assert torch.equal(generator.sample(5, **conditions, random=draws(4)), wanted)


@pytest.mark.parametrize(
    ("conditions", "named"),
    [
        ({}, ("visual_condition", "t5_condition")),
        ({"visual_condition": torch.ones(78)}, ("visual_condition", 78, 24)),
        ({"t5_condition": torch.ones(24)}, ("t5_condition", 24, 40)),
    ],
)
def test_a_condition_that_is_missing_or_does_not_fit_is_named(generator, conditions, named):
    with refused(ValueError, *named):
        generator.sample(3, **conditions)


@pytest.mark.parametrize("settings", [{"t5_dim": 0}, {"condition_dropout": 1.5}, {"latent_dim": 0}])
def test_impossible_settings_are_refused_by_name(settings):
    with refused(ValueError, *(f"{key}={value}" for key, value in settings.items())):
        MultimodalVAEGenerator(48, 24, **settings)


def test_forward_takes_either_condition_per_row(prompts, generator):
    x = torch.randn(10, 1, 48)
    clip, t5 = prompts.clip.mean(1), prompts.t5.mean(1)
    outputs = [generator(x, clip)[0], generator(x, None, t5)[0], generator(x, clip, t5)[0]]
    assert all(out.shape == x.shape for out in outputs)
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])


def test_a_checkpoint_goes_on_where_it_was_saved(world, prompts, generator):
    again = generator_for()
    again.load_checkpoint(through_a_file(generator.checkpoint()))
    assert again.dimensions == generator.dimensions
    assert generator.dimensions.items() >= {"visual_dim": 24, "t5_dim": 40}.items()
    assert_same_bits(again.checkpoint(), generator.checkpoint())
    for parts in (BOTH, BOTH[:1], BOTH[1:]):
        conditions = given(prompts, 2, parts)
        assert torch.equal(
            again.sample(4, **conditions, random=draws(5)), generator.sample(4, **conditions, random=draws(5))
        )


@pytest.mark.parametrize("t5", [None, T5])
def test_the_server_step_trains_and_samples_it_on_the_class_prompts(world, t5):
    adapters, prompts = world.adapters(t5=t5), world.prompts(t5=t5)
    generator = generator_for()
    settings = ServerStepSettings(training_epochs=20, validation_frequency=1, first_steps=5)
    step = ServerStep(adapters, prompts, generator, AdapterLoss(prompts, AdapterLossWeights()), settings)
    assert bool(step.conditions[:, 24:].any()) == (t5 is not None)
    row = step.run(1, world.updates())
    assert row["server/generator_validation_similarity"] > 0.5
    assert len(generator.conditions) == 10


def test_the_configuration_makes_one_that_fits_the_prompts():
    generator = make_generator(compose_settings("generator=multimodal adapters=flux"), (1, 24), 40)
    assert isinstance(generator, MultimodalVAEGenerator)
    assert (generator.visual_dim, generator.t5_dim) == (40, 4096)
    with refused(ConfigError, "condition_dropout=2"):
        make_generator(compose_settings("generator=multimodal generator.condition_dropout=2"), (1, 24), 40)
