"""Aggregation of the sites' adapters."""

import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.sections.federation import AggregationSettings
from fed_a2v.config.tree import options
from fed_a2v.core.weight_cap import cap_client_weights
from fed_a2v.federation.protocol import TrainReply
from fed_a2v.federation.server.aggregation import aggregate, clipped, cut_shares, limited
from fed_a2v.federation.server.aggregation.base import AggregationRule, make_rule
from fed_a2v.federation.server.aggregation.running_mean import RunningMean
from tests.federation.helpers import Federation, assert_same
from tests.refusals import refused


def aggregate_adapters(replies, mode, sent=None, max_site_share=1.0, **options):
    options |= {"mode": mode, "max_site_share": max_site_share}
    keys = [f"aggregation.{key}={value}" for key, value in options.items()]
    sent = sent or [torch.zeros_like(weight, dtype=torch.float32) for weight in replies[0].weights]
    return aggregate(make_rule(compose_settings(keys).aggregation), replies, sent)


def reply(site, clips, *weights):
    tensors = [torch.as_tensor(weight, dtype=torch.float32) for weight in weights]
    return TrainReply(site, 1, "train", clips, tensors, [], "mark", False)


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


# Updates that are too long


@pytest.mark.parametrize("mode", ["avg", "weighted", "kd", "median", "trimmed"])
def test_a_huge_update_moves_no_rule_further_than_the_limit(mode):
    common, replies = federation_with_garbage(1e5)
    sent = [common]
    free = aggregate_adapters(replies, mode, sent)[0]
    held = aggregate_adapters(replies, mode, sent, max_update_norm=0.5)[0]
    assert (held - common).norm() <= 0.5 * 1.0001
    if mode in ("avg", "weighted", "kd"):
        assert (free - common).norm() > 1000


def test_updates_within_the_limit_stay_as_they_are(replies):
    for mode in ("avg", "median"):
        near = aggregate_adapters(replies, mode, max_update_norm=100.0)
        assert all(torch.equal(a, b) for a, b in zip(near, aggregate_adapters(replies, mode), strict=True))


@given(seed=st.integers(0, 2**32 - 1), size=st.floats(1e-3, 1e6), limit=st.floats(1e-3, 1e3))
def test_a_shortened_update_has_the_limits_length_and_its_own_direction(seed, size, limit):
    random = torch.Generator().manual_seed(seed)
    sent = [torch.randn(3, 2, generator=random), torch.randn(4, generator=random)]
    updates = [size * torch.randn(weight.shape, generator=random) for weight in sent]
    norm = torch.cat([update.flatten() for update in updates]).norm()
    got = clipped([start + update for start, update in zip(sent, updates, strict=True)], sent, limit)
    moved = torch.cat([(weight - start).flatten() for weight, start in zip(got, sent, strict=True)])
    torch.testing.assert_close(moved.norm(), norm.clamp(max=limit), rtol=1e-3, atol=1e-5)
    wanted = torch.cat([update.flatten() for update in updates]) * min(1.0, limit / float(norm))
    torch.testing.assert_close(moved, wanted, rtol=1e-2, atol=1e-4 * max(1.0, limit))


def test_a_site_that_claims_a_billion_clips_counts_for_no_more_than_its_share():
    honest = [reply(f"site-{k}", 10, [1.0]) for k in range(4)]
    liar = reply("site-9", 10**9, [0.0])
    assert aggregate_adapters([*honest, liar], "weighted")[0] == pytest.approx(0.0, abs=1e-6)
    assert aggregate_adapters([*honest, liar], "weighted", max_site_share=0.5)[0] == pytest.approx(0.5)
    assert aggregate_adapters([*honest, liar], "weighted", max_site_share=0.25)[0] == pytest.approx(0.75)
    assert compose_settings().aggregation.max_site_share == 0.5


def test_the_sites_that_count_for_less_than_their_clips_are_known():
    sizes = {"large": 200, "small": 20, "other": 20}
    replies = [reply(site, clips, [float(site == "large")]) for site, clips in sizes.items()]
    settings = compose_settings(["aggregation.mode=weighted"]).aggregation
    rule = make_rule(settings)
    assert cut_shares(rule, replies) == {"large": pytest.approx((200 / 240, 0.5))}
    assert float(aggregate(rule, replies, [torch.zeros(1)])[0]) == pytest.approx(0.5)
    free = make_rule(settings.model_copy(update={"max_site_share": 1.0}))
    assert cut_shares(free, replies) == {}
    assert float(aggregate(free, replies, [torch.zeros(1)])[0]) == pytest.approx(200 / 240)
    assert cut_shares(make_rule(settings.model_copy(update={"mode": "avg"})), replies) == {}


def test_half_precision_weights_are_averaged_in_single_precision():
    halves = [replace(reply(f"site-{k}", 1, [0.1]), weights=[torch.tensor([0.1 + k / 1000]).half()]) for k in range(3)]
    combined = aggregate_adapters(halves, "avg")[0]
    assert combined.dtype == torch.float32
    torch.testing.assert_close(combined, torch.stack([r.weights[0].float() for r in halves]).mean(dim=0))


# Replies that are added one by one


@given(
    st.lists(st.sampled_from([1, 2, 3, 10, 500, 10**9]), min_size=1, max_size=8),
    st.sampled_from([0.05, 0.3, 1 / 3, 0.5, 0.9, 1.0]),
    st.randoms(use_true_random=False),
)
def test_a_capped_mean_is_the_same_in_any_order_and_keeps_the_largest_sites_only(counts, share, random):
    weights = [torch.tensor([float(k), 0.1 * k]) for k in range(len(counts))]
    factors = cap_client_weights(counts, share)
    expected = sum(factor * each.double() for factor, each in zip(factors, weights, strict=True)) / sum(factors)
    order = list(range(len(counts)))
    results = []
    for _ in range(2):
        mean, alive = RunningMean(share), []
        for place in order:
            copy = weights[place].clone()
            alive.append(weakref.ref(copy))
            mean.add([copy], counts[place])
            del copy
        assert sum(each() is not None for each in alive) <= (0 if share == 1 else math.ceil(1 / share))
        results.append(mean.finish())
        random.shuffle(order)
    torch.testing.assert_close(results[0][0].double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(results[0][0], results[1][0])


@pytest.mark.parametrize("mode", ["avg", "weighted"])
@pytest.mark.parametrize("max_update_norm", [None, 0.5])
def test_replies_that_are_in_the_mean_already_give_the_same_result(replies, mode, max_update_norm):
    options = compose_settings([f"aggregation.mode={mode}"]).aggregation.model_dump()
    rule = make_rule(AggregationSettings.model_validate(options | {"max_update_norm": max_update_norm}))
    sent = [torch.zeros(3, 2), torch.zeros(())]
    mean = rule.running_mean()
    mean.add(limited(rule, replies[1], sent), replies[1].num_examples)
    light = [replies[0], replace(replies[1], weights=[]), replies[2]]
    assert_same(aggregate(rule, light, sent, mean), aggregate(rule, replies, sent))


# Custom rules


class Largest(AggregationRule):
    """The weights of the site with the most clips."""

    def combine(self, sites, clips, sent):
        sites = list(sites)
        return [self.settings.arguments["factor"] * weight for weight in sites[clips.index(max(clips))]]


class Counting(AggregationRule):
    rounds = 0

    def combine(self, sites, clips, sent):
        self.rounds += 1

    def state_dict(self):
        return {"rounds": self.rounds}

    def load_state_dict(self, state):
        self.rounds = state["rounds"]


class ServerMomentum(AggregationRule):
    """The mean of two sites, moved further by half of the last round's change."""

    change = torch.zeros(1)

    def combine(self, sites, clips, sent):
        first, second = sites
        self.change = (first[0] + second[0]) / 2 - sent[0] + self.change / 2
        return [sent[0] + self.change]

    def state_dict(self):
        return {"change": self.change}

    def load_state_dict(self, state):
        self.change = state["change"]


class NoRule:
    pass


def custom(target, *more):
    return compose_settings(["aggregation=custom", f"aggregation._target_={__name__}.{target}", *more])


def test_a_custom_rule_is_found_by_its_import_path(replies):
    rule = make_rule(custom("Largest", "+aggregation.arguments.factor=2").aggregation)
    combined = aggregate(rule, replies, [])
    for weight, expected in zip(combined, replies[2].weights, strict=True):
        assert torch.equal(weight, 2 * expected)


def test_a_custom_rule_keeps_values_between_rounds_and_over_a_resume():
    settings = custom("ServerMomentum").aggregation
    rule, resumed = make_rule(settings), make_rule(settings)
    replies = [reply("a", 1, [1.0]), reply("b", 1, [3.0])]
    (first,) = aggregate(rule, replies, [torch.zeros(1)])
    resumed.load_state_dict(rule.state_dict())
    (second,) = aggregate(rule, replies, [first])
    assert (float(first), float(second)) == (2.0, 3.0)
    assert torch.equal(aggregate(resumed, replies, [first])[0], second)


def test_the_state_of_the_rule_is_part_of_the_runs_state():
    federation = Federation("aggregation=custom", f"aggregation._target_={__name__}.Counting").start()
    federation.round(1)
    components = federation.strategy.state_dict()
    assert components["aggregation"] == {"rounds": 1}
    federation.strategy.rule.rounds = 0
    federation.strategy.load_state_dict(components)
    assert federation.strategy.rule.rounds == 1


def test_the_sites_do_not_receive_the_custom_rule():
    words = ["aggregation=custom", f"aggregation._target_={__name__}.Largest", "+aggregation.arguments.factor=1"]
    federation = Federation(*words).start()
    row = federation.round(1)
    assert (row["replies"], row["rejected"]) == (5, 0)
    assert all(__name__ not in message["settings"] for node in federation.nodes for message in node.messages)


def test_a_class_that_is_not_a_rule_is_refused():
    with refused(ConfigError, "aggregation._target_", "NoRule", "AggregationRule"):
        make_rule(custom("NoRule").aggregation)
    with refused(ConfigError, "aggregation._target_"):
        compose_settings(["aggregation=custom"])
    with refused(ConfigError, "aggregation.mode", "medain", "median"):
        compose_settings(["aggregation.mode=medain"])


def test_every_option_is_a_rule():
    for mode in options("aggregation"):
        if mode != "custom":
            assert isinstance(make_rule(compose_settings([f"aggregation.mode={mode}"]).aggregation), AggregationRule)
            assert compose_settings([f"aggregation={mode}"]).aggregation.mode == mode
