"""The server's own validation sees a dead generator, although it has only averaged rows to compare with."""

import logging

import pytest
import torch

from fed_a2v.core.generators.gaussian import GaussianGenerator
from fed_a2v.core.generators.grouped import GroupedVAEGenerator
from fed_a2v.core.generators.vae import ConditionedVAEGenerator
from fed_a2v.core.losses import AdapterLoss, AdapterLossWeights, VAELoss
from fed_a2v.core.server_step import ServerStep, ServerStepSettings
from fed_a2v.core.validation import validate
from tests.core.conftest import StubGenerator, World, draws


class Cheat(StubGenerator):
    """Gives what `make(label, number, random)` makes of the training rows."""

    def __init__(self, world, make):
        super().__init__(world)
        self.world, self.make = world, make

    def sample(self, num_samples, visual_condition, device=None, random=None):
        labels = torch.cdist(visual_condition, self.world.conditions).argmin(dim=1)
        return torch.cat([self.make(int(label), int((labels == label).sum()), random) for label in labels.unique()])


def validated(generator, world=None, epochs=40, **rows):
    world = world or World()
    trained_on, held_out = world.rows(**{"groups": 16, **rows}).split(0.125)
    generator.fit(trained_on, world.conditions, epochs, 0.1, draws(0))
    return validate(generator, trained_on, held_out, world.conditions, draws(1))


def vae(world, **arguments):
    torch.manual_seed(5)
    return ConditionedVAEGenerator(world.shape[1], 24, 48, 8, learning_rate=2e-3, batch_size=32, **arguments)


def test_a_good_generator_passes_without_a_warning():
    for generator in (GaussianGenerator(48, 24), vae(World())):
        result = validated(generator)
        assert result.warnings() == []
        assert result.quality.tstr > 0.9
        assert 0.7 < result.quality.synthetic.variance_ratio < 1.3


def test_every_figure_stands_beside_that_of_real_rows():
    row = validated(GaussianGenerator(48, 24)).metrics()
    for name in ("c2st", "nn_ratio", "accuracy"):
        assert {f"generator_quality/{name}", f"generator_quality/{name}_real"} <= row.keys()
    assert "generator_quality/active_units" not in row


def means(world):
    return lambda label, number, random: (world.scale * world.means[label]).repeat(number, 1).unsqueeze(1)


def test_samples_without_spread_are_found():
    world = World()
    assert any("no spread" in line for line in validated(Cheat(world, means(world))).warnings())


def test_copies_of_the_training_rows_are_found():
    world = World()
    trained_on, _ = world.rows(groups=16).split(0.125)
    moments = GaussianGenerator(48, 24)
    moments.fit(trained_on, world.conditions, 1, 0.0, draws(0))
    stretched = moments.moments.spread_rows(trained_on)

    def copies(label, number, random):
        own = stretched[trained_on.labels == label]
        return own[torch.randint(len(own), (number,), generator=random)].unsqueeze(1)

    assert any("copy" in line for line in validated(Cheat(world, copies)).warnings())


def test_a_generator_that_ignores_its_class_is_found():
    assert any("do not carry their class" in line for line in validated(StubGenerator(World())).warnings())


def test_a_collapsed_posterior_is_found():
    world = World()
    result = validated(vae(world, loss=VAELoss(beta_max=200.0)))
    assert result.active == 0
    assert any("posterior has collapsed" in line for line in result.warnings())
    alive = validated(vae(world)).active
    assert (alive or 0) > 1


def test_generators_of_one_class_each_are_validated_together():
    world = World()
    family = GroupedVAEGenerator(lambda: vae(world), {name: (name,) for name in world.names})
    result = validated(family)
    assert (result.active or 0) > 1
    assert result.metrics()["generator_quality/active_units"] == result.active


def test_few_rows_give_few_figures_and_no_false_alarm():
    result = validated(GaussianGenerator(48, 24), World(classes=3), groups=8)
    assert result.quality.synthetic.c2st is None
    assert result.warnings() == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_samples_that_are_not_finite_are_reported_and_do_not_stop_the_round(caplog, value):
    world = World()
    generator = Cheat(world, lambda label, number, random: torch.full((number, *world.shape), value))
    prompts = world.prompts()
    step = ServerStep(
        world.adapters(),
        prompts,
        generator,
        AdapterLoss(prompts, AdapterLossWeights()),
        ServerStepSettings(training_epochs=1, validation_frequency=1, first_steps=1, synthetic_share=0.0),
    )
    with caplog.at_level(logging.WARNING, "fed_a2v"):
        row = step.run(1, world.updates())
    assert "server/generator_validation_similarity" not in row
    assert any("generator.learning_rate" in line for line in caplog.messages)
    assert "server/adapter_finetuning_loss" in row
