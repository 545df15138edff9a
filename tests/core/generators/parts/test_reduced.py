import functools

import pytest
import torch

from fed_a2v.core.generators.flow import FlowGenerator
from fed_a2v.core.generators.gan import GANGenerator
from fed_a2v.core.generators.gmm import GMMGenerator
from fed_a2v.core.generators.parts.calibration import CALIBRATION_SAMPLES, Calibration
from fed_a2v.core.generators.parts.moments import ClassMoments
from fed_a2v.core.generators.parts.reduced import ReducedSpace, outside_noise
from fed_a2v.core.statistics import PrototypeBatch
from tests.core.conftest import World, assert_same_bits, draws, through_a_file, within_variance
from tests.refusals import refused

KINDS = {
    "gmm": (GMMGenerator, {}, 1),
    "flow": (FlowGenerator, {"hidden_dim": 64, "steps": 6, "batch_size": 32}, 50),
    "gan": (GANGenerator, {"hidden_dim": 64, "batch_size": 32, "learning_rate": 2e-3}, 80),
}


def made(kind, world, **arguments):
    cls, small, _ = KINDS[kind]
    torch.manual_seed(5)
    return cls(world.shape[1], world.conditions.shape[1], world.shape[0], **{**small, **arguments})


def fitted(kind, world, epochs=None, rows=None, **arguments):
    generator = made(kind, world, **arguments)
    rows = world.rows() if rows is None else rows
    generator.fit(rows, world.conditions, epochs or KINDS[kind][2], 0.1, draws(0))
    return generator


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@functools.cache
def trained(kind):
    """A shared generator that tests must not change."""
    return fitted(kind, World())


# The calibration itself


def test_calibrated_samples_have_the_classes_moments_in_the_units_of_the_data():
    world = World(classes=3)
    moments, calibration = ClassMoments(), Calibration()
    moments.fit(world.rows())
    mean, std = torch.linspace(-1, 1, 48), torch.linspace(1, 2, 48)
    labels = calibration.labels(3, torch.device("cpu"))
    rows = 0.6 * torch.randn(len(labels), 48, generator=draws(0)) * moments.std[labels] + 5
    calibration.fit(rows, mean, std)
    moved = calibration.apply_to(rows * std + mean, labels, moments).view(3, CALIBRATION_SAMPLES, 48)
    torch.testing.assert_close(moved.mean(dim=1), moments.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(moved.std(dim=1), moments.std, rtol=1e-3, atol=1e-3)


def test_samples_without_spread_are_not_blown_up_beyond_the_limit():
    world = World(classes=2)
    moments, calibration = ClassMoments(), Calibration()
    moments.fit(world.rows())
    labels = calibration.labels(2, torch.device("cpu"))
    rows = 0.01 * torch.randn(len(labels), 48, generator=draws(0))
    calibration.fit(rows, torch.zeros(48), torch.ones(48))
    assert calibration.apply_to(rows, labels, moments).view(2, -1, 48).std(dim=1).max() < 0.05


# The reduced space


@pytest.mark.parametrize("whiten", [False, True])
def test_rows_come_back_from_the_reduced_space_and_what_is_lost_lies_outside_it(whiten):
    x = torch.randn(60, 20, generator=draws(0)) * torch.linspace(0.1, 3, 20)
    space = ReducedSpace(7, whiten)
    space.fit(x)
    rows = space.standardise(x)
    z = space.reduce(rows)
    assert z.shape == (60, 7)
    torch.testing.assert_close(space.expand(z) + space.outside(rows), rows, rtol=1e-4, atol=1e-4)
    assert space.reduce(space.outside(rows)).abs().max() < 1e-4
    deviations = z.std(dim=0)
    assert torch.allclose(deviations, torch.ones(7), atol=1e-3) == whiten


def test_whitening_does_not_blow_up_directions_without_variance():
    x = torch.randn(40, 1, generator=draws(0)) * torch.ones(1, 6)
    space = ReducedSpace(6, whiten=True)
    space.fit(x)
    assert space.reduce(space.standardise(x)).abs().max() < 10


def test_noise_outside_has_the_classes_own_spread_and_stays_outside():
    world = World(classes=4)
    world.directions[3] *= 4
    moments, space = ClassMoments(), ReducedSpace(10, whiten=False)
    rows = world.rows()
    moments.fit(rows)
    space.fit(moments.spread_rows(rows))
    labels = torch.arange(4).repeat_interleave(200)
    noise = outside_noise(space, moments, labels, draws(0))
    assert space.reduce(noise).abs().max() < 1e-4
    spread = [within_variance(noise[labels == label], labels[labels == label]).mean() for label in (0, 3)]
    assert spread[1] > 1.2 * spread[0]
    unknown = outside_noise(space, moments, torch.full((200,), -1), draws(0))
    assert spread[0] * 0.5 < unknown.var(dim=0).mean() < spread[1] * 2


# Properties of all generators that are built on them


@pytest.mark.parametrize("shape", [{"width": 48}, {"width": 16, "tokens": 3}], ids=["one token", "three tokens"])
def test_samples_are_as_many_different_rows_as_asked_for(kind, shape):
    world = World(**shape)
    rows = fitted(kind, world, 1).sample(7, world.conditions[2])
    assert rows.shape == (7, *world.shape)
    assert len(rows.flatten(1).unique(dim=0)) == 7


def test_samples_are_of_their_class_and_as_spread_as_clips(kind):
    world = World()
    samples = trained(kind).sample_classes(world.conditions, 60, draws(0)).flatten(0, 1)
    labels = torch.arange(10).repeat_interleave(60)
    assert (world.nearest_class(samples) == labels).float().mean() > 0.9
    assert 0.7 < world.variance_ratio(samples, labels) < 1.3


def test_every_row_of_a_mixed_batch_is_of_its_own_class(kind):
    world = World()
    labels = torch.randperm(40, generator=draws(0)) % 10
    rows = trained(kind).sample(40, world.conditions[labels])
    assert (world.nearest_class(rows) == labels).float().mean() > 0.9


def test_a_condition_near_a_known_one_finds_its_class(kind):
    world = World()
    rows = trained(kind).sample(20, world.conditions[4] + 0.1 * torch.randn(24, generator=draws(3)))
    assert (world.nearest_class(rows) == 4).float().mean() > 0.9


def test_the_same_seed_gives_the_same_bits_whatever_the_global_state(kind):
    world = World()
    samples = []
    for seed in (1, 2):
        generator = made(kind, world)
        torch.manual_seed(seed)
        generator.fit(world.rows(), world.conditions, 3, 0.1, draws(0))
        samples.append(generator.sample_classes(world.conditions, 5, draws(0)))
    assert torch.equal(*samples)


def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(kind):
    world = World()
    rows = world.rows()
    straight = fitted(kind, world, 3, rows)
    resumed = made(kind, world)
    resumed.load_checkpoint(through_a_file(straight.checkpoint()))
    for generator in (straight, resumed):
        generator.fit(rows, world.conditions, 4, 0.1, draws(1))
    assert_same_bits(straight.checkpoint(), resumed.checkpoint())
    assert torch.equal(*(g.sample_classes(world.conditions, 5, draws(2)) for g in (straight, resumed)))


def test_a_checkpoint_loads_over_one_of_other_classes(kind):
    world, other = World(classes=10), World(classes=4)
    target = fitted(kind, other, 1)
    source = fitted(kind, world, 1)
    target.load_checkpoint(through_a_file(source.checkpoint()))
    assert torch.equal(*(g.sample_classes(world.conditions, 3, draws(2)) for g in (source, target)))


def test_classes_may_come_and_go_between_fits(kind):
    world, other = World(classes=10), World(classes=4)
    generator = fitted(kind, other, 5)
    generator.fit(world.rows(), world.conditions, 40, 0.1, draws(1))
    labels = torch.arange(10).repeat_interleave(30)
    samples = generator.sample_classes(world.conditions, 30, draws(2)).flatten(0, 1)
    assert (world.nearest_class(samples) == labels).float().mean() > 0.9


def test_non_negative_data_gives_non_negative_samples_and_signed_data_signed_ones(kind):
    for non_negative in (True, False):
        world = World(non_negative=non_negative)
        samples = fitted(kind, world, 2).sample_classes(world.conditions, 20, draws(0))
        assert (samples.min() >= 0) == non_negative


def test_signed_data_at_any_scale_is_met_at_its_scale(kind):
    world = World(scale=1e-3, offset=50.0)
    samples = fitted(kind, world, 40).sample_classes(world.conditions, 40, draws(0)).flatten(0, 1)
    assert 0.5 < world.variance_ratio(samples, torch.arange(10).repeat_interleave(40)) < 1.5


def test_dead_columns_survive(kind):
    world = World()
    rows = world.rows()
    embeddings, variances = rows.embeddings.clone(), rows.variances.clone()
    embeddings[..., 5], variances[..., 5] = 3.0, 0.0
    rows = PrototypeBatch(embeddings, rows.labels, rows.counts, variances, rows.names)
    samples = fitted(kind, world, 2, rows).sample_classes(world.conditions, 20, draws(0))
    assert samples.isfinite().all()
    torch.testing.assert_close(samples[..., 5], torch.full_like(samples[..., 5], 3.0), rtol=0, atol=1e-3)


def test_data_without_any_variance_is_supported(kind):
    world = World(classes=2)
    rows = world.rows()
    same = PrototypeBatch(
        torch.ones_like(rows.embeddings),
        rows.labels,
        rows.counts,
        torch.zeros_like(rows.variances),
        rows.names,
    )
    samples = fitted(kind, world, 2, same).sample_classes(world.conditions, 3, draws(0))
    torch.testing.assert_close(samples, torch.ones_like(samples), rtol=0, atol=1e-2)


@pytest.mark.parametrize("variance", [True, False])
@pytest.mark.parametrize("classes", [1, 10])
def test_one_mean_a_class_is_enough(kind, classes, variance):
    world = World(classes=classes)
    # A class has eight rows then as ever, but a lone class makes few batches.
    epochs = KINDS[kind][2] // 2 if classes > 1 else 20
    generator = fitted(kind, world, epochs, world.rows(groups=1, size=24, variance=variance))
    samples = generator.sample_classes(world.conditions, 30, draws(0)).flatten(0, 1)
    labels = torch.arange(classes).repeat_interleave(30)
    assert samples.isfinite().all()
    assert (world.nearest_class(samples) == labels).float().mean() > 0.9
    if variance:
        assert 0.6 < world.variance_ratio(samples, labels) < 1.5


def test_without_calibration_the_models_own_draws_come_out(kind):
    world = World()
    generator = fitted(kind, world, 1, calibrate=False)
    with_calibration = fitted(kind, world, 1)
    left, right = (g.sample_classes(world.conditions, 40, draws(0)) for g in (generator, with_calibration))
    assert left.isfinite().all()
    assert not torch.allclose(left, right)


def test_sampling_before_the_first_fit_is_an_error(kind):
    world = World()
    with refused(RuntimeError, "fit", "checkpoint"):
        made(kind, world).sample(2, world.conditions[0])


def test_a_condition_of_the_wrong_width_is_an_error_with_both_widths(kind):
    with refused(ValueError, "visual_condition", 78, 24):
        fitted(kind, World(), 1).sample(2, torch.zeros(78))


def test_a_reduced_space_without_dimensions_is_an_error_that_names_it(kind):
    with refused(ValueError, "reduced_dim=0"):
        made(kind, World(), reduced_dim=0)
