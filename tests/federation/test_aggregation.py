"""From the sites' adapters to one."""

import numpy as np
import pytest
import torch

from fed_a2v.config import compose_settings
from fed_a2v.federation.aggregation import make_aggregation
from fed_a2v.federation.wire import SiteReply


def aggregate_adapters(replies, mode, **options):
    keys = [f"aggregation.mode={mode}", *(f"aggregation.{key}={value}" for key, value in options.items())]
    aggregation = make_aggregation(compose_settings(keys).aggregation)
    for each in replies:
        aggregation.add(each.weights, each.num_examples)
    return aggregation.result()


def reply(site, clips, *weights):
    tensors = [torch.as_tensor(weight, dtype=torch.float32) for weight in weights]
    return SiteReply(site, 1, "train", clips, tensors, [], "mark", False)


@pytest.fixture
def replies():
    random = torch.Generator().manual_seed(0)
    return [
        reply(f"site-{k}", clips, torch.randn(3, 2, generator=random), torch.randn((), generator=random))
        for k, clips in enumerate((1, 5, 94))
    ]


def test_avg_gives_every_site_the_same_weight(replies):
    combined = aggregate_adapters(replies, "avg")
    for position, weight in enumerate(combined):
        torch.testing.assert_close(weight, torch.stack([r.weights[position] for r in replies]).mean(dim=0))


def test_weighted_counts_training_clips(replies):
    combined = aggregate_adapters(replies, "weighted")
    for position, weight in enumerate(combined):
        expected = sum(r.num_examples / 100 * r.weights[position] for r in replies)
        torch.testing.assert_close(weight, expected)
    assert not torch.allclose(combined[0], aggregate_adapters(replies, "avg")[0])


def test_none_keeps_the_old_adapters(replies):
    assert aggregate_adapters(replies, "none") is None


def test_the_average_of_one_reply_is_that_reply(replies):
    assert torch.equal(aggregate_adapters(replies[:1], "avg")[0], replies[0].weights[0])


@pytest.mark.parametrize("mode", ["avg", "weighted"])
def test_shapes_stay_and_weights_are_single_precision(replies, mode):
    combined = aggregate_adapters(replies, mode)
    assert [(weight.shape, weight.dtype) for weight in combined] == [
        (torch.Size([3, 2]), torch.float32),
        (torch.Size([]), torch.float32),
    ]


@pytest.mark.parametrize("mode", ["avg", "weighted"])
def test_the_replies_stay_as_they_are(replies, mode):
    before = [weight.clone() for r in replies for weight in r.weights]
    for weight in aggregate_adapters(replies, mode):
        weight.zero_()
    after = [weight for r in replies for weight in r.weights]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_million_clips_do_not_overflow():
    combined = aggregate_adapters([reply("a", 10**9, [1e6]), reply("b", 10**9, [1e6])], "weighted")
    assert np.isclose(float(combined[0]), 1e6)


ROBUST = ("median", "trimmed", "krum")


def federation_with_garbage(bad):
    """Nine sites close to each other, and one that sends `bad`."""
    random = torch.Generator().manual_seed(1)
    common = torch.randn(40, generator=random)
    good = [reply(f"site-{k}", 10, common + 0.01 * torch.randn(40, generator=random)) for k in range(9)]
    return common, [*good, reply("site-9", 10, bad * torch.randn(40, generator=random))]


@pytest.mark.parametrize("bad", [100.0, 1e5])
@pytest.mark.parametrize("mode", ROBUST)
def test_a_site_that_sends_garbage_does_not_move_a_robust_rule(mode, bad):
    common, replies = federation_with_garbage(bad)
    assert (aggregate_adapters(replies, mode)[0] - common).abs().max() < 0.05


@pytest.mark.parametrize("mode", ["avg", "weighted", "kd"])
def test_a_site_that_sends_garbage_moves_a_mean(mode):
    common, replies = federation_with_garbage(100.0)
    assert (aggregate_adapters(replies, mode)[0] - common).abs().max() > 5


@pytest.mark.parametrize("mode", ROBUST)
def test_robust_rules_keep_shapes_and_single_precision(replies, mode):
    combined = aggregate_adapters(replies, mode)
    assert [(weight.shape, weight.dtype) for weight in combined] == [
        (torch.Size([3, 2]), torch.float32),
        (torch.Size([]), torch.float32),
    ]


@pytest.mark.parametrize("mode", ROBUST)
@pytest.mark.parametrize("number", [1, 2])
def test_robust_rules_work_with_few_sites(replies, mode, number):
    assert aggregate_adapters(replies[:number], mode)[0].isfinite().all()


def test_trimming_nothing_is_the_mean(replies):
    trimmed, mean = (aggregate_adapters(replies, mode, trimmed_share=0.0)[0] for mode in ("trimmed", "avg"))
    torch.testing.assert_close(trimmed, mean)


def test_distillation_starts_from_the_mean(replies):
    assert torch.equal(aggregate_adapters(replies, "kd")[0], aggregate_adapters(replies, "avg")[0])
