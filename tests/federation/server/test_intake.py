"""Replies to training that are taken as they come: what is kept of them, and that the round's result stays the same."""

import gc
import json
import weakref

import pytest
import torch
from flwr.server.server import fit_clients

from fed_a2v.federation.protocol import TrainReply
from fed_a2v.federation.server.aggregation import avg
from fed_a2v.federation.server.reply_validator import Taken
from tests.federation.helpers import BAD, PLAIN, SITES, Federation, assert_same, lie, rewrite, set_manifest

OUTPUTS = ("finetune.enabled=true", "finetune.from_nodes_adapters=true")


@pytest.fixture(scope="module")
def federation():
    return Federation(PLAIN).start()


def taken(federation):
    """What Flower returns of a round's replies, in the order of the sites."""
    results, failures = fit_clients(federation.strategy.configure_fit(1, None, federation.manager), 1, None, 1)
    assert not failures
    return sorted((result for _, result in results), key=lambda result: result.site)


def test_flower_gets_replies_without_arrays(federation):
    results = taken(federation)
    assert [result.site for result in results] == SITES
    assert all(isinstance(result, Taken) and result.parameters.tensors == [] for result in results)


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        ((), 0),
        (("aggregation=weighted",), 0),
        (("aggregation=weighted", "aggregation.max_update_norm=1"), 0),
        (("aggregation=median",), 5),
        (("aggregation=krum",), 5),
        (("finetune.enabled=true", "aggregation=kd"), 5),
        (OUTPUTS, 5),
        ((*OUTPUTS, "aggregation.max_scale=null"), 0),
    ],
)
def test_weights_are_kept_only_for_a_rule_or_a_comparison_that_needs_them(overrides, kept):
    results = taken(Federation(PLAIN, *overrides).start())
    assert sum(bool(result.outcome.weights) for result in results) == kept


def test_the_result_is_that_of_replies_which_all_come_at_the_end(federation):
    asked = federation.strategy.configure_fit(1, None, federation.manager)
    raw = [(node.inner, node.inner.fit(message, None, None)) for node, message in asked]
    federation.strategy.aggregate_fit(1, raw[::-1], [])
    other = Federation(PLAIN).start()
    other.train(1)
    assert_same(federation.weights, other.weights)


def test_a_node_that_answers_twice_for_a_site_counts_once():
    once, twice = (Federation(PLAIN).start() for _ in range(2))
    once.train(1)
    asked = twice.strategy.configure_fit(1, None, twice.manager)
    results, failures = fit_clients([*asked, asked[2]], 1, None, 1)
    twice.strategy.aggregate_fit(1, results, failures)
    assert twice.strategy._row["rejected"] == 1
    assert_same(twice.weights, once.weights)


def test_replies_that_a_node_swaps_between_its_sites_all_count():
    replies = {}

    def tamper(task, site, work):
        if task != "train" or site not in SITES[:2]:
            return work()
        replies[site] = work()
        other = SITES[1 - SITES.index(site)]
        return rewrite(replies[site], set_manifest(site=other))

    swapped, honest = Federation(PLAIN, nodes=1, tamper=tamper).start(), Federation(PLAIN, nodes=1).start()
    swapped.train(1)
    honest.train(1)
    assert (swapped.strategy._row["replies"], swapped.strategy._row["rejected"]) == (5, 0)
    assert_same(swapped.weights, honest.weights)


def test_a_site_whose_reply_is_in_the_mean_cannot_be_withdrawn_by_a_reply_for_another_site():
    def tamper(task, site, work):
        reply = work()
        if (task, site) == ("train", BAD):
            manifest = {"site": SITES[1], "round_number": 1, "schema_version": 3}
            reply.metrics = {"manifest": json.dumps(manifest), "withdraw": True}
        return reply

    federation = Federation(PLAIN, nodes=1, tamper=tamper).start()
    row = federation.round()
    assert "withdrawn" not in row
    assert (row["replies"], row["rejected"]) == (4, 1)
    assert SITES[1] in federation.strategy.step.bank.entries


def test_kept_weights_are_freed_with_the_round_although_flower_holds_the_results():
    tamper = lie(set_manifest(fingerprint=""))
    federation = Federation(PLAIN, "aggregation=median", tamper=tamper).start()
    results, failures = fit_clients(federation.strategy.configure_fit(1, None, federation.manager), 1, None, 1)
    kept = [weakref.ref(result.outcome.weights[0]) for _, result in results if isinstance(result.outcome, TrainReply)]
    assert len(kept) == 4
    gc.disable()  # a cycle of references would keep them, too
    try:
        federation.strategy.aggregate_fit(1, results, failures)
        assert [weight() for weight in kept] == [None] * 4
    finally:
        gc.enable()


def test_a_mean_with_a_combination_of_its_own_is_asked_for_it(federation):
    class Own(avg.Rule):
        def combine(self, sites, clips, sent):
            return [torch.zeros_like(weight) for weight in sent]

    other = Federation(PLAIN).start()
    other.strategy.rule = Own(other.strategy.rule.settings)
    other.train(1)
    assert not any(weight.any() for weight in other.weights)
