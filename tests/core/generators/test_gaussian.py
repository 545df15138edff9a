import pytest
import torch

from fed_a2v.core.generators.gaussian import GaussianGenerator
from tests.core.conftest import World, draws, through_a_file
from tests.refusals import refused


def fitted(world, **rows):
    generator = GaussianGenerator(world.shape[1], world.conditions.shape[1], world.shape[0])
    assert generator.fit(world.rows(**rows), world.conditions, 1, 0.1, draws(0)) == []
    return generator


@pytest.mark.parametrize("shape", [{"width": 48}, {"width": 16, "tokens": 3}], ids=["one token", "three tokens"])
def test_samples_are_as_many_different_rows_as_asked_for(shape):
    world = World(**shape)
    rows = fitted(world).sample(7, world.conditions[2])
    assert rows.shape == (7, *world.shape)
    assert len(rows.flatten(1).unique(dim=0)) == 7


def test_samples_arrive_on_the_device_that_is_asked_for():
    world = World()
    generator = fitted(world)
    assert generator.sample(2, world.conditions[0]).device.type == "cpu"
    assert generator.sample(2, world.conditions[0], "meta").device.type == "meta"


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_samples_are_of_their_class_and_as_spread_as_clips(groups):
    world = World()
    samples = fitted(world, groups=groups, size=24 // groups).sample_classes(world.conditions, 60, draws(0))
    labels = torch.arange(10).repeat_interleave(60)
    assert samples.shape == (10, 60, 1, 48)
    assert (world.nearest_class(samples.flatten(0, 1)) == labels).float().mean() > 0.9
    assert 0.7 < world.variance_ratio(samples.flatten(0, 1), labels) < 1.3


def test_every_row_of_a_mixed_batch_is_of_its_own_class():
    world = World()
    labels = torch.randperm(40, generator=draws(0)) % 10
    rows = fitted(world).sample(40, world.conditions[labels])
    assert (world.nearest_class(rows) == labels).float().mean() > 0.9


@pytest.mark.parametrize("condition", [lambda c: c, lambda c: c[None], lambda c: c.repeat(1, 77, 1)])
def test_a_class_is_found_by_a_vector_a_row_or_its_tokens(condition):
    world = World()
    rows = fitted(world).sample(20, condition(world.conditions[4]))
    assert (world.nearest_class(rows) == 4).float().mean() > 0.9


def test_the_nearest_class_stands_in_for_an_unknown_condition():
    world = World()
    rows = fitted(world).sample(20, world.conditions[4] + 0.1 * torch.randn(24))
    assert (world.nearest_class(rows) == 4).float().mean() > 0.9


def test_the_same_seed_gives_the_same_bits_and_fitting_again_adds_nothing():
    world = World()
    generator = fitted(world)
    one = generator.sample(5, world.conditions[0], random=draws(3))
    generator.fit(world.rows(), world.conditions, 1, 0.1, draws(9))
    assert torch.equal(one, generator.sample(5, world.conditions[0], random=draws(3)))


def test_non_negative_data_gives_non_negative_samples():
    world = World(non_negative=True)
    samples = fitted(world).sample_classes(world.conditions, 60, draws(0))
    assert samples.min() == 0


def test_signed_data_at_any_scale_is_met_at_its_scale():
    world = World(scale=50, offset=100)
    samples = fitted(world).sample_classes(world.conditions, 60, draws(0)).flatten(0, 1)
    labels = torch.arange(10).repeat_interleave(60)
    assert samples.min() < 0
    assert (world.nearest_class(samples) == labels).float().mean() > 0.9
    assert 0.7 < world.variance_ratio(samples, labels) < 1.3


def test_dead_columns_survive():
    world = World()
    rows = world.rows()
    rows.embeddings[:, :, :6] = 0
    rows.variances[:, :, :6] = 0
    generator = GaussianGenerator(48, 24)
    generator.fit(rows, world.conditions, 1, 0.0, draws(0))
    samples = generator.sample(9, world.conditions[0])
    assert samples.isfinite().all()
    assert not samples[..., :6].any()


@pytest.mark.parametrize("variance", [True, False])
def test_one_mean_of_one_class_is_enough(variance):
    world = World(classes=1)
    samples = fitted(world, groups=1, size=24, variance=variance).sample(10, world.conditions[0])
    assert samples.isfinite().all()
    assert samples.shape == (10, 1, 48)


def test_classes_may_come_and_go_between_fits():
    small, large = World(classes=3), World(classes=10)
    generator = fitted(small)
    generator.fit(large.rows(), large.conditions, 1, 0.0, draws(0))
    assert (large.nearest_class(generator.sample(20, large.conditions[9])) == 9).float().mean() > 0.9


def test_a_checkpoint_samples_the_same_bits():
    world = World()
    generator, back = fitted(world), GaussianGenerator(48, 24)
    back.load_checkpoint(through_a_file(generator.checkpoint()))
    one, other = (each.sample(5, world.conditions[1], None, draws(1)) for each in (generator, back))
    assert torch.equal(one, other)
    assert back.checkpoint()["generator_type"] == "gaussian"


def test_sampling_before_the_first_fit_is_an_error():
    with refused(RuntimeError, "fit", "checkpoint"):
        GaussianGenerator(48, 24).sample(3, torch.randn(24))


def test_a_condition_of_the_wrong_width_is_an_error_with_both_widths():
    with refused(ValueError, "visual_condition", 78, 24):
        fitted(World()).sample(3, torch.randn(78))


@pytest.mark.parametrize("shape", [(41, 24), (41, 77, 24)])
def test_the_wrong_number_of_conditions_is_an_error_with_both_numbers(shape):
    with refused(ValueError, "visual_condition", 41, 38):
        fitted(World()).sample(38, torch.randn(shape))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, 24), "input_dim=0"),
        ((8, 0), "visual_dim=0"),
        ((8, 24, 0), "sequence_length=0"),
        ((8, 24, 1, 1.5), "shrinkage=1.5"),
    ],
)
def test_a_setting_out_of_range_is_an_error_that_names_it(arguments, named):
    with refused(ValueError, named):
        GaussianGenerator(*arguments)
