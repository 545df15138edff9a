"""Training of the generator within a server step: its number of steps, and the log of its losses."""

import logging
import math
import re

import pytest
import torch

from fed_a2v.core.generators.flow import FlowGenerator
from fed_a2v.core.generators.gan import GANGenerator
from fed_a2v.core.generators.grouped import GroupedVAEGenerator
from fed_a2v.core.generators.vae import ConditionedVAEGenerator
from tests.core.conftest import World
from tests.core.test_losses import vae_loss, vae_losses
from tests.core.test_server_step import step_of

# Steps of the generator


def steps_taken(generator):
    """Optimiser steps of a generator's own network so far."""
    state = generator.training_state()
    optimiser = state.get("generator_optimiser", state.get("optimiser"))
    return int(optimiser["state"][0]["step"])


SHAPE = (48, 24)
# 70 rows of training a round, in batches of 32.
SMALL = {"hidden_dim": 16, "batch_size": 32}
NETWORKS = {
    "vae": (lambda: ConditionedVAEGenerator(*SHAPE, latent_dim=6, **SMALL), 3),
    "flow": (lambda: FlowGenerator(*SHAPE, **SMALL), 3),
    "wgan-gp": (lambda: GANGenerator(*SHAPE, **SMALL), 3 / 5),
    "bce": (lambda: GANGenerator(*SHAPE, loss="bce", **SMALL), 3),
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(("epochs", "at_least"), [(2, 0), (2, 6), (2, 17), (20, 4)])
def test_epochs_are_added_to_reach_the_minimum_steps(kind, epochs, at_least, caplog):
    make, an_epoch = NETWORKS[kind]
    step = step_of(World(), make(), training_epochs=epochs, min_steps=at_least)
    wanted = max(epochs, math.ceil(at_least / an_epoch))
    with caplog.at_level(logging.INFO, "fed_a2v"):
        step.run(1, World().updates())
    assert f"Training generator for {wanted} epochs with augmentation=True" in caplog.messages
    assert ("generator.min_steps=" in caplog.text) == (wanted > epochs)
    assert steps_taken(step.generator) == math.floor(wanted * an_epoch) >= at_least
    step.run(2, World().updates())
    assert steps_taken(step.generator) == math.floor(2 * wanted * an_epoch)


def test_each_of_many_generators_gets_the_minimum_steps():
    world = World()
    groups = {"few": world.names[:1], "many": world.names[1:]}
    generator = GroupedVAEGenerator(lambda: ConditionedVAEGenerator(*SHAPE, latent_dim=6, **SMALL), groups)
    step_of(world, generator, training_epochs=2, min_steps=9).run(1, world.updates())
    # 8 rows are one batch, 72 are three.
    assert [steps_taken(generator.member(key)) for key in groups] == [9, 27]


def test_a_closed_form_generator_ignores_the_minimum_steps(caplog):
    with caplog.at_level(logging.INFO, "fed_a2v"):
        step_of(World(), "gaussian", training_epochs=1, min_steps=100).run(1, World().updates())
    assert "Training generator for 1 epochs with augmentation=True" in caplog.messages


def test_the_losses_of_generator_and_critic_are_separate():
    world = World()
    row = step_of(world, GANGenerator(*SHAPE, **SMALL), training_epochs=1, min_steps=10).run(1, world.updates())
    parts = ("generator/generator", "generator/class", "generator/critic", "generator/gradient_penalty")
    assert all(isinstance(row[name], float) for name in parts)
    assert row["generator/critic"] < 0 < row["generator/gradient_penalty"]


# Log lines of the losses

LOSS = re.compile(
    r"  Epoch (?P<epoch>\d+)(?: Class '(?P<of>.*)')?: (?P<kind>\w+) Loss=(?P<loss>\S+)(?: \((?P<terms>.*)\))?"
)


def loss_lines(generator, caplog, **settings):
    """The parsed log lines of a round about the losses of the generator, and the metrics of the round."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "fed_a2v"):
        row = step_of(World(), generator, **settings).run(1, World().updates())
    found = [match.groupdict() for match in map(LOSS.fullmatch, caplog.messages) if match]
    for line in found:
        terms = [term.split("=") for term in (line["terms"] or "").split(", ") if term]
        line |= {"loss": float(line["loss"]), "terms": {name: float(value) for name, value in terms}}
    return found, row


@pytest.mark.parametrize("settings", vae_losses()[::5], ids=str)
def test_the_logged_class_losses_are_the_trained_loss(caplog, settings):
    world = World()
    generator = ConditionedVAEGenerator(world.shape[1], 24, 32, 6, world.shape[0], loss=vae_loss(**settings))
    lines, row = loss_lines(generator, caplog)
    assert [(line["epoch"], line["of"]) for line in lines] == [(str(n), c) for n in range(1, 6) for c in world.names]
    for line in lines:
        assert list(line["terms"]) == ["Recon", "KL", "Sim"]
        assert sum(line["terms"].values()) == pytest.approx(line["loss"], abs=3e-4)
    # Every class has as many rows: the mean of all lines is the mean loss of the five epochs.
    assert sum(line["loss"] for line in lines) / 50 == pytest.approx(row["server/generator_loss"], abs=1e-4)
    last = [sum(line["terms"][name] for line in lines[40:]) / 10 for name in ("Recon", "KL", "Sim")]
    assert last == pytest.approx(
        [row[f"generator/{name}"] for name in ("reconstruction", "kl", "similarity")], abs=1e-4
    )


class OwnLoss(torch.nn.Module):
    """A custom loss without terms."""

    def forward(self, recon_x, x, mu, logvar, epoch):
        return (recon_x - x).square().mean() + 1e-3 * mu.square().mean()


@pytest.mark.parametrize(
    ("make", "kind", "of", "terms"),
    [
        (lambda *shape: ConditionedVAEGenerator(*shape[:2], 32, 6, loss=OwnLoss()), "VAE", {None}, []),
        (lambda *shape: FlowGenerator(*shape, hidden_dim=16), "FLOW", set(World().names), ["Velocity"]),
        (lambda *shape: GANGenerator(*shape, hidden_dim=16, batch_size=8), "GAN", {None}, ["Generator", "Class"]),
    ],
    ids=["own loss", "flow", "gan"],
)
def test_the_log_lines_of_other_losses_have_their_own_terms(caplog, make, kind, of, terms):
    lines, row = loss_lines(make(48, 24, 1), caplog)
    own = [line for line in lines if line["kind"] == kind]
    assert {line["of"] for line in own} == of
    assert {line["epoch"] for line in own} == set("12345")
    assert all(list(line["terms"]) == terms for line in own)
    assert sum(line["loss"] for line in own) / len(own) == pytest.approx(row["server/generator_loss"], abs=1e-4)
    for line in lines:
        assert not line["terms"] or sum(line["terms"].values()) == pytest.approx(line["loss"], abs=2e-4)
    critics = [line for line in lines if line not in own]
    assert [line["kind"] for line in critics] == (["Critic"] * 5 if kind == "GAN" else [])
    if critics:
        critic = {"Critic": row["generator/critic"], "Gradient penalty": row["generator/gradient_penalty"]}
        assert critics[-1]["terms"] == pytest.approx(critic, abs=1e-4)
