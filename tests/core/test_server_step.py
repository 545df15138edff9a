import logging
from dataclasses import replace

import pytest
import torch

from fed_a2v.core.generators.gaussian import GaussianGenerator
from fed_a2v.core.generators.vae import ConditionedVAEGenerator
from fed_a2v.core.losses import AdapterLoss, AdapterLossWeights
from fed_a2v.core.metrics import retrieval
from fed_a2v.core.prompts import ClassPrompts
from fed_a2v.core.server_step import ServerStep, ServerStepSettings, SiteUpdate
from fed_a2v.core.sharing import fingerprint, share_class
from fed_a2v.core.training import AdamWSettings
from tests.core.conftest import (
    StubGenerator,
    WatchedAdapters,
    World,
    assert_same_bits,
    contains,
    draws,
    through_a_file,
)

T5 = (3, 10)
QUICK = ServerStepSettings(
    training_epochs=5,
    validation_frequency=2,
    synthetic_samples_per_class=8,
    first_steps=20,
    steps=10,
    optimiser=AdamWSettings(1e-3, 1e-4, 32),
)


def generator_of(kind, world):
    torch.manual_seed(6)
    if kind == "vae":
        return ConditionedVAEGenerator(world.shape[1], 24, 32, 6, world.shape[0], learning_rate=2e-3)
    return GaussianGenerator(world.shape[1], 24, world.shape[0]) if kind == "gaussian" else None


def step_of(world, generator=None, adapters=None, t5=None, **settings):
    adapters = adapters or world.adapters(t5=t5)
    if isinstance(generator, str):
        generator = generator_of(generator, world)
    prompts = world.prompts(t5=t5)
    return ServerStep(
        adapters, prompts, generator, AdapterLoss(prompts, AdapterLossWeights()), replace(QUICK, **settings)
    )


def weights_of(step):
    return [weight.clone() for weight in step.adapters.weights()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def without_seconds(row):
    return {name: value for name, value in row.items() if not name.startswith("seconds/")}


def updates_from(world, clips, labels, **share):
    """One site's reply with all the classes of `clips`."""
    said = [
        share_class(world.names[label], clips[labels == label], **{"kind": "prototypes", **share})
        for label in labels.unique().tolist()
    ]
    said = [prompts for prompts in said if prompts is not None]
    return [SiteUpdate("site", said, fingerprint(said))]


KINDS = pytest.mark.parametrize("kind", [None, "gaussian", "vae"])


# What enters the fine-tuning


def test_synthetic_rows_change_the_fine_tuned_adapters():
    world = World()
    results = []
    for distance in (0.0, 30.0):
        step = step_of(world, StubGenerator(world, distance))
        step.run(1, world.updates())
        results.append(weights_of(step))
    assert not same(*results)


def test_every_real_and_every_synthetic_row_enters_the_loss():
    world = World()
    generator, adapters = StubGenerator(world), world.adapters(kind=WatchedAdapters)
    # 10 classes with 7 prototypes, once each, and 8 samples: 150 rows at least; 20 x 32 = 640 are drawn.
    step = step_of(world, generator, adapters)
    step.run(1, world.updates())
    made = torch.cat(generator.made)
    assert len(made) == 10 * 8
    assert all(contains(adapters.seen, row) for row in made)
    trained_on, _ = step.bank.rows().split(QUICK.holdout)
    assert all(contains(adapters.seen, row) for row in trained_on.embeddings)
    assert len(adapters.seen) == 20 * 32


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_share_of_synthetic_rows_is_the_one_asked_for(share):
    world = World()
    generator, adapters = StubGenerator(world), world.adapters(kind=WatchedAdapters)
    step_of(world, generator, adapters, synthetic_share=share, first_steps=60).run(1, world.updates())
    made = torch.cat(generator.made) if generator.made else adapters.seen[:0]
    drawn = sum(contains(made, row) for row in adapters.seen) / len(adapters.seen)
    assert drawn == pytest.approx(share, abs=0.06)


def test_rare_classes_enter_as_often_as_common_ones():
    world = World(classes=3)
    clips, labels = world.clips([3, 3, 48])
    common = world.adapters(kind=WatchedAdapters)
    step = step_of(world, StubGenerator(world), common, holdout=0.0)
    step.run(1, updates_from(world, clips, labels))
    rows = step.bank.rows()
    assert rows.labels.bincount().tolist() == [1, 1, 8]
    made = torch.cat(step.generator.made).view(3, -1, *world.shape)
    drawn = [
        sum(contains(torch.cat([rows.embeddings[rows.labels == label], made[label]]), row) for row in common.seen)
        for label in range(3)
    ]
    assert max(drawn) - min(drawn) <= 1


def test_samples_are_fresh_in_every_round():
    world = World()
    generator = StubGenerator(world)
    step = step_of(world, generator, validation_frequency=100)
    for number in (1, 2):
        step.run(number, world.updates())
    first, second = generator.made
    assert not any(contains(second, row) for row in first)


def test_held_out_rows_train_neither_the_generator_nor_the_adapters():
    world = World()
    generator, adapters = StubGenerator(world), world.adapters(kind=WatchedAdapters)
    step = step_of(world, generator, adapters)
    for number in (1, 2, 3):
        step.run(number, world.updates())
    _, held_out = step.bank.rows().split(QUICK.holdout)
    assert len(held_out) == 10
    for rows, _ in generator.fitted:
        assert len(rows) == 70
        assert not any(contains(rows.embeddings, row) for row in held_out.embeddings)
    assert not any(contains(adapters.seen, row) for row in held_out.embeddings)


def test_the_generator_gets_each_class_with_its_own_condition():
    world = World()
    generator = StubGenerator(world)
    prompts = world.prompts(clip_tokens=4)
    prompts = prompts._replace(
        names=tuple(reversed(prompts.names)), clip=(prompts.clip + torch.arange(4.0)[:, None]).flip(0)
    )
    adapters = world.adapters()
    step = ServerStep(adapters, prompts, generator, AdapterLoss(prompts, AdapterLossWeights()), QUICK)
    step.fill_bank(1, world.updates())
    rows = step.bank.rows()
    assert rows.names == world.names
    torch.testing.assert_close(step.conditions_of(rows.names), world.conditions + 1.5)


# What fine-tuning does


@KINDS
def test_both_adapters_are_trained_and_learn_the_classes(kind):
    world = World()
    step = step_of(world, kind, t5=T5, first_steps=60)
    before = {name: value.clone() for name, value in step.adapters.named_parameters()}
    clips, labels = world.clips(20, seed=8)
    prompts = world.prompts(t5=T5)
    errors = []
    for _ in range(2):
        with torch.no_grad():
            clip, t5 = step.adapters(clips)
        errors.append(
            [float((clip - prompts.clip[labels]).square().mean()), float((t5 - prompts.t5[labels]).square().mean())]
        )
        row = step.run(1, world.updates())
    assert all(after < 0.8 * start for start, after in zip(*errors, strict=True))
    assert all(not torch.equal(before[name], value) for name, value in step.adapters.named_parameters())
    assert row["rolled_back"] is False
    assert row["finetune/held_out_after"] <= row["finetune/held_out_before"]


def test_sites_may_number_their_classes_as_they_like():
    """The adapters learn the prompt of the name, whatever the order of the prompts and of the replies."""
    world = World()
    prompts = world.prompts()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    shuffled = prompts._replace(names=tuple(prompts.names[k] for k in order), clip=prompts.clip[order])
    updates = [update._replace(prompts=update.prompts[::-1]) for update in world.updates()]
    loss = AdapterLoss(shuffled, AdapterLossWeights())
    step = ServerStep(
        world.adapters(), shuffled, generator_of("gaussian", world), loss, replace(QUICK, first_steps=100)
    )
    step.run(1, updates)
    clips, labels = world.clips(10, seed=8)
    with torch.no_grad():
        nearest = torch.cdist(step.adapters(clips).clip.flatten(1), prompts.clip.flatten(1)).argmin(1)
    assert (nearest == labels).float().mean() > 0.9


def test_the_first_round_takes_more_steps_than_later_ones():
    world = World()
    adapters = world.adapters(kind=WatchedAdapters)
    step = step_of(world, None, adapters)
    seen = []
    for number in (1, 2, 3):
        step.run(number, world.updates())
        seen.append(len(adapters.seen))
    assert seen == [20 * 32, 30 * 32, 40 * 32]


def test_fine_tuning_can_pull_to_the_sites_outputs():
    world = World()
    clips, labels = world.clips(24)
    wanted = torch.randn(10, 1, 24) * 3
    updates = [
        update._replace(prompts=[replace(p, clip=wanted[world.names.index(p.name)]) for p in update.prompts])
        for update in world.updates()
    ]
    errors = []
    for from_nodes in (False, True):
        step = step_of(world, None, from_nodes_adapters=from_nodes, first_steps=150, rollback=False)
        step.run(1, updates)
        with torch.no_grad():
            errors.append(float((step.adapters(clips).clip - wanted[labels]).square().mean()))
    assert errors[1] < 0.7 * errors[0]


def test_the_class_prompt_stands_in_where_no_site_has_sent_outputs():
    world = World()
    step = step_of(world, None, t5=T5)
    updates = world.updates()
    updates[0].prompts[0] = replace(updates[0].prompts[0], clip=torch.full((1, 24), 9.0))
    step.fill_bank(1, updates)
    clip, t5 = step._targets()
    name = updates[0].prompts[0].name
    expected = world.prompts().clip.clone()
    expected[world.names.index(name)] = 9
    assert torch.equal(clip, expected)
    assert torch.equal(t5, world.prompts(t5=T5).t5)


def test_without_fine_tuning_the_average_stays_as_it_is():
    world = World()
    step = step_of(world, "gaussian", finetune=False)
    before = weights_of(step)
    assert step.run(1, world.updates()) == {}
    assert same(before, weights_of(step))
    assert len(step.bank.rows()) == 80


def test_a_round_without_any_prototype_changes_nothing():
    step = step_of(World(), "vae")
    before = weights_of(step)
    assert step.run(1, []) == {}
    assert same(before, weights_of(step))


# Sites that count for less than they say


def test_sites_that_are_cut_are_counted_in_the_row_and_named_once(caplog):
    world = World()
    step = step_of(world, None, max_site_share=0.5)
    with caplog.at_level(logging.INFO, "fed_a2v"):
        assert step.run(1, world.updates())["bank/capped_sites"] == 0
        assert "max_site_share" not in caplog.text
        larger = world.updates(clips_per_class=[48] + [24] * 9)  # 144 clips at site 0, 120 at site 1
        assert [step.run(number, larger)["bank/capped_sites"] for number in (2, 3)] == [1, 1]
    (line,) = [record.getMessage() for record in caplog.records if "max_site_share" in record.getMessage()]
    assert "site 0 (5 classes)" in line
    assert "site 1" not in line
    assert step_of(world, None).run(1, larger)["bank/capped_sites"] == 0, "without a cap"


# Rolling back


@pytest.mark.parametrize("rate", [50.0, 1e38], ids=["worse", "not even finite"])
def test_a_worse_held_out_loss_brings_the_adapters_back_bit_for_bit(rate, caplog):
    world = World()
    step = step_of(world, "gaussian", t5=T5, optimiser=AdamWSettings(rate, 0.0, 32))
    before = {name: value.clone() for name, value in step.adapters.state_dict().items()}
    with caplog.at_level(logging.WARNING, "fed_a2v"):
        row = step.run(1, world.updates())
    assert row["rolled_back"] is True
    assert row["server/optimiser_steps"] == 20  # they were taken all the same
    assert not row["finetune/held_out_after"] <= row["finetune/held_out_before"]
    assert f"{row['finetune/held_out_before']:.4f}" in caplog.text
    assert_same_bits(dict(step.adapters.state_dict()), before)


def test_nothing_is_rolled_back_where_that_is_switched_off():
    world = World()
    step = step_of(world, None, optimiser=AdamWSettings(50.0, 0.0, 32), rollback=False)
    before = weights_of(step)
    row = step.run(1, world.updates())
    assert row["rolled_back"] is False
    assert row["finetune/held_out_after"] > row["finetune/held_out_before"]
    assert not same(before, weights_of(step))


# Validation


def test_validation_compares_fresh_samples_with_rows_the_generator_never_saw():
    world = World()
    step = step_of(world, "gaussian")
    names = {f"server/generator_validation_{measure}" for measure in ("similarity", "mse", "l1")}
    assert names.isdisjoint(step.run(1, world.updates()))
    row = step.run(2, world.updates())
    assert names <= row.keys()
    assert row["server/generator_validation_similarity"] > 0.6
    assert set(row["generator_validation_per_class"]) == set(world.names)


def test_validation_sees_a_generator_that_ignores_the_class():
    """Reconstructing the training rows, or one mean for all, must not look good."""
    world = World()
    row = step_of(world, StubGenerator(world)).run(2, world.updates())
    assert row["server/generator_validation_similarity"] < 0.3


def test_the_round_is_told_in_the_guides_words(caplog):
    world = World()
    with caplog.at_level(logging.INFO, "fed_a2v"):
        step_of(world, "vae").run(10, world.updates())
    for line in (
        "=== Round 10: Training Generator and Global Adapters ===",
        "Training generator for 5 epochs with augmentation=True",
        "  Epoch 1 Class 'class 00': VAE Loss=",
        "Generator training completed. Average loss: ",
        "Validating generator at round 10",
        "=== Generator Validation Metrics ===",
        "Average Cosine Similarity: ",
        "Average MSE Loss: ",
        "Average L1 Loss: ",
        "Classes validated: 10",
        "  - class 00: ",
    ):
        assert any(message.startswith(line) for message in caplog.messages), line


# What the sites may say


@KINDS
@pytest.mark.parametrize(
    ("classes", "clips", "share"),
    [
        (1, 24, {}),
        (10, 24, {"kind": "mean"}),
        (10, 24, {"kind": "mean", "variance": False}),
        (1, 3, {"kind": "mean", "variance": False}),
        (4, [3, 5, 24, 48], {}),
        (3, 6, {"kind": "samples"}),
    ],
    ids=["one class", "means", "means without variance", "one mean in all", "uneven", "single clips"],
)
def test_whatever_the_sites_share_a_round_ends_with_finite_adapters(kind, classes, clips, share):
    world = World(classes=classes)
    step = step_of(world, kind, t5=T5, rollback=False)
    before = weights_of(step)
    for number in (1, 2):
        row = step.run(number, updates_from(world, *world.clips(clips), **share))
        assert row["server/adapter_finetuning_loss"] < float("inf")
    assert all(weight.isfinite().all() for weight in step.adapters.weights())
    assert not same(before, weights_of(step))


@KINDS
def test_sequences_of_audio_tokens_go_through(kind):
    world = World(width=12, tokens=4)
    step = step_of(world, kind)
    step.standardise_adapters()
    row = step.run(2, world.updates())
    assert row["finetune/held_out_after"] < row["finetune/held_out_before"]


def test_a_site_that_resends_without_audio_keeps_its_prototypes():
    world = World()
    one, other = step_of(world, "gaussian"), step_of(world, "gaussian")
    updates = world.updates()
    short = [u._replace(prompts=[ClassPrompts(p.name, p.count) for p in u.prompts]) for u in updates]
    one.run(1, updates)
    other.run(1, updates)
    assert_same_bits(without_seconds(one.run(2, updates)), without_seconds(other.run(2, short)))
    assert_same_bits(one.state_dict(), other.state_dict())


def test_a_silent_site_counts_until_it_is_too_old(caplog):
    world = World()
    step = step_of(world, None, max_age=2)
    first, second = world.updates()
    step.run(1, [first, second])
    step.run(2, [second])
    step.run(3, [second])
    assert len(step.bank.rows().names) == 10
    with caplog.at_level(logging.INFO, "fed_a2v"):
        step.run(4, [second])
    assert step.bank.rows().names == tuple(sorted(prompts.name for prompts in second.prompts))
    assert any("site 0" in message for message in caplog.messages)


@pytest.mark.parametrize("share", [{}, {"kind": "mean"}, {"kind": "samples"}])
def test_adapters_are_standardised_with_the_clips_own_moments(share):
    world = World(width=12, tokens=4, scale=5, offset=20)
    step = step_of(world)
    step.fill_bank(0, world.updates(**share))
    step.standardise_adapters()
    clips = world.clips(24)[0].flatten(0, 1)
    torch.testing.assert_close(step.adapters.audio_mean, clips.mean(0), rtol=1e-3, atol=1e-3)
    scale = clips.var(0, correction=0).mean().sqrt().expand(12)
    torch.testing.assert_close(step.adapters.audio_std, scale, rtol=1e-3, atol=1e-3)


def test_an_empty_bank_leaves_the_standardisation_alone():
    step = step_of(World())
    step.standardise_adapters()
    assert torch.equal(step.adapters.audio_std, torch.ones(48))


# The same bits


@KINDS
def test_the_same_seed_gives_the_same_bits_whatever_the_global_state(kind):
    world = World()
    states, rows = [], []
    for start in (0, 1):
        step = step_of(world, kind, t5=T5)
        torch.manual_seed(start)
        rows.append([without_seconds(step.run(number, world.updates())) for number in (1, 2)])
        states.append(step.state_dict())
    assert_same_bits(*rows)
    assert_same_bits(*states)


@pytest.mark.parametrize("kind", ["gaussian", "vae"])
def test_another_seed_gives_other_adapters(kind):
    world = World()
    results = []
    for seed in (0, 1):
        step = step_of(world, kind, seed=seed)
        step.run(1, world.updates())
        results.append(weights_of(step))
    assert not same(*results)


@KINDS
def test_a_step_that_was_stopped_and_resumed_equals_one_that_was_not(kind):
    world = World()
    step = step_of(world, kind, t5=T5, max_age=1)
    updates = world.updates()
    step.standardise_adapters()
    for number in (1, 2):
        step.run(number, updates if number == 1 else updates[:1])
    resumed = step_of(world, kind, t5=T5, max_age=1)
    torch.manual_seed(123)
    resumed.load_state_dict(through_a_file(step.state_dict()))
    assert_same_bits(resumed.state_dict(), step.state_dict())
    for number in (3, 4):
        one, other = (each.run(number, updates[:1]) for each in (step, resumed))
        assert_same_bits(without_seconds(one), without_seconds(other))
        assert_same_bits(resumed.state_dict(), step.state_dict())


# A bank that keeps nothing but the generator


def forgetful(world, kind="gaussian", **settings):
    return step_of(world, kind, keep_prototypes=False, validation_frequency=1, **settings)


def later(world, labels):
    """The updates of one site that has only some of the classes."""
    clips, all_labels = world.clips(24)
    rows = torch.isin(all_labels, torch.tensor(labels))
    return updates_from(world, clips[rows], all_labels[rows])


def test_uploads_are_forgotten_after_the_round_and_need_not_be_sent_again():
    world = World()
    step = forgetful(world)
    updates = world.updates()
    step.run(1, updates)
    assert step.bank.rows() is None
    assert step.bank.counts() == dict.fromkeys(world.names, 24)
    assert set(step.bank.fingerprints) == {update.site for update in updates}
    assert step.remembered == world.names
    # The same sites, without their prototypes: the wire allows it, for the fingerprint is held.
    silent = [update._replace(prompts=[replace(p, audio=None) for p in update.prompts]) for update in updates]
    row = step.run(2, silent)
    assert "server/adapter_finetuning_loss" in row
    assert "server/generator_loss" not in row  # nothing came that it could learn from
    assert "server/generator_validation_mse" not in row


@pytest.mark.parametrize("kind", ["gaussian", "vae"])
def test_the_generator_keeps_classes_alive_whose_sites_are_gone(kind):
    world = World()
    step = forgetful(world, kind, training_epochs=60, first_steps=150, steps=80)
    step.run(1, later(world, range(5)))
    step.run(2, later(world, range(5, 10)))
    assert step.remembered == world.names
    samples = step.generator.sample_classes(step.conditions_of(world.names), 40, draws(0)).flatten(0, 1)
    labels = torch.arange(10).repeat_interleave(40)
    assert (world.nearest_class(samples) == labels).float().mean() > 0.9
    audio, labels = world.clips(20, seed=9)
    found = retrieval(step.adapters(audio).clip, labels, step.prompts.clip)
    assert found.hits(1)[labels < 5].float().mean() > 0.85


def test_what_is_remembered_survives_a_file():
    world = World()
    step, back = forgetful(world), forgetful(world)
    step.run(1, later(world, range(5)))
    back.load_state_dict(through_a_file(step.state_dict()))
    for each in (step, back):
        each.run(2, later(world, range(5, 10)))
    assert_same_bits(step.state_dict(), back.state_dict())
    assert back.remembered == world.names


def test_rows_of_two_sources_are_joined_by_name():
    one, other = World(classes=3).rows(groups=2), World(classes=5).rows(groups=1, seed=3)
    joined = one.joined(other)
    assert joined.names == other.names
    assert joined.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4]
    assert torch.equal(joined.embeddings[2], other.embeddings[0])
    assert torch.equal(joined.counts[joined.labels == 4], other.counts[other.labels == 4])
