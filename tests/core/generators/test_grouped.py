import copy
import logging

import pytest
import torch

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.core.generators.gaussian import GaussianGenerator
from fed_a2v.core.generators.grouped import GroupedVAEGenerator, groups_for
from fed_a2v.core.generators.vae import ConditionedVAEGenerator
from fed_a2v.core.losses import VAELoss, VAELossParts
from fed_a2v.core.seeding import seed_for, torch_generator
from fed_a2v.core.statistics import PrototypeBatch
from fed_a2v.federation.server.step_factory import make_generator
from tests.core.conftest import World, assert_same_bits, draws, through_a_file
from tests.core.test_losses import vae_loss, vae_losses
from tests.refusals import refused

ANIMALS = {"wild": [f"class {n:02}" for n in (0, 3, 4)], "tame": [f"class {n:02}" for n in (1, 2, 5, 6, 7, 8, 9)]}


def maker(**settings):
    # A loss may have weights of its own.
    return lambda: ConditionedVAEGenerator(48, 24, 32, 6, **{"learning_rate": 2e-3, **copy.deepcopy(settings)})


def per_class(world, **settings):
    return GroupedVAEGenerator(maker(conditional=False, **settings), groups_for("per_class", world.names))


def fitted(generator, rows, conditions, epochs=30, noise=0.1, seed=0):
    return generator.fit(rows, conditions, epochs, noise, draws(seed))


def only(rows, names):
    """The rows of some classes, as if there were no others."""
    numbers = [rows.names.index(name) for name in names]
    kept = rows.index_select(torch.isin(rows.labels, torch.tensor(numbers)))
    labels = torch.tensor([numbers.index(label) for label in kept.labels.tolist()])
    return PrototypeBatch(kept.embeddings, labels, kept.counts, kept.variances, tuple(names))


def conditions_of(world, names):
    return world.conditions[[world.names.index(name) for name in names]]


@pytest.fixture(scope="module")
def generator(world):
    torch.set_num_threads(1)
    made = per_class(world)
    fitted(made, world.rows(), world.conditions, 60)
    return made


# Equal to generators trained one after another


def alone(world, key, names, make, rows, rounds, epochs, noise):
    """A plain VAE, fitted with the random numbers that the family gives to the group `key`."""
    vae = None
    for number in range(rounds):
        random = torch_generator(int(torch.randint(2**62, (1,), generator=draws(number))), "group", key)
        if vae is None:
            torch.manual_seed(seed_for(random.initial_seed(), "weights", key))
            vae = make()
        losses = vae.fit(only(rows, names), conditions_of(world, names), epochs, noise, random)
    return vae, losses


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ema": 0.9},
        {"batch_size": 5},
        {"conditional": False},
        {"closed_form": True},
        {"closed_form": True, "ema": 0.9},
        {"loss": VAELoss("cyclical", variance="learned", free_bits=0.1, beta_epochs=4)},
    ],
    ids=str,
)
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_training_together_equals_training_one_after_another(world, settings, noise):
    make, rows = maker(**settings), world.rows()
    family = GroupedVAEGenerator(make, ANIMALS)
    for number in range(2):
        losses = fitted(family, rows, world.conditions, 6, noise, number)
    for key, names in ANIMALS.items():
        vae, own = alone(world, key, names, make, rows, 2, 6, noise)
        for name, tensor in vae.state_dict().items():
            torch.testing.assert_close(family.member(key).state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
        for name in names:
            assert losses[-1].per_class[name] == pytest.approx(own[-1].per_class[name], rel=1e-3, abs=1e-5)
        assert family.member(key).training_state()["epoch"] == 12


def test_fifty_generators_of_one_class_equal_plain_ones():
    world = World(classes=50, width=16, condition=64)
    make = lambda: ConditionedVAEGenerator(16, 64, 8, 4, conditional=False)  # noqa: E731
    family = GroupedVAEGenerator(make, groups_for("per_class", world.names))
    rows = world.rows()
    fitted(family, rows, world.conditions, 20)
    for name in world.names[::7]:
        vae, _ = alone(world, name, [name], make, rows, 1, 20, 0.1)
        for one, other in zip(vae.parameters(), family.member(name).parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_group_learns_the_same_whichever_other_groups_there_are(world):
    rows, names = world.rows(), ANIMALS["wild"]
    both, one = GroupedVAEGenerator(maker(), ANIMALS), GroupedVAEGenerator(maker(), ANIMALS)
    fitted(both, rows, world.conditions)
    fitted(one, only(rows, names), conditions_of(world, names))
    for name, tensor in one.member("wild").state_dict().items():
        torch.testing.assert_close(both.member("wild").state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_groups_with_different_numbers_of_rows_train_each_on_its_own(world):
    rows = world.rows(groups=20)
    uneven = rows.index_select(torch.tensor([n % 20 < 3 + 2 * (n // 20) for n in range(len(rows))]))
    family = per_class(world)
    losses = fitted(family, uneven, world.conditions)
    assert set(losses[-1].per_class) == set(world.names)
    samples = family.sample_classes(world.conditions, 20, draws(1)).flatten(0, 1)
    labels = torch.arange(10).repeat_interleave(20)
    assert (world.nearest_class(samples) == labels).float().mean() > 0.95


def test_the_same_seed_gives_the_same_bits_and_leaves_torchs_own_random_numbers_alone(world):
    torch.manual_seed(1)
    wanted = torch.rand(3)
    states = []
    for _ in range(2):
        torch.manual_seed(1)
        made = per_class(world)
        before = torch.random.get_rng_state()
        fitted(made, world.rows(), world.conditions, 5)
        assert torch.equal(torch.random.get_rng_state(), before)
        states.append(made.checkpoint())
    assert_same_bits(*states)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), wanted)


# Sampling


def test_samples_are_those_of_the_class_and_as_wide_as_its_clips(world, generator):
    labels = torch.arange(10).repeat_interleave(100)
    samples = generator.sample_classes(world.conditions, 100, draws(1)).flatten(0, 1)
    assert (world.nearest_class(samples) == labels).float().mean() > 0.98
    assert 0.75 < world.variance_ratio(samples, labels) < 1.25
    assert len(samples.flatten(1).unique(dim=0)) == 1000


def test_one_condition_a_sample_gives_each_its_own_class(world, generator):
    order = torch.tensor([4, 0, 9, 4, 2])
    samples = generator.sample(5, world.conditions[order], random=draws(1))
    assert torch.equal(world.nearest_class(samples), order)


def test_a_condition_near_a_known_class_is_taken_for_it(world, generator):
    near = world.conditions[3] + 0.1 * torch.randn(24, generator=draws(2))
    assert (world.nearest_class(generator.sample(20, near, random=draws(1))) == 3).all()


def test_an_unknown_condition_is_an_error_that_names_the_nearest_and_the_known_classes(world, generator):
    condition = torch.randn(24, generator=draws(8)) + 2
    centre = world.conditions.mean(0)
    nearest = torch.cosine_similarity(world.conditions - centre, condition - centre).argmax()
    with refused(ValueError, "visual_condition", repr(world.names[nearest]), "class 00", "class 01"):
        generator.sample(3, condition)


def test_before_the_first_fit_there_is_nothing_to_sample(world):
    with refused(RuntimeError, "fit", "checkpoint"):
        per_class(world).sample(3, world.conditions[0])


def test_asking_for_a_generator_that_does_not_exist_names_those_that_do(generator):
    with refused(KeyError, "'cow'", "class 00"):
        generator.member("cow")


# Groups


@pytest.mark.parametrize(
    ("granularity", "groups", "named"),
    [
        ("per_group", {"a": ["dog"], "b": ["cat", "dog"], "c": ["cow"]}, ("'dog'", "'a'", "'b'")),
        ("per_group", {"pets": ["dog"]}, ("cat", "cow", "pets")),
        ("per_group", {"a": ["dog", "cat", "cow"], "b": []}, ("'b'",)),
        ("per_group", None, ("granularity=per_group", "groups", "{NAME: [CLASS, ...], ...}")),
        ("per_class", {"a": ["dog"]}, ("groups", "granularity=per_class", "granularity=per_group")),
        ("unified", {"a": ["dog"]}, ("groups", "granularity=unified", "granularity=per_group")),
        ("per_sound", None, ("granularity='per_sound'", "unified", "per_class", "per_group")),
    ],
)
def test_groups_that_do_not_fit_are_an_error_that_names_the_class(granularity, groups, named):
    with refused(ValueError, *named):
        groups_for(granularity, ["dog", "cat", "cow"], groups)
    overrides = f"generator.granularity={granularity}"
    if groups:
        overrides += f" 'generator.groups={groups}'"
    with refused(ConfigError, *named):
        make_generator(compose_settings(overrides), (1, 24), 8, ["dog", "cat", "cow"])


def test_a_class_in_no_group_is_refused_when_it_appears(world):
    family = GroupedVAEGenerator(maker(), {"wild": ANIMALS["wild"]})
    with refused(ValueError, "'class 01'", "wild"):
        fitted(family, world.rows(), world.conditions, 1)


def test_the_configuration_makes_one_generator_one_a_class_or_one_a_group():
    classes = ["a.b", "c/d", "keys"]
    made = make_generator(compose_settings(""), (1, 24), 8, classes)
    assert isinstance(made, ConditionedVAEGenerator)
    made = make_generator(compose_settings("generator.granularity=per_class"), (1, 24), 8, classes)
    assert made.keys == ("a.b", "c/d", "keys")
    words = ["generator.granularity=per_group", "generator.groups={x: ['a.b', 'c/d'], y: [keys]}"]
    made = make_generator(compose_settings(words), (1, 24), 8, classes)
    assert made.keys == ("x", "y")


def test_only_vaes_can_be_grouped():
    with refused(ValueError, "gaussian", "granularity=per_class", "granularity=unified"):
        GroupedVAEGenerator(lambda: GaussianGenerator(4, 4), {"a": ["dog"]})


# Rounds


def test_a_class_that_appears_later_gets_its_generator_and_the_others_keep_theirs(world):
    rows, early, late = world.rows(), world.names[:4], world.names[:6]
    family = per_class(world)
    fitted(family, only(rows, early), conditions_of(world, early))
    before = family.checkpoints()
    fitted(family, only(rows, late), conditions_of(world, late), 3, seed=1)
    after = family.checkpoints()
    assert list(after) == list(late)
    assert [after[name]["optimizer_state"]["epoch"] for name in late] == [33] * 4 + [3] * 2
    step = after[early[0]]["optimizer_state"]["optimiser"]["state"][0]["step"]
    assert step == before[early[0]]["optimizer_state"]["optimiser"]["state"][0]["step"] + 3


def test_a_class_without_rows_in_a_round_keeps_its_generator_unchanged(world):
    rows = world.rows()
    family = per_class(world)
    fitted(family, rows, world.conditions)
    before = through_a_file(family.checkpoints()[world.names[9]])
    fitted(family, only(rows, world.names[:9]), world.conditions[:9], seed=1)
    assert_same_bits(through_a_file(family.checkpoints()[world.names[9]]), before)
    assert (world.nearest_class(family.sample(20, world.conditions[9], random=draws(1))) == 9).all()


def test_a_restored_family_goes_on_bit_for_bit(world):
    rows = world.rows()
    first, second = (GroupedVAEGenerator(maker(ema=0.9), ANIMALS) for _ in range(2))
    fitted(first, rows, world.conditions)
    second.load_checkpoint(through_a_file(first.checkpoint()))
    for family in (first, second):
        fitted(family, rows, world.conditions, 10, seed=1)
    assert_same_bits(first.checkpoint(), second.checkpoint())
    assert torch.equal(*(f.sample_classes(world.conditions, 3, draws(2)) for f in (first, second)))


# Checkpoints


def test_each_checkpoint_is_that_of_a_plain_vae(world, generator):
    checkpoint = through_a_file(generator.checkpoints()["class 03"])
    assert checkpoint["generator_type"] == "vae"
    assert checkpoint["classes"] == ["class 03"]
    assert checkpoint["family"] == list(world.names)
    vae = maker(conditional=False)()
    vae.load_checkpoint(checkpoint)
    assert (world.nearest_class(vae.sample(20, world.conditions[3], random=draws(1))) == 3).all()


def test_a_checkpoint_of_another_grouping_is_refused_by_name(world, generator):
    with refused(ValueError, "'class 00'", "tame", "wild"):
        GroupedVAEGenerator(maker(conditional=False), ANIMALS).load_checkpoints(generator.checkpoints())
    moved = GroupedVAEGenerator(maker(conditional=False), {"wild": ["class 01"]})
    with refused(ValueError, "'wild'", "'class 00'"):
        moved.load_checkpoints({"wild": generator.checkpoints()["class 00"]})


# Losses


class OwnLoss(torch.nn.Module):
    def forward(self, recon_x, x, mu, logvar, epoch):
        return (recon_x - x).square().mean() + 1e-3 * mu.square().mean()


@pytest.mark.parametrize("kind", ["per_class", "per_group"])
@pytest.mark.parametrize("settings", vae_losses(), ids=str)
def test_the_loss_of_all_generators_is_the_sum_of_its_terms_and_the_mean_of_the_classes(world, settings, kind):
    rows, groups = world.rows(), groups_for(kind, world.names, ANIMALS if kind == "per_group" else None)
    family = GroupedVAEGenerator(maker(batch_size=20, loss=vae_loss(**settings)), groups)
    for epoch in fitted(family, rows, world.conditions, 2):
        assert set(epoch.parts) == set(VAELossParts._fields[1:])
        assert sum(epoch.parts.values()) == pytest.approx(epoch.total, abs=1e-5)
        assert set(epoch.per_class) == set(world.names)
        by_class = [sum(parts.values()) for parts in epoch.per_class.values()]
        assert sum(by_class) / 10 == pytest.approx(epoch.total, abs=1e-5)


def test_losses_fall_and_a_users_own_may_return_a_scalar(world):
    losses = fitted(per_class(world), world.rows(), world.conditions, 40)
    assert losses[-1].total < losses[0].total
    own = fitted(per_class(world, loss=OwnLoss()), world.rows(), world.conditions, 40)
    assert own[-1].total < own[0].total
    assert own[-1].per_class == {}


def test_a_class_of_unknown_spread_causes_a_warning(world, caplog):
    rows = world.rows(groups=1, variance=False)
    with caplog.at_level(logging.WARNING, logger="fed_a2v"):
        fitted(per_class(world), rows, world.conditions, 1)
    assert "class 07" in caplog.text
