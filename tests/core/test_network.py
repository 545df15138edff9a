"""Figures of a generator's network alone."""

import pytest
import torch

from fed_a2v.core.generators.flow import FlowGenerator
from fed_a2v.core.generators.gaussian import GaussianGenerator
from fed_a2v.core.generators.noise import NoiseGenerator
from fed_a2v.core.generators.parts.moments import ClassMoments
from fed_a2v.core.generators.vae import ConditionedVAEGenerator
from fed_a2v.core.network import examine
from fed_a2v.core.quality import Rows
from tests.core.conftest import World, draws


def examined(world, generator, epochs=30, groups=16):
    """A generator's figures on new clips, which are not in its training prototypes."""
    rows = world.rows(groups)
    generator.fit(rows, world.conditions, epochs, 0.1, draws(0))
    moments = ClassMoments()
    moments.fit(rows)
    seen = Rows(moments.spread_rows(rows).view_as(rows.embeddings), rows.labels)
    return examine(generator, moments, seen, Rows(*world.clips(12, seed=77)), world.conditions, 20, draws(1), seeds=1)


@pytest.fixture
def alike():
    """A world whose classes spread in the same directions, as a linear model of all of them has it."""
    world = World()
    world.directions = world.directions[:1].expand_as(world.directions)
    return world


def vae(seed=7, **settings):
    torch.manual_seed(seed)
    return ConditionedVAEGenerator(48, 24, 64, 8, **{"learning_rate": 2e-3, **settings})


@pytest.mark.parametrize("kind", [GaussianGenerator, NoiseGenerator])
def test_a_generator_without_network_has_no_figures(world, kind):
    assert examined(world, kind(48, 24)) is None


def test_training_raises_the_likelihood_and_lowers_the_reconstruction_error(world):
    start, trained = (examined(world, vae(), epochs) for epochs in (0, 60))
    assert trained.likelihood > start.likelihood + 0.1
    assert trained.reconstruction < start.reconstruction
    # The baselines do not depend on the network.
    assert trained.gaussian == start.gaussian
    assert trained.class_mean == start.class_mean


def test_a_vae_with_a_closed_form_start_beats_the_gaussians_and_reports_the_start(alike):
    figures = examined(alike, vae(closed_form=True))
    assert figures.gain[0] > 0
    assert figures.likelihood == pytest.approx(figures.gaussian + sum(figures.gain) / 2)
    assert figures.untrained is not None
    assert examined(alike, vae(closed_form=True), epochs=0).likelihood == pytest.approx(figures.untrained, abs=0.02)
    assert examined(alike, vae()).untrained is None


def test_the_bound_of_a_linear_model_is_near_the_true_density(alike):
    figures = examined(alike, vae(closed_form=True), epochs=0, groups=64)
    clips, labels = alike.clips(12, seed=77)
    covariance = alike.directions[0].T @ alike.directions[0] + 0.25 * torch.eye(48)
    density = torch.distributions.MultivariateNormal(torch.zeros(48), covariance)
    true = density.log_prob(clips.flatten(1) - alike.means[labels]).mean() / 48
    rows = alike.rows(64)
    moments = ClassMoments()
    moments.fit(rows)
    true += moments.spread_rows(rows).std(dim=0, correction=0).log().mean()
    assert true - 0.1 < figures.likelihood < true


def test_the_gates_are_those_of_raw_samples(world):
    found = examined(world, vae(), epochs=0).as_dict()
    assert found["raw_tstr"] < 0.5  # an untrained decoder knows no class, whatever calibration would make of it
    flow = examined(world, FlowGenerator(48, 24, reduced_dim=8, hidden_dim=32), epochs=2).as_dict()
    assert {name for name in flow if name.startswith("raw_")} == set(flow)
    assert {"raw_tstr", "raw_c2st"} <= set(flow)


def test_all_figures_are_in_the_dict_and_in_the_log_lines(world):
    figures = examined(world, vae(closed_form=True))
    found = figures.as_dict()
    assert {"likelihood", "likelihood_gaussian", "likelihood_untrained", "gain", "gain_low", "gain_high"} <= set(found)
    assert {"reconstruction", "reconstruction_class_mean", "raw_nn_ratio", "raw_variance_ratio"} <= set(found)
    assert found["gain"] == pytest.approx(found["likelihood"] - found["likelihood_gaussian"])
    words = " ".join(figures.lines())
    for name in ("likelihood", "likelihood_gaussian", "likelihood_untrained", "gain_low", "reconstruction", "raw_c2st"):
        assert f"{found[name]:.3f}" in words
