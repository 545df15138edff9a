"""From the sites' adapters to one."""

import numpy as np
import pytest
import torch

from fed_a2v.federation.aggregation import aggregate_adapters
from fed_a2v.federation.wire import SiteReply


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


def test_an_unknown_mode_is_refused_by_name(replies):
    with pytest.raises(ValueError, match=r"aggregation.mode='mean': choose avg, weighted or none"):
        aggregate_adapters(replies, "mean")
