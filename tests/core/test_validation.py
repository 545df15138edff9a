"""The validation detects bad generators, although its held-out rows are averages of clips."""

import logging
import re

import numpy as np
import pytest
import torch

from fed_a2v.core.generators.gaussian import GaussianGenerator
from fed_a2v.core.generators.grouped import GroupedVAEGenerator
from fed_a2v.core.generators.vae import ConditionedVAEGenerator
from fed_a2v.core.losses import AdapterLoss, AdapterLossWeights, VAELoss
from fed_a2v.core.quality import Rows
from fed_a2v.core.server_step import ServerStep, ServerStepSettings
from fed_a2v.core.validation import active_units, validate, validate_samples
from tests.core.conftest import StubGenerator, World, draws
from tests.core.test_quality import World as RowWorld
from tests.refusals import refused


class Cheat(StubGenerator):
    """Returns `make(label, number, random)` as samples."""

    def __init__(self, world, make):
        super().__init__(world)
        self.world, self.make = world, make

    def sample(self, num_samples, visual_condition, device=None, random=None):
        labels = torch.cdist(visual_condition, self.world.conditions).argmin(dim=1)
        return torch.cat([self.make(int(label), int((labels == label).sum()), random) for label in labels.unique()])


def validated(generator, world=None, epochs=40, **rows):
    world = world or World()
    trained_on, held_out = world.rows(**{"groups": 32, **rows}).split(0.125)
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
        assert result.agreement.similarity == pytest.approx(result.real.similarity, abs=0.02)


def test_every_figure_has_the_baseline_of_real_rows():
    row = validated(GaussianGenerator(48, 24)).metrics()
    for name in ("c2st", "nn_ratio", "accuracy"):
        assert {f"generator_quality/{name}", f"generator_quality/{name}_real"} <= row.keys()
    assert "generator_quality/active_units" not in row
    assert not any(name.startswith("generator_network/") for name in row)


def means(world):
    return lambda label, number, random: (world.scale * world.means[label]).repeat(number, 1).unsqueeze(1)


def test_samples_without_spread_are_detected():
    world = World()
    assert any("no spread" in line for line in validated(Cheat(world, means(world))).warnings())


def test_copies_of_the_training_rows_are_detected():
    world = World()
    trained_on, _ = world.rows(groups=32).split(0.125)
    moments = GaussianGenerator(48, 24)
    moments.fit(trained_on, world.conditions, 1, 0.0, draws(0))
    stretched = moments.moments.spread_rows(trained_on)

    def copies(label, number, random):
        own = stretched[trained_on.labels == label]
        return own[torch.randint(len(own), (number,), generator=random)].unsqueeze(1)

    assert any("copy" in line for line in validated(Cheat(world, copies)).warnings())


def test_a_generator_that_ignores_its_class_is_detected():
    assert any("do not carry their class" in line for line in validated(StubGenerator(World())).warnings())


def test_a_collapsed_posterior_is_detected():
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


@pytest.mark.parametrize("family", [False, True])
def test_figures_of_the_network_alone_are_logged_with_their_baselines(caplog, family):
    world = World()
    one = vae(world)
    with caplog.at_level(logging.INFO, "fed_a2v"):
        result = validated(GroupedVAEGenerator(lambda: vae(world), {"all": world.names}) if family else one)
        result.report()
    row = {name: value for name, value in result.metrics().items() if name.startswith("generator_network/")}
    for name in ("likelihood", "likelihood_gaussian", "gain_low", "reconstruction", "raw_tstr"):
        value = row[f"generator_network/{name}"]
        assert any(f"{value:.3f}" in line for line in caplog.messages if line.strip().startswith("network alone"))
    assert row["generator_network/reconstruction"] > 0


def test_few_rows_give_few_figures_and_no_false_alarm():
    result = validated(GaussianGenerator(48, 24), World(classes=3), groups=8)
    assert result.quality.synthetic.c2st is None
    assert result.warnings() == []


def test_ten_rows_give_no_verdict_on_anything(caplog):
    with caplog.at_level(logging.INFO, "fed_a2v"):
        result = validated(StubGenerator(World()), groups=8)
        result.report()
    assert (result.rows, result.quality.rows) == (10, 10)
    assert [gate.passed for gate in result.quality.gates()] == [None] * 3
    assert result.warnings() == []
    c2st = next(line for line in caplog.messages if line.strip().startswith("c2st"))
    assert [float(number) for number in re.findall(r"\d\.\d{3}", c2st)[1:3]] == pytest.approx(
        result.quality.gates()[1].interval, abs=6e-4
    )
    assert re.search(r"\b10 rows", c2st)


# Baselines of the similarity


def cosine(one, other):
    """Mean over all pairs, in each token."""
    pairs = torch.cosine_similarity(one.unsqueeze(1), other.unsqueeze(0), dim=-1)
    return float(pairs.mean())


def test_the_similarity_has_baselines_of_real_rows_and_of_a_constant(caplog):
    world = World(tokens=2, width=24)
    trained_on, held_out = world.rows(groups=16).split(0.125)
    generator = GaussianGenerator(24, 24, 2)
    generator.fit(trained_on, world.conditions, 1, 0.0, draws(0))
    found = validate(generator, trained_on, held_out, world.conditions, draws(1))
    with caplog.at_level(logging.INFO, "fed_a2v"):
        found.report()
    row = found.metrics()
    means = torch.stack([trained_on.embeddings[trained_on.labels == label].mean(0) for label in range(10)])
    real, blind = [], []
    for label in range(10):
        of_class = held_out.embeddings[held_out.labels == label]
        offsets = generator.moments.spread_rows(trained_on)[trained_on.labels == label] - generator.moments.mean[label]
        clips = offsets * (generator.moments.std[label].square().sum() / offsets.square().sum(1).mean()).sqrt()
        real.append(cosine((clips + generator.moments.mean[label]).unflatten(1, world.shape), of_class))
        blind.append(cosine(means.mean(0, keepdim=True), of_class))
    assert row["server/generator_validation_similarity_real"] == pytest.approx(sum(real) / 10, abs=1e-5)
    assert row["server/generator_validation_similarity_blind"] == pytest.approx(sum(blind) / 10, abs=1e-5)
    assert row["server/generator_validation_rows"] == len(held_out) == 20
    line = next(line for line in caplog.messages if line.startswith("Average Cosine Similarity"))
    told = [float(number) for number in re.findall(r"-?\d\.\d+", line)]
    names = [f"server/generator_validation_similarity{behind}" for behind in ("", "_real", "_blind")]
    assert told == pytest.approx([row[name] for name in names], abs=1e-4)


@pytest.mark.parametrize("groups", [3, 8, 32])
@pytest.mark.parametrize("non_negative", [False, True])
def test_samples_as_good_as_clips_score_as_real_rows_do(groups, non_negative):
    """Real rows are averages, and are stretched to what samples are, however few there are: single clips.

    The mean of their class is known by few rows, which costs them a little.
    """
    world = World(non_negative=non_negative, offset=4.0)

    def clips(label, number, random):
        found, labels = world.clips(number, seed=int(torch.randint(1000, (1,), generator=random)))
        return found[labels == label]

    found = validated(Cheat(world, clips), world, groups=groups)
    assert found.agreement.similarity == pytest.approx(found.real.similarity, abs=0.006)
    for measure in ("mse", "l1"):
        assert 0.92 < getattr(found.real, measure) / getattr(found.agreement, measure) < 1.1, measure


def test_a_constant_may_score_better_than_real_rows():
    world = World(offset=20.0)  # crowded, and clips of a class differ more than classes do
    world.means *= 0.3
    constant = world.clips(50)[0].mean(dim=0, keepdim=True)
    found = validated(Cheat(world, lambda label, number, random: constant.repeat(number, 1, 1)), world)
    assert found.agreement.similarity == pytest.approx(found.blind.similarity, abs=1e-3)
    assert found.agreement.similarity > found.real.similarity
    assert found.quality.tstr < 0.2


# Remedies of the warnings


def test_the_generator_that_a_warning_recommends_passes():
    world = World()
    trained_on, _ = world.rows(groups=32).split(0.125)

    def repeated(label, number, random):
        return trained_on.embeddings[trained_on.labels == label][:1].repeat(number, 1, 1)

    advice = [
        line
        for generator in (Cheat(world, means(world)), Cheat(world, repeated), StubGenerator(world))
        for line in validated(generator).warnings()
    ]
    assert len(advice) >= 4
    named = {name for line in advice for name in re.findall(r"generator=(\w+)", line)}
    assert named == {GaussianGenerator.kind}
    result = validated(GaussianGenerator(48, 24))
    assert [gate.passed for gate in result.quality.gates()] == [True] * 3


def test_a_class_without_two_training_rows_is_not_compared():
    world = World(classes=3)
    rows = world.rows(groups=4)
    held_out = rows.index_select(torch.tensor([0, 4, 8]))
    generator = GaussianGenerator(48, 24)
    generator.fit(rows, world.conditions, 1, 0.0, draws(0))
    few = rows.index_select(torch.tensor([1, 5, 6, 7]))  # one of the first class, none of the last
    found = validate(generator, few, held_out, world.conditions, draws(1))
    assert list(found.agreement.per_class) == list(found.real.per_class) == ["class 01"]
    assert validate(generator, few.index_select(torch.tensor([0, 1])), held_out, world.conditions, draws(1)) is None


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


# Agreement of samples with held-out rows


def test_agreement_is_the_mean_over_all_pairs_of_a_class():
    generator = torch.Generator().manual_seed(0)
    fake = Rows(torch.randn(5, 2, 6, generator=generator), torch.tensor([0, 0, 2, 2, 2]))
    real = Rows(torch.randn(6, 2, 6, generator=generator), torch.tensor([2, 0, 0, 1, 2, 0]))
    found = validate_samples(fake, real, ["dog", "rain", "cat"])

    expected = {"cosine": [], "mse": [], "l1": []}
    for label in (0, 2):
        pairs = [(a, b) for a in fake.embeddings[fake.labels == label] for b in real.embeddings[real.labels == label]]
        expected["cosine"].append(np.mean([torch.cosine_similarity(a, b, dim=-1).mean().item() for a, b in pairs]))
        expected["mse"].append(np.mean([(a - b).square().mean().item() for a, b in pairs]))
        expected["l1"].append(np.mean([(a - b).abs().mean().item() for a, b in pairs]))
    assert found.similarity == pytest.approx(np.mean(expected["cosine"]), abs=1e-6)
    assert found.mse == pytest.approx(np.mean(expected["mse"]), abs=1e-6)
    assert found.l1 == pytest.approx(np.mean(expected["l1"]), abs=1e-6)
    assert list(found.per_class) == ["cat", "dog"], "sorted by name; a class without samples is left out"
    assert found.per_class["dog"] == pytest.approx(expected["cosine"][0], abs=1e-6)


def test_samples_of_the_right_class_agree_better_than_shuffled_ones():
    world = RowWorld()
    train, held_out = world(24, -1), world(16, -2)
    names = [f"class {i}" for i in range(16)]
    right = validate_samples(world(8, 0), held_out, names)
    wrong = validate_samples(Rows(world(8, 0).embeddings, world(8, 0).labels.flip(0)), held_out, names)
    assert right.similarity > wrong.similarity + 0.1
    assert right.mse < wrong.mse
    assert right.similarity == pytest.approx(validate_samples(train, held_out, names).similarity, abs=0.02)


def test_nothing_to_validate_is_an_error_with_a_remedy():
    with refused(ValueError, "generator.holdout"):
        validate_samples(
            Rows(torch.ones(1, 4), torch.tensor([0])), Rows(torch.ones(1, 4), torch.tensor([1])), ["a", "b"]
        )


# Active units


def test_units_that_only_repeat_the_class_are_not_active():
    labels = torch.arange(5).repeat_interleave(20)
    varied = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    faint = 0.05 * torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
    repeats = labels[:, None].expand(-1, 4).float()
    assert active_units(torch.cat([varied, faint, repeats], 1), labels) == 3
    assert active_units(repeats, labels) == 0


def test_active_units_need_two_rows_of_some_class():
    assert active_units(torch.randn(3, 4), torch.arange(3)) is None
