import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.core.losses import AdapterLoss, AdapterLossWeights
from fed_a2v.core.training import (
    AdamWSettings,
    Mixture,
    balanced_order,
    loss_on,
    mean_outputs,
    mixed_order,
    train_epochs,
    train_steps,
)
from tests.core.conftest import World, draws

T5 = (3, 10)


def setting(world=None, **weights):
    world = world or World()
    loss = AdapterLoss(world.prompts(t5=T5), AdapterLossWeights(**weights))
    return world.adapters(t5=T5), *world.clips(24), loss


def part_loss(adapters, audio, labels, kind, world):
    """Mean squared error of one of the two adapters alone."""
    with torch.no_grad():
        return float((getattr(adapters(audio), kind) - getattr(world.prompts(t5=T5), kind)[labels]).square().mean())


@pytest.mark.parametrize("kind", ["clip", "t5"])
@pytest.mark.parametrize("way", ["epochs", "steps"])
def test_training_moves_every_weight_of_both_adapters_and_lowers_their_loss(kind, way):
    world = World()
    adapters, audio, labels, loss = setting(world)
    before = {name: value.clone() for name, value in getattr(adapters, kind).named_parameters()}
    start = part_loss(adapters, audio, labels, kind, world)
    if way == "epochs":
        train_epochs(adapters, audio, labels, loss, 3, AdamWSettings(), draws(0))
    else:
        train_steps(adapters, audio, labels, loss, 25, AdamWSettings(), draws(0))
    assert part_loss(adapters, audio, labels, kind, world) < 0.8 * start
    assert all(not torch.equal(before[name], value) for name, value in getattr(adapters, kind).named_parameters())
    assert not adapters.training


def test_site_training_passes_over_every_clip_in_every_epoch():
    adapters, audio, labels, loss = setting()
    seen = []

    def watched(outputs, batch_labels, targets):
        seen.append(batch_labels)
        return loss(outputs, batch_labels, targets)

    train_epochs(adapters, audio, labels, watched, 2, AdamWSettings(batch_size=32), draws(0))
    assert [len(batch) for batch in seen] == [32] * 7 + [16] + [32] * 7 + [16]
    for epoch in (seen[:8], seen[8:]):
        assert torch.equal(torch.cat(epoch).sort().values, labels)
    assert all(len(batch.unique()) > 3 for batch in seen)


def test_more_steps_continue_with_the_batches_of_further_epochs():
    def batches(epochs, more_steps):
        adapters, audio, labels, loss = setting()
        seen = []

        def watched(outputs, batch_labels, targets):
            seen.append(batch_labels)
            return loss(outputs, batch_labels, targets)

        train_epochs(adapters, audio, labels, watched, epochs, AdamWSettings(), draws(0), more_steps=more_steps)
        return seen

    longer, epochs = batches(1, 11), batches(3, 0)  # 8 steps an epoch
    assert len(longer) == 19
    assert all(torch.equal(one, other) for one, other in zip(longer, epochs, strict=False))


def test_site_training_reports_the_mean_of_its_last_epoch():
    adapters, audio, labels, loss = setting()
    reported = train_epochs(adapters, audio, labels, loss, 4, AdamWSettings(learning_rate=1e-12), draws(0))
    assert set(reported) == {"loss", "mse", "cosine", "contrastive"}
    # The weights have hardly moved; batches of 32, 16 in the last, are averaged alike.
    assert reported["loss"] == pytest.approx(loss_on(adapters, audio, labels, loss), rel=0.05)


@pytest.mark.parametrize("way", [train_epochs, train_steps])
def test_the_same_seed_gives_the_same_bits_whatever_the_global_state(way):
    weights = []
    for start in (0, 1):
        adapters, audio, labels, loss = setting()
        torch.manual_seed(start)
        way(adapters, audio, labels, loss, 5, AdamWSettings(), draws(7))
        weights.append(adapters.weights())
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def distance_from_start(proximal):
    adapters, audio, labels, loss = setting()
    start = [weight.clone() for weight in adapters.weights()]
    settings = AdamWSettings(weight_decay=0.0)
    train_epochs(adapters, audio, labels, loss, 4, settings, draws(0), proximal)
    return float(sum((w - s).square().sum() for w, s in zip(adapters.weights(), start, strict=True)))


def test_a_large_proximal_weight_keeps_the_weights_near_their_start():
    assert distance_from_start(100.0) < 0.1 * distance_from_start(0.0)


def test_the_reported_loss_leaves_the_proximal_term_out():
    reported = []
    for proximal in (0.0, 1e-6):
        adapters, audio, labels, loss = setting()
        reported.append(train_epochs(adapters, audio, labels, loss, 2, AdamWSettings(), draws(0), proximal)["loss"])
    assert reported[0] == pytest.approx(reported[1], rel=1e-3)


def test_fine_tuning_runs_exactly_the_given_steps():
    adapters, audio, labels, loss = setting()
    sizes = []

    def watched(outputs, batch_labels, targets):
        sizes.append(len(batch_labels))
        return loss(outputs, batch_labels, targets)

    train_steps(adapters, audio[:30], labels[:30], watched, 13, AdamWSettings(batch_size=64), draws(0))
    assert sizes == [64] * 13


def test_fine_tuning_uses_the_given_targets():
    world = World()
    adapters, audio, labels, loss = setting(world, contrastive=0.0)
    prompts = world.prompts(t5=T5)
    targets = type(adapters(audio[:1]))(prompts.clip.flip(0), prompts.t5.flip(0))
    train_steps(adapters, audio, labels, loss, 60, AdamWSettings(3e-3), draws(0), targets)
    clip, t5 = adapters(audio)
    for output, target, prompt in ((clip, targets.clip, prompts.clip), (t5, targets.t5, prompts.t5)):
        assert (output - target[labels]).square().mean() < 0.5 * (output - prompt[labels]).square().mean()


# Order of the rows


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 200), st.integers(0, 5))
def test_a_balanced_order_is_balanced_at_every_length(counts, number, seed):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = balanced_order(labels, number, draws(seed))
    assert len(order) == number
    drawn = labels[order].bincount(minlength=len(counts))
    assert drawn.max() - drawn.min() <= 1
    times = order.bincount(minlength=len(labels))
    for label in range(len(counts)):
        own = times[labels == label]
        assert own.max() - own.min() <= 1


def test_rare_classes_are_in_the_order_as_often_as_common_ones():
    labels = torch.tensor([0] * 2 + [1] * 50)
    order = balanced_order(labels, 200, draws(0))
    assert labels[order].bincount().tolist() == [100, 100]


def test_every_row_is_used_before_a_row_of_its_class_is_repeated():
    labels = torch.tensor([0] * 3 + [1] * 7)
    order = balanced_order(labels, 14, draws(0))
    assert set(order[labels[order] == 1].tolist()) == set(range(3, 10))
    assert torch.equal(order[labels[order] == 0][:3].sort().values, torch.arange(3))


def test_each_batch_holds_all_classes_even_where_the_labels_have_gaps():
    labels = torch.tensor([2] * 5 + [7] * 9 + [40])
    order = balanced_order(labels, 30, draws(0))
    assert all(set(labels[batch].tolist()) == {2, 7, 40} for batch in order.split(3))


def test_the_order_depends_on_the_seed_alone():
    labels = torch.arange(5).repeat(4)
    assert torch.equal(balanced_order(labels, 50, draws(3)), balanced_order(labels, 50, draws(3)))
    assert not torch.equal(balanced_order(labels, 50, draws(3)), balanced_order(labels, 50, draws(4)))


def mixture_of(real, samples, share):
    """Labels of classes with `real[c]` rows and as many `samples` each, and which rows are samples."""
    counts = torch.tensor([*real, *[samples] * len(real)])
    labels = torch.arange(len(real)).repeat(2).repeat_interleave(counts)
    return labels, Mixture(torch.arange(len(labels)) >= sum(real), share)


@pytest.mark.parametrize("real", [[2] * 10, [112] * 50, [1, 3, 8, 112]], ids=["guide", "112 rows", "uneven"])
@pytest.mark.parametrize("samples", [1, 5, 20])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.7, 1.0])
def test_every_batch_has_the_share_of_synthetic_rows_for_any_numbers_of_rows(real, samples, share):
    labels, mixture = mixture_of(real, samples, share)
    order = mixed_order(labels, mixture, 40 * 64, draws(0))
    drawn = mixture.synthetic[order]
    assert int(drawn.sum()) == round(40 * 64 * share)
    of_batches = drawn.view(40, 64).sum(dim=1)
    assert (of_batches - 64 * share).abs().max() < 1
    for size in (10, 17):
        assert (drawn.unfold(0, size, 1).sum(dim=1) - size * share).abs().max() < 1
    # As balanced as without synthetic rows, over the classes and over the rows of either kind.
    drawn_of = torch.stack([labels[order[drawn == kind]].bincount(minlength=len(real)) for kind in (False, True)])
    assert (drawn_of.max(dim=1).values - drawn_of.min(dim=1).values <= 2).all(), "2: the last round is cut short"
    assert drawn_of.sum(dim=0).max() - drawn_of.sum(dim=0).min() <= 1
    times = order.bincount(minlength=len(labels))
    for label in range(len(real)):
        for kind in (False, True):
            own = times[(labels == label) & (mixture.synthetic == kind)]
            assert own.max() - own.min() <= 1


def test_a_class_without_samples_is_used_as_often_as_the_others():
    labels, synthetic = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([False, True, True, False, False])
    order = mixed_order(labels, Mixture(synthetic, 0.5), 40, draws(0))
    assert labels[order].bincount().tolist() == [20, 20]
    assert order[labels[order] == 0].bincount(minlength=3).tolist() == [10, 5, 5]


def test_a_mixed_order_depends_on_the_seed_alone():
    labels, mixture = mixture_of([4] * 5, 4, 0.5)
    assert torch.equal(mixed_order(labels, mixture, 50, draws(3)), mixed_order(labels, mixture, 50, draws(3)))
    assert not torch.equal(mixed_order(labels, mixture, 50, draws(3)), mixed_order(labels, mixture, 50, draws(4)))


# Measuring


def test_the_loss_on_rows_is_that_of_all_rows_and_changes_nothing():
    adapters, audio, labels, loss = setting()
    before = [weight.clone() for weight in adapters.weights()]
    assert loss_on(adapters, audio, labels, loss) == pytest.approx(loss(adapters(audio), labels)[0].item())
    assert all(torch.equal(one, other) for one, other in zip(before, adapters.weights(), strict=True))


def test_mean_outputs_are_taken_per_class():
    adapters, audio, labels, _ = setting()
    keep = (labels == 2) | (labels == 5)
    means = mean_outputs(adapters, audio[keep], labels[keep])
    assert set(means) == {2, 5}
    clip, t5 = adapters(audio[labels == 5])
    torch.testing.assert_close(means[5].clip, clip.mean(0))
    torch.testing.assert_close(means[5].t5, t5.mean(0))
    assert not means[5].clip.requires_grad


def test_mean_outputs_have_no_t5_where_there_is_no_t5_adapter():
    world = World()
    audio, labels = world.clips(3)
    means = mean_outputs(world.adapters(), audio, labels)
    assert all(mean.t5 is None and mean.clip.shape == (1, 24) for mean in means.values())
