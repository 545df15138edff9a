"""Distillation of the sites' adapters into the global ones; teachers of a class are the sites that have it."""

from dataclasses import replace

import pytest
import torch

from fed_a2v.core.distillation import Teacher, distil, distillation_targets
from fed_a2v.core.losses import AdapterLoss, AdapterLossWeights
from fed_a2v.core.prototype_bank import PrototypeBank
from fed_a2v.core.server_step import ServerStep, ServerStepSettings
from fed_a2v.core.training import AdamWSettings, train_steps
from tests.core.conftest import draws

T5 = (3, 10)


@pytest.fixture(scope="module")
def teachers(world):
    """Two sites with five classes each, trained on their own prompts alone; by site its adapters."""
    audio, labels = world.clips(24)
    loss = AdapterLoss(world.prompts(t5=T5), AdapterLossWeights())
    found = []
    for own in (range(5), range(5, 10)):
        adapters = world.adapters(t5=T5)
        rows = (labels >= own[0]) & (labels <= own[-1])
        train_steps(adapters, audio[rows], labels[rows], loss, 80, AdamWSettings(3e-3), draws(0))
        found.append(Teacher([weight.clone() for weight in adapters.weights()], dict.fromkeys(own, 24)))
    return found


def outputs_of(world, teacher, audio):
    adapters = world.adapters(t5=T5)
    adapters.load_weights(teacher.weights)
    with torch.no_grad():
        return adapters(audio)


def test_teachers_of_a_class_are_the_sites_that_have_it(world, teachers):
    audio, labels = world.clips(2)
    taught, targets = distillation_targets(world.adapters(t5=T5), teachers, audio, labels)
    assert taught.all()
    for teacher in teachers:
        rows = torch.tensor([label in teacher.clips for label in labels.tolist()])
        clip, t5 = outputs_of(world, teacher, audio[rows])
        torch.testing.assert_close(targets.clip[rows], clip)
        torch.testing.assert_close(targets.t5[rows], t5)


def test_teachers_of_one_class_are_weighted_by_their_clips(world, teachers):
    audio, labels = world.clips([3] + [0] * 9)
    both = [Teacher(teachers[0].weights, {0: 30}), Teacher(teachers[1].weights, {0: 10})]
    _, targets = distillation_targets(world.adapters(t5=T5), both, audio, labels)
    one, other = (outputs_of(world, teacher, audio).clip for teacher in both)
    torch.testing.assert_close(targets.clip, 0.75 * one + 0.25 * other)


def test_rows_of_a_class_without_teacher_are_left_out(world, teachers):
    audio, labels = world.clips(2)
    taught, targets = distillation_targets(world.adapters(t5=T5), teachers[:1], audio, labels)
    assert taught.tolist() == [label < 5 for label in labels.tolist()]
    assert len(targets.clip) == 10


def test_chunks_give_the_same_targets(world, teachers):
    audio, labels = world.clips(5)
    whole, parts = (distillation_targets(world.adapters(t5=T5), teachers, audio, labels, size)[1] for size in (0, 7))
    torch.testing.assert_close(whole.clip, parts.clip)
    torch.testing.assert_close(whole.t5, parts.t5)


def test_the_global_adapters_come_closer_to_every_teacher(world, teachers):
    audio, labels = world.clips(24)
    adapters = world.adapters(t5=T5)
    adapters.load_weights([torch.stack(pair).mean(0) for pair in zip(*(t.weights for t in teachers), strict=True)])

    def distance():
        _, targets = distillation_targets(adapters, teachers, audio, labels)
        with torch.no_grad():
            clip, t5 = adapters(audio)
        return (clip - targets.clip).square().mean().item(), (t5 - targets.t5).square().mean().item()

    before = distance()
    losses = distil(adapters, world.prompts(t5=T5), teachers, audio, labels, 100, AdamWSettings(3e-3), draws(0))
    after = distance()
    assert after[0] < 0.3 * before[0]
    assert after[1] < 0.3 * before[1]
    assert set(losses) == {"loss", "mse", "cosine"}


def test_without_teachers_the_adapters_do_not_change(world):
    adapters = world.adapters(t5=T5)
    before = [weight.clone() for weight in adapters.weights()]
    audio, labels = world.clips(2)
    assert distil(adapters, world.prompts(t5=T5), [], audio, labels, 5, AdamWSettings(), draws(0)) == {}
    assert all(torch.equal(a, b) for a, b in zip(before, adapters.weights(), strict=True))


def test_the_server_step_distils_what_averaging_lost(world, teachers):
    prompts = world.prompts(t5=T5)
    adapters = world.adapters(t5=T5)
    mean = [torch.stack(pair).mean(0) for pair in zip(*(t.weights for t in teachers), strict=True)]
    adapters.load_weights(mean)
    settings = ServerStepSettings(distil=True, finetune=False, first_steps=150, optimiser=AdamWSettings(3e-3))
    step = ServerStep(adapters, prompts, None, AdapterLoss(prompts, AdapterLossWeights()), settings)
    audio, labels = world.clips(20, seed=8)

    def accuracy():
        with torch.no_grad():
            centred = adapters(audio).clip.flatten(1) - prompts.clip.mean(0).flatten()
        directions = prompts.clip.flatten(1) - prompts.clip.mean(0).flatten()
        cosine = torch.nn.functional.normalize(centred, dim=1) @ torch.nn.functional.normalize(directions, dim=1).T
        return (cosine.argmax(1) == labels).float().mean().item()

    before = accuracy()
    updates = [
        update._replace(weights=teacher.weights) for update, teacher in zip(halves(world), teachers, strict=True)
    ]
    row = step.run(1, updates)
    assert row["distil/loss"] > 0
    assert "server/adapter_finetuning_loss" not in row
    assert accuracy() > max(before, 0.9)


@pytest.mark.parametrize(("finetune", "taken"), [(False, [7, 3]), (True, [14, 6])])
def test_the_step_count_includes_distillation_and_fine_tuning(world, teachers, finetune, taken):
    settings = ServerStepSettings(distil=True, finetune=finetune, first_steps=7, steps=3)
    prompts = world.prompts(t5=T5)
    step = ServerStep(world.adapters(t5=T5), prompts, None, AdapterLoss(prompts, AdapterLossWeights()), settings)
    updates = [
        update._replace(weights=teacher.weights) for update, teacher in zip(halves(world), teachers, strict=True)
    ]
    assert [step.run(number, updates)["server/optimiser_steps"] for number in (1, 2)] == taken


def halves(world):
    """Replies of two sites, with the first and the last five classes."""
    one, other = world.updates(sites=2)
    prompts = sorted([*one.statistics, *other.statistics], key=lambda prompt: prompt.name)
    return one._replace(statistics=prompts[:5]), other._replace(statistics=prompts[5:])


# Saving memory


def test_chunks_of_a_batch_train_the_same_adapters(world):
    audio, labels = world.clips(24)
    loss = AdapterLoss(world.prompts(t5=T5), AdapterLossWeights())
    trained = []
    for chunk_size in (0, 5):
        adapters = world.adapters(t5=T5)
        losses = train_steps(adapters, audio, labels, loss, 10, AdamWSettings(1e-3, chunk_size=chunk_size), draws(0))
        trained.append((adapters.weights(), losses))
    (whole, first), (parts, second) = trained
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert first == pytest.approx(second, rel=1e-4)


def test_a_half_precision_bank_takes_half_the_memory_and_returns_the_same_values(world):
    updates = world.updates()
    rows = []
    for half in (False, True):
        bank = PrototypeBank(half_precision=half)
        for update in updates:
            bank.update(update.site, update.statistics, update.fingerprint, 1)
        rows.append(bank.rows())
        kinds = {prompt.audio.means.dtype for _, prompt in bank}
        assert kinds == {torch.float16 if half else torch.float32}
    torch.testing.assert_close(rows[0].embeddings, rows[1].embeddings, rtol=1e-3, atol=1e-3)
    assert rows[1].embeddings.dtype == torch.float32


def test_values_outside_half_precision_are_stored_exactly(world):
    site, prompts, fingerprint, *_ = world.updates()[0]
    audio = prompts[0].audio
    large = replace(prompts[0], audio=replace(audio, means=1e6 * audio.means, variances=1e-9 + 0 * audio.variances))
    bank = PrototypeBank(half_precision=True)
    bank.update(site, [large], fingerprint, 1)
    ((_, kept),) = bank
    assert torch.equal(kept.audio.means, large.audio.means)
    assert torch.equal(kept.audio.variances, large.audio.variances)
