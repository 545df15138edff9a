"""The placebo: the rows' mean and deviation, and nothing of their classes."""

import torch

from fed_a2v.core.generators.noise import NoiseGenerator
from tests.core.conftest import World, draws


def fitted(world):
    generator = NoiseGenerator(world.shape[1], 24, world.shape[0])
    assert generator.fit(world.rows(), world.conditions, 3, 0.1, draws(0)) == []
    return generator


def test_noise_has_the_mean_and_deviation_of_all_rows():
    world = World(tokens=2)
    samples = fitted(world).sample(4000, world.conditions[0], random=draws(1))
    rows = world.rows().embeddings
    assert samples.shape == (4000, 2, 48)
    torch.testing.assert_close(samples.mean(0), rows.mean(0), atol=0.15, rtol=0.1)
    torch.testing.assert_close(samples.std(0), rows.std(0), atol=0.15, rtol=0.1)


def test_noise_ignores_the_class():
    world = World()
    generator = fitted(world)
    one, other = (generator.sample(5, world.conditions[label], random=draws(1)) for label in (0, 1))
    assert torch.equal(one, other)
    samples = generator.sample_classes(world.conditions, 50, draws(2)).flatten(0, 1)
    labels = torch.arange(10).repeat_interleave(50)
    assert (world.nearest_class(samples) == labels).float().mean() < 0.25


def test_a_checkpoint_brings_it_back():
    world = World()
    source, target = fitted(world), NoiseGenerator(48, 24)
    target.load_checkpoint(source.checkpoint())
    assert torch.equal(*(g.sample(3, world.conditions[0], random=draws(1)) for g in (source, target)))
