import pytest
import torch

from fed_a2v.core.generators.flow import FlowGenerator
from tests.core.conftest import World, draws
from tests.refusals import refused


def made(world, **arguments):
    torch.manual_seed(5)
    small = {"hidden_dim": 64, "steps": 6, "batch_size": 32}
    return FlowGenerator(world.shape[1], world.conditions.shape[1], world.shape[0], **{**small, **arguments})


def test_the_velocity_error_falls_and_is_reported_by_class():
    world = World()
    history = made(world).fit(world.rows(), world.conditions, 30, 0.0, draws(0))
    assert len(history) == 30
    assert history[-1].total < 0.96 * history[0].total
    for epoch in history:
        assert epoch.parts == {"velocity": epoch.total}
        assert sorted(epoch.per_class) == sorted(world.names)
        mean = sum(parts["velocity"] for parts in epoch.per_class.values()) / len(world.names)
        assert mean == pytest.approx(epoch.total, rel=1e-4)


def test_the_network_itself_knows_the_class():
    world = World()
    generator = made(world, calibrate=False)
    generator.fit(world.rows(), world.conditions, 80, 0.0, draws(0))
    labels = torch.arange(10).repeat_interleave(30)
    samples = generator.sample_classes(world.conditions, 30, draws(0)).flatten(0, 1)
    assert (world.nearest_class(samples) == labels).float().mean() > 0.9


def test_an_unknown_condition_is_drawn_by_the_network_beside_known_ones():
    world = World()
    generator = made(world)
    generator.fit(world.rows(), world.conditions, 40, 0.0, draws(0))
    conditions = world.conditions[[2]].repeat(21, 1)
    conditions[20] = 2 - 3 * torch.randn(24, generator=draws(1))
    rows = generator.sample(21, conditions, None, draws(0))
    assert (world.nearest_class(rows[:20]) == 2).float().mean() > 0.9
    assert rows.isfinite().all()
    assert rows[20].abs().max() < 4 * rows[:20].abs().max()


def test_samples_come_from_the_running_average_of_the_weights():
    world = World()
    generator = made(world, ema=0.9)
    generator.fit(world.rows(), world.conditions, 5, 0.0, draws(0))
    before = generator.sample_classes(world.conditions, 3, draws(0))
    torch.nn.init.zeros_(generator.network.layers[-1].weight)
    assert torch.equal(generator.sample_classes(world.conditions, 3, draws(0)), before)
    torch.nn.init.zeros_(generator.averaged.layers[-1].weight)
    assert not torch.equal(generator.sample_classes(world.conditions, 3, draws(0)), before)


def test_basis_optimiser_and_average_live_on_across_fits():
    world, wider = World(), World(scale=2.0)
    generator = made(world)
    generator.fit(world.rows(), world.conditions, 2, 0.0, draws(0))
    mean, basis = generator.space.mean.clone(), generator.space.basis.clone()
    updates = generator.updates
    optimiser = generator.get_optimiser()
    generator.fit(wider.rows(), world.conditions, 2, 0.0, draws(1))
    assert torch.equal(generator.space.mean, mean)
    assert torch.equal(generator.space.basis, basis)
    assert generator.updates == 2 * updates
    assert generator.get_optimiser() is optimiser
    assert generator.epoch == 4


def test_noise_is_on_the_input_and_never_on_the_target():
    world = World()
    errors = []
    for noise in (0.0, 50.0):
        generator = made(world)
        errors.append(generator.fit(world.rows(), world.conditions, 1, noise, draws(0))[0].total)
    # Noise of fifty deviations on the target would make an error of thousands.
    assert errors[1] < 100 * errors[0]


def test_a_checkpoint_of_other_dimensions_does_not_load():
    world = World()
    narrow, wide = made(world), made(world, hidden_dim=96)
    narrow.fit(world.rows(), world.conditions, 1, 0.0, draws(0))
    assert narrow.dimensions != wide.dimensions
    with refused(RuntimeError, "FlowGenerator", "torch.Size([64", "torch.Size([96"):
        wide.load_checkpoint(narrow.checkpoint())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"hidden_dim": 0}, "hidden_dim=0"), ({"steps": 0}, "steps=0"), ({"ema": 1.0}, "ema=1.0")],
)
def test_a_setting_out_of_range_is_an_error_that_names_it(arguments, named):
    with refused(ValueError, named):
        made(World(), **arguments)
