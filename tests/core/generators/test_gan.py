import functools
import math

import pytest
import torch

from fed_a2v.core.generators.gan import GANGenerator, _NearestMean
from tests.core.conftest import World, draws, through_a_file
from tests.refusals import refused


def made(world, **arguments):
    torch.manual_seed(5)
    small = {"hidden_dim": 64, "batch_size": 32, "learning_rate": 2e-3}
    return GANGenerator(world.shape[1], world.conditions.shape[1], world.shape[0], **{**small, **arguments})


def fitted(world, epochs, **arguments):
    generator = made(world, **arguments)
    generator.fit(world.rows(), world.conditions, epochs, 0.1, draws(0))
    return generator


@functools.cache
def trained(loss="wgan-gp", class_weight=0.0):
    """A shared generator, without calibration, that tests must not change."""
    return fitted(World(), 100, loss=loss, class_weight=class_weight, calibrate=False)


@pytest.mark.parametrize(("loss", "class_weight"), [("wgan-gp", 0.0), ("bce", 0.5)])
def test_another_class_in_gives_another_distribution_out_without_calibration(loss, class_weight):
    world = World()
    samples = trained(loss, class_weight).sample_classes(world.conditions, 40, draws(0))
    labels = torch.arange(10).repeat_interleave(40)
    assert (world.nearest_class(samples.flatten(0, 1)) == labels).float().mean() > 0.9


def test_samples_have_not_collapsed():
    world = World()
    samples = trained().sample_classes(world.conditions, 60, draws(0)).flatten(0, 1)
    assert world.variance_ratio(samples, torch.arange(10).repeat_interleave(60)) > 0.3


def test_the_critic_sees_the_class():
    world = World()
    generator = trained()
    rows = world.rows()
    z = generator.space.reduce(generator.space.standardise(generator.moments.spread_rows(rows)))
    z = torch.nn.functional.pad(z, (0, generator.reduced_dim - z.shape[1]))
    directions = generator.directions(world.conditions)
    right = generator.critic(z, directions[rows.labels]).mean()
    wrong = generator.critic(z, directions[(rows.labels + 1) % 10]).mean()
    assert right > wrong + 0.5


def test_the_losses_are_reported_by_part():
    world = World()
    rows = world.rows()
    # Three batches an epoch: not every epoch has a step of the generator, yet every one shows its loss.
    history = made(world, class_weight=0.1).fit(rows, world.conditions, 7, 0.1, draws(0))
    assert len(history) == 7
    for epoch in history:
        assert set(epoch.parts) == {"generator", "class"}
        assert set(epoch.critic) == {"critic", "gradient_penalty"}
        assert epoch.total == pytest.approx(sum(epoch.parts.values()))
    assert history[0].parts == history[1].parts  # the first step is in the second
    history = made(world, loss="bce", class_weight=0.0).fit(rows, world.conditions, 2, 0.1, draws(0))
    assert (set(history[-1].parts), set(history[-1].critic)) == ({"generator"}, {"critic"})


def test_without_a_step_there_is_no_loss():
    world = World()
    (epoch,) = made(world).fit(world.rows(), world.conditions, 1, 0.1, draws(0))  # three steps of the critic alone
    assert math.isnan(epoch.total)
    assert epoch.critic["critic"] < 0


@pytest.mark.parametrize(("loss", "steps"), [("wgan-gp", 5), ("bce", 1)])
def test_the_critic_takes_five_steps_for_one_of_the_wasserstein_generator(loss, steps):
    world = World()
    generator = made(world, loss=loss, batch_size=8)
    generator.fit(world.rows(), world.conditions, 3, 0.1, draws(0))
    state = generator.training_state()
    taken = {name: int(state[f"{name}_optimiser"]["state"][0]["step"]) for name in ("generator", "critic")}
    assert taken == {"generator": 30 // steps, "critic": 30}


def test_the_penalty_pulls_the_critics_slope_to_one():
    world = World()
    generator = trained()
    x = torch.randn(64, generator.reduced_dim, generator=draws(0)).requires_grad_()
    directions = generator.directions(world.conditions).repeat(7, 1)[:64]
    steepness = torch.autograd.grad(generator.critic(x, directions).sum(), x)[0].norm(dim=1)
    assert 0.4 < steepness.mean() < 1.6


def test_the_class_term_forces_the_class():
    world = World()
    correct = []
    for weight in (0.0, 1.0):
        samples = fitted(world, 15, class_weight=weight, calibrate=False).sample_classes(world.conditions, 40, draws(0))
        labels = torch.arange(10).repeat_interleave(40)
        correct.append((world.nearest_class(samples.flatten(0, 1)) == labels).float().mean())
    assert correct[1] > correct[0] + 0.1


def test_the_nearest_mean_gives_rows_at_their_own_mean_the_least_loss():
    z, labels = torch.randn(40, 6, generator=draws(0)), torch.arange(4).repeat(10)
    z = z + 3 * torch.nn.functional.one_hot(labels, 6)
    nearest = _NearestMean(z, labels, 4)
    assert nearest.cross_entropy(nearest.means, torch.arange(4)) < 0.1
    assert nearest.cross_entropy(nearest.means, torch.arange(4).roll(1)) > 1


def test_an_unknown_condition_is_drawn_by_the_network_beside_known_ones():
    world = World()
    conditions = world.conditions[[2]].repeat(21, 1)
    conditions[20] = 2 - 3 * torch.randn(24, generator=draws(1))
    rows = fitted(world, 10).sample(21, conditions, None, draws(0))
    assert (world.nearest_class(rows[:20]) == 2).float().mean() > 0.9
    assert rows[20].isfinite().all()
    assert rows[20].abs().max() < 4 * rows[:20].abs().max()


def test_a_checkpoint_holds_both_nets_and_both_optimisers():
    world = World()
    checkpoint = through_a_file(fitted(world, 3).checkpoint())
    names = {name.split(".")[0] for name in checkpoint["generator_state"]}
    assert {"generator", "critic"} <= names
    for name in ("generator_optimiser", "critic_optimiser"):
        assert checkpoint["optimizer_state"][name]["state"]
    assert checkpoint["dimensions"]["noise_dim"] == 24


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"loss": "hinge"}, ("loss='hinge'", "wgan-gp", "bce")),
        ({"critic_steps": -1}, ("critic_steps=-1",)),
        ({"gradient_penalty": -1.0}, ("gradient_penalty=-1",)),
        ({"class_weight": -1.0}, ("class_weight=-1",)),
    ],
)
def test_a_setting_out_of_range_is_an_error_that_names_it(arguments, named):
    with refused(ValueError, *named):
        made(World(), **arguments)
