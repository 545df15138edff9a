import logging
from dataclasses import replace

import pytest
import torch

from fed_a2v.core import server_step
from fed_a2v.core.generators.gaussian import GaussianGenerator
from fed_a2v.core.generators.vae import ConditionedVAEGenerator
from fed_a2v.core.losses import AdapterLoss, AdapterLossWeights
from fed_a2v.core.metrics import retrieval
from fed_a2v.core.prototypes import fingerprint, pooled_moments, summarise_class
from fed_a2v.core.server_step import ClientUpdate, ServerStep, ServerStepSettings
from fed_a2v.core.statistics import ClassStatistics
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
        summarise_class(world.names[label], clips[labels == label], **{"kind": "prototypes", **share})
        for label in labels.unique().tolist()
    ]
    said = [prompts for prompts in said if prompts is not None]
    return [ClientUpdate("site", said, fingerprint(said))]


KINDS = pytest.mark.parametrize("kind", [None, "gaussian", "vae"])


# Rows of the fine-tuning


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
    assert all(contains(adapters.seen, row) for row in step.bank.training_rows().embeddings)
    assert len(adapters.seen) == 20 * 32


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize(
    ("samples", "clips", "groups"), [(8, 24, 8), (5, 9, 3), (20, 112, 112)], ids=["few", "guide", "112 rows a class"]
)
@pytest.mark.parametrize("distilled", [False, True])
def test_the_share_of_synthetic_rows_is_that_of_the_settings(samples, clips, groups, share, distilled):
    world = World(classes=4)
    generator, adapters = StubGenerator(world), world.adapters(kind=WatchedAdapters)
    settings = {"distil": distilled, "finetune": not distilled, "first_steps": 10, "holdout": 0.0}
    step = step_of(world, generator, adapters, synthetic_share=share, synthetic_samples_per_class=samples, **settings)
    updates = world.updates(clips_per_class=clips, prototypes=groups, min_clips=1 if groups == clips else 3)
    weights = [weight.clone() for weight in adapters.weights()]
    step.run(1, [update._replace(weights=weights) for update in updates])
    assert step.bank.rows().labels.bincount().tolist() == [groups] * 4
    made = torch.cat(generator.made) if generator.made else adapters.seen[:0]
    drawn = torch.tensor([contains(made, row) for row in adapters.seen])
    assert drawn.view(10, 32).sum(dim=1).tolist() == [32 * share] * 10


def test_rare_classes_are_used_as_often_as_common_ones():
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


def test_samples_differ_in_every_round():
    world = World()
    generator = StubGenerator(world)
    step = step_of(world, generator, validation_frequency=100)
    for number in (1, 2):
        step.run(number, world.updates())
    first, second = generator.made
    assert not any(contains(second, row) for row in first)


@pytest.fixture
def judged(monkeypatch):
    """The rows by which each roll-back and each validation was decided, as sets of tuples, in order."""
    found = {"rollback": [], "validation": []}
    loss_on, validate = server_step.loss_on, server_step.validate

    def watched_loss(adapters, audio, *rest):
        found["rollback"].append(as_set(audio))
        return loss_on(adapters, audio, *rest)

    def watched_validation(generator, trained_on, held_out, *rest):
        found["validation"].append(as_set(held_out.embeddings))
        return validate(generator, trained_on, held_out, *rest)

    monkeypatch.setattr(server_step, "loss_on", watched_loss)
    monkeypatch.setattr(server_step, "validate", watched_validation)
    return found


def as_set(rows):
    return {tuple(row) for row in rows.flatten(1).tolist()}


def many_sites(world, clips_per_class, sites):
    """Replies of `sites` sites that have every class, with other clips each."""
    clips, labels = world.clips(clips_per_class * sites)
    numbers = torch.arange(len(labels)) % sites
    return [
        updates_from(world, clips[numbers == k], labels[numbers == k])[0]._replace(site=f"site {k:02}")
        for k in range(sites)
    ]


@pytest.mark.parametrize(
    ("updates", "held_out"),
    [
        (lambda world: world.updates(), 10),
        (lambda world: updates_from(world, *world.clips(300), kind="samples"), 10 * 16),
        (lambda world: many_sites(world, 24, 38), 10 * 16),
        (lambda world: world.updates(clips_per_class=9), 10),
    ],
    ids=["eight prototypes", "300 at one site", "304 at 38 sites", "three prototypes"],
)
def test_rows_that_decide_a_roll_back_or_a_validation_were_never_trained_on(judged, updates, held_out):
    world = World()
    generator, adapters = StubGenerator(world), world.adapters(kind=WatchedAdapters)
    step = step_of(world, generator, adapters, rows_per_class=128, validation_frequency=1, steps=40)
    sent = updates(world)
    for number in (1, 2, 3):
        row = step.run(number, sent)
        assert row["finetune/held_out_rows"] == held_out
    decided = [*judged["rollback"], *judged["validation"]]
    assert len(decided) == 3 * (2 + 1), "before and after a fine-tuning, and in a validation"
    assert all(rows == decided[0] for rows in decided)
    assert len(decided[0]) == held_out
    trained_on = set().union(as_set(adapters.seen), *(as_set(rows.embeddings) for rows, _ in generator.fitted))
    assert trained_on.isdisjoint(decided[0])


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


# Fine-tuning


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


def test_results_do_not_depend_on_the_order_of_classes_and_replies():
    """The adapters learn the prompt of the name, whatever the order of the prompts and of the replies."""
    world = World()
    prompts = world.prompts()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    shuffled = prompts._replace(names=tuple(prompts.names[k] for k in order), clip=prompts.clip[order])
    updates = [update._replace(statistics=update.statistics[::-1]) for update in world.updates()]
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


def test_the_sites_outputs_can_be_the_targets_of_fine_tuning():
    world = World()
    clips, labels = world.clips(24)
    wanted = torch.randn(10, 1, 24) * 3
    updates = [
        update._replace(statistics=[replace(p, clip=wanted[world.names.index(p.name)]) for p in update.statistics])
        for update in world.updates()
    ]
    errors = []
    for from_nodes in (False, True):
        step = step_of(world, None, from_nodes_adapters=from_nodes, first_steps=150, rollback=False)
        step.run(1, updates)
        with torch.no_grad():
            errors.append(float((step.adapters(clips).clip - wanted[labels]).square().mean()))
    assert errors[1] < 0.7 * errors[0]


def test_the_class_prompt_is_the_target_if_no_site_has_sent_outputs():
    world = World()
    step = step_of(world, None, t5=T5)
    updates = world.updates()
    updates[0].statistics[0] = replace(updates[0].statistics[0], clip=torch.full((1, 24), 9.0))
    step.fill_bank(1, updates)
    clip, t5 = step._targets()
    name = updates[0].statistics[0].name
    expected = world.prompts().clip.clone()
    expected[world.names.index(name)] = 9
    assert torch.equal(clip, expected)
    assert torch.equal(t5, world.prompts(t5=T5).t5)


def test_without_fine_tuning_the_average_does_not_change():
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


# Capped sites


def test_capped_sites_are_counted_in_the_metrics_and_logged_once(caplog):
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
def test_a_worse_held_out_loss_restores_the_adapters_bit_for_bit(rate, caplog):
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


def test_rollback_can_be_switched_off():
    world = World()
    step = step_of(world, None, optimiser=AdamWSettings(50.0, 0.0, 32), rollback=False)
    before = weights_of(step)
    row = step.run(1, world.updates())
    assert row["rolled_back"] is False
    assert row["finetune/held_out_after"] > row["finetune/held_out_before"]
    assert not same(before, weights_of(step))


@pytest.mark.parametrize("rollback", [True, False])
def test_nothing_to_hold_out_is_logged_once_with_the_remedy(caplog, rollback):
    world = World()
    step = step_of(world, "gaussian", validation_frequency=1, rollback=rollback)
    with caplog.at_level(logging.INFO, "fed_a2v"):
        rows = [step.run(number, world.updates(kind="mean")) for number in (1, 2, 3)]
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert "share=prototypes" in told[0].getMessage()
    for row in rows:
        assert row["rolled_back"] is False
        assert not [name for name in row if "held_out" in name or "validation" in name]
    resumed = step_of(world, "gaussian", validation_frequency=1, rollback=rollback)
    resumed.load_state_dict(through_a_file(step.state_dict()))
    caplog.clear()
    resumed.run(4, world.updates(kind="mean"))
    assert "share=prototypes" not in caplog.text


@pytest.mark.parametrize("settings", [{"holdout": 0.0}, {}], ids=["not wanted", "held out"])
def test_no_warning_without_hold_out_setting_or_with_held_out_rows(caplog, settings):
    world = World()
    step_of(world, "gaussian", **settings).run(1, world.updates(clips_per_class=9))
    assert "share=prototypes" not in caplog.text


# Validation


def test_validation_compares_new_samples_with_held_out_rows():
    world = World()
    step = step_of(world, "gaussian")
    names = {f"server/generator_validation_{measure}" for measure in ("similarity", "mse", "l1")}
    assert names.isdisjoint(step.run(1, world.updates()))
    row = step.run(2, world.updates())
    assert names <= row.keys()
    assert row["server/generator_validation_similarity"] > 0.6
    assert set(row["generator_validation_per_class"]) == set(world.names)


def test_validation_detects_a_generator_that_ignores_the_class():
    """Reconstructing the training rows, or one mean for all, must not look good."""
    world = World()
    row = step_of(world, StubGenerator(world)).run(2, world.updates())
    assert row["server/generator_validation_similarity"] < 0.3


def test_the_log_of_a_round_has_the_lines_of_the_guide(caplog):
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


# Kinds of statistics


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
def test_adapters_are_finite_for_every_kind_of_shared_statistics(kind, classes, clips, share):
    world = World(classes=classes)
    step = step_of(world, kind, t5=T5, rollback=False)
    before = weights_of(step)
    for number in (1, 2):
        row = step.run(number, updates_from(world, *world.clips(clips), **share))
        assert row["server/adapter_finetuning_loss"] < float("inf")
    assert all(weight.isfinite().all() for weight in step.adapters.weights())
    assert not same(before, weights_of(step))


@KINDS
def test_sequences_of_audio_tokens_are_supported(kind):
    world = World(width=12, tokens=4)
    step = step_of(world, kind)
    step.standardise_adapters()
    row = step.run(2, world.updates())
    assert row["finetune/held_out_after"] < row["finetune/held_out_before"]


def test_a_site_that_resends_without_audio_keeps_its_prototypes():
    world = World()
    one, other = step_of(world, "gaussian"), step_of(world, "gaussian")
    updates = world.updates()
    short = [u._replace(statistics=[ClassStatistics(p.name, p.count) for p in u.statistics]) for u in updates]
    one.run(1, updates)
    other.run(1, updates)
    assert_same_bits(without_seconds(one.run(2, updates)), without_seconds(other.run(2, short)))
    assert_same_bits(one.state_dict(), other.state_dict())


def test_a_site_without_a_new_reply_counts_until_the_maximum_age(caplog):
    world = World()
    step = step_of(world, None, max_age=2)
    first, second = world.updates()
    step.run(1, [first, second])
    step.run(2, [second])
    step.run(3, [second])
    assert len(step.bank.rows().names) == 10
    with caplog.at_level(logging.INFO, "fed_a2v"):
        step.run(4, [second])
    assert step.bank.rows().names == tuple(sorted(prompts.name for prompts in second.statistics))
    assert any("site 0" in message for message in caplog.messages)


@pytest.mark.parametrize("share", [{}, {"kind": "mean"}, {"kind": "samples"}])
def test_adapters_are_standardised_with_the_moments_of_the_clips(share):
    world = World(width=12, tokens=4, scale=5, offset=20)
    step = step_of(world)
    step.fill_bank(0, world.updates(**share))
    step.standardise_adapters()
    clips = world.clips(24)[0].flatten(0, 1)
    torch.testing.assert_close(step.adapters.audio_mean, clips.mean(0), rtol=1e-3, atol=1e-3)
    scale = clips.var(0, correction=0).mean().sqrt().expand(12)
    torch.testing.assert_close(step.adapters.audio_std, scale, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sharing", [0, 1])
def test_sites_that_share_no_class_count_in_the_standardisation_by_all_their_clips(sharing):
    world = World(width=12, tokens=4, scale=5, offset=20)
    step = step_of(world)
    updates = world.updates()
    clips, labels = world.clips(24)
    # The last site, or both, give moments instead; site k has every other class.
    pooled = {f"site {k}": pooled_moments(clips[labels % 2 == k]) for k in range(sharing, 2)}
    step.fill_bank(0, updates[:sharing] + [ClientUpdate(site, [], "none") for site in pooled])
    step.standardise_adapters(pooled)
    torch.testing.assert_close(step.adapters.audio_mean, clips.flatten(0, 1).mean(0), rtol=1e-3, atol=1e-3)
    scale = clips.flatten(0, 1).var(0, correction=0).mean().sqrt()
    assert float(step.adapters.audio_std[0]) == pytest.approx(float(scale), rel=1e-3)
    assert len(step.bank.counts()) == 5 * sharing, "the bank has classes only"


def test_an_empty_bank_does_not_change_the_standardisation():
    step = step_of(World())
    step.standardise_adapters()
    assert torch.equal(step.adapters.audio_std, torch.ones(48))


# Reproducibility


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


# Replay: a bank that stores no prototypes


def forgetful(world, kind="gaussian", **settings):
    return step_of(world, kind, keep_prototypes=False, validation_frequency=1, **settings)


def later(world, labels):
    """The updates of one site that has only some of the classes."""
    clips, all_labels = world.clips(24)
    rows = torch.isin(all_labels, torch.tensor(labels))
    return updates_from(world, clips[rows], all_labels[rows])


def test_prototypes_are_dropped_after_the_round_and_not_sent_again():
    world = World()
    step = forgetful(world)
    updates = world.updates()
    step.run(1, updates)
    assert step.bank.rows() is None
    assert step.bank.counts() == dict.fromkeys(world.names, 24)
    assert set(step.bank.fingerprints) == {update.site for update in updates}
    assert step.replayed == world.names
    # The same sites, without their prototypes, which the protocol allows, as the fingerprint is stored.
    silent = [update._replace(statistics=[replace(p, audio=None) for p in update.statistics]) for update in updates]
    row = step.run(2, silent)
    assert "server/adapter_finetuning_loss" in row
    assert not [name for name in row if "held_out" in name]
    assert "server/generator_loss" not in row  # nothing came that it could learn from
    assert "server/generator_validation_mse" not in row


def test_with_replay_only_held_out_prototypes_decide(judged, caplog):
    world = World()
    adapters = world.adapters(kind=WatchedAdapters)
    step = step_of(world, "gaussian", adapters, keep_prototypes=False, validation_frequency=100)
    uploads, all_of_them = [later(world, labels) for labels in (range(5), range(5, 8), (), (), (8, 9))], set()
    with caplog.at_level(logging.INFO, "fed_a2v"):
        rows = [step.run(number, updates) for number, updates in enumerate(uploads, start=1)]
    decided = judged["rollback"][::2]
    assert decided == judged["rollback"][1::2] == judged["validation"]
    assert [len(rows_of) for rows_of in decided] == [5, 3, 2], "one of eight of each class that came"
    for updates, of_round in zip([uploads[0], uploads[1], uploads[4]], decided, strict=True):
        sent = as_set(torch.cat([prompts.audio.means for update in updates for prompts in update.statistics]))
        assert of_round <= sent
        all_of_them |= of_round
    assert as_set(adapters.seen).isdisjoint(all_of_them)
    for number, row in enumerate(rows, start=1):
        assert ("server/generator_validation_mse" in row) == (number in (1, 2, 5))
        assert ("finetune/held_out_after" in row) == (number in (1, 2, 5))
    assert len([message for message in caplog.messages if "held out" in message]) == 1


def test_new_classes_do_not_roll_back_training_on_replayed_ones():
    world = World()
    step = forgetful(world, first_steps=150, steps=150)
    step.run(1, later(world, range(5)))
    # Like the average of sites with the new classes only: it fits these and has forgotten the others.
    alone = step_of(world, None, first_steps=400)
    alone.run(1, later(world, range(5, 10)))
    step.adapters.load_weights(alone.adapters.weights())
    row = step.run(2, later(world, range(5, 10)))
    assert row["finetune/held_out_after"] > row["finetune/held_out_before"]
    assert row["rolled_back"] is False
    audio, labels = world.clips(20, seed=9)
    assert retrieval(step.adapters(audio).clip, labels, step.prompts.clip).hits(1)[labels < 5].float().mean() > 0.85
    # When the same classes are sent again, the held-out rows cover all of them.
    step.adapters.load_weights(alone.adapters.weights())
    step.settings = replace(step.settings, optimiser=AdamWSettings(50.0, 0.0, 32))
    assert step.run(3, later(world, range(10)))["rolled_back"] is True


@pytest.mark.parametrize("kind", ["gaussian", "vae"])
def test_replay_preserves_classes_whose_sites_are_gone(kind):
    world = World()
    step = forgetful(world, kind, training_epochs=60, first_steps=150, steps=80)
    step.run(1, later(world, range(5)))
    step.run(2, later(world, range(5, 10)))
    assert step.replayed == world.names
    samples = step.generator.sample_classes(step.conditions_of(world.names), 40, draws(0)).flatten(0, 1)
    labels = torch.arange(10).repeat_interleave(40)
    assert (world.nearest_class(samples) == labels).float().mean() > 0.9
    audio, labels = world.clips(20, seed=9)
    found = retrieval(step.adapters(audio).clip, labels, step.prompts.clip)
    assert found.hits(1)[labels < 5].float().mean() > 0.85


def test_replayed_classes_survive_a_file():
    world = World()
    step, back = forgetful(world), forgetful(world)
    step.run(1, later(world, range(5)))
    back.load_state_dict(through_a_file(step.state_dict()))
    for each in (step, back):
        each.run(2, later(world, range(5, 10)))
    assert_same_bits(step.state_dict(), back.state_dict())
    assert back.replayed == world.names


def test_rows_of_two_sources_are_joined_by_name():
    one, other = World(classes=3).rows(groups=2), World(classes=5).rows(groups=1, seed=3)
    joined = one.joined(other)
    assert joined.names == other.names
    assert joined.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4]
    assert torch.equal(joined.embeddings[2], other.embeddings[0])
    assert torch.equal(joined.counts[joined.labels == 4], other.counts[other.labels == 4])


# Sites that the others contradict


def swapped(update):
    """Statistics of a site under the names of the neighbouring classes."""
    names = [said.name for said in update.statistics]
    said = [replace(said, name=name) for said, name in zip(update.statistics, names[1:] + names[:1], strict=True)]
    return update._replace(site="x", statistics=said)


def test_swapped_labels_have_no_effect_and_are_counted_and_logged_once(caplog):
    world = World()
    sites = [world.updates(sites=1)[0]._replace(site=f"site {number}") for number in range(3)]
    honest, attacked = step_of(world, "gaussian"), step_of(world, "gaussian")
    assert honest.run(1, sites)["bank/contradicted"] == 0
    with caplog.at_level(logging.WARNING, "fed_a2v"):
        rows = [attacked.run(number, [*sites, swapped(sites[0])]) for number in (1, 2)]
    assert [row["bank/contradicted"] for row in rows] == [10, 10]
    (line,) = [record.getMessage() for record in caplog.records if "x (10 classes)" in record.getMessage()]
    assert "site 0" not in line
    honest.run(2, sites)
    assert same(weights_of(honest), weights_of(attacked))
