"""When the sites are asked for scores: rounds between evaluations, and scores in the replies to training messages."""

from __future__ import annotations

import json

import pytest

from fed_a2v.federation.client.local_training import Site
from fed_a2v.federation.protocol.instruction import InvalidInstructionError
from fed_a2v.runs.rounds import best_row
from tests.federation.helpers import Federation, assert_same, without_seconds

ROUNDS, TOGETHER = "rounds=3", "federation.evaluate_with_training=true"
SCORED = {"accuracy", "accuracy_before", "loss", "per_class", "test_clips", "sites_evaluated", "not_evaluated"}


def run(*overrides, tamper=None):
    federation = Federation(ROUNDS, *overrides, tamper=tamper).start()
    play(federation, 1, 2, 3)
    return federation


def play(federation, *rounds):
    for number in rounds:
        federation.train(number)
        federation.evaluate(number)


def tasks(federation):
    """The tasks of all messages to one node, with the models of a training message that asks for scores."""
    return [
        (message["task"], tuple(json.loads(message.get("models", "[]")))) for message in federation.nodes[0].messages
    ]


def without_bytes(row):
    return {key: value for key, value in without_seconds(row).items() if key != "bytes_down"}


@pytest.fixture(scope="module")
def separate():
    return run()


def test_only_the_due_rounds_and_the_last_are_evaluated(separate, caplog):
    federation = run("federation.evaluate_frequency=2")
    assert [task for task, _ in tasks(federation)] == ["register", "train", "train", "evaluate", "train", "evaluate"]
    first, second, last = federation.rows
    assert SCORED.isdisjoint(first)
    assert first["seconds"] > 0
    assert not [record for record in caplog.records if "test clip" in record.getMessage()], "nothing is missing"
    assert [without_seconds(row) for row in (second, last)] == [without_seconds(row) for row in separate.rows[1:]]
    assert_same(federation.states[-1], separate.states[-1])
    assert best_row(federation.rows) in (second, last)


def test_scores_in_training_replies_are_those_of_separate_messages(separate):
    together = run(TOGETHER)
    both = ("before", "after")
    assert tasks(together) == [
        *(("register", ()), ("train", ()), ("train", both), ("train", both)),
        ("evaluate", both),
    ]
    assert [row["round"] for row in together.rows] == [1, 2, 3]
    assert list(map(without_bytes, together.rows)) == list(map(without_bytes, separate.rows))
    for mine, its in zip(together.states, separate.states, strict=True):
        assert_same(mine, its)
    assert sum(row["bytes_down"] for row in together.rows) < sum(row["bytes_down"] for row in separate.rows)


def test_a_run_continues_from_the_state_of_a_round_whose_scores_came_with_the_next_training(separate):
    together = run(TOGETHER)
    resumed = Federation(ROUNDS, TOGETHER, state=together.states[0], after=1).start()
    play(resumed, 1, 2)
    assert list(map(without_bytes, resumed.rows)) == list(map(without_bytes, separate.rows[1:]))


@pytest.mark.parametrize("override", ["federation.sites_per_round=0.6", "scenario=class_incremental"])
def test_scores_are_asked_for_separately_if_the_next_training_does_not_reach_every_site(override):
    federation = Federation(ROUNDS, TOGETHER, override).start()
    federation.round(1)
    assert federation.rows[0]["sites_evaluated"] == 5


def test_a_site_that_fails_in_the_next_training_is_missing_in_the_evaluation():
    def tamper(task, site, work):
        if (task, site, second) == ("train", "site-000", [True]):
            raise OSError("the site is off")
        return work()

    second = []
    federation = Federation(ROUNDS, TOGETHER, tamper=tamper).start()
    play(federation, 1)
    assert not federation.rows, "the scores of the first round are on their way"
    second.append(True)
    federation.train(2)
    (first,) = federation.rows
    assert (first["not_evaluated"], first["failures"]) == (["site-000"], 0)
    assert 0 < first["test_clips"] < first["test_clips_total"]


def test_refused_scores_leave_the_training_reply_and_are_counted_in_their_own_round():
    def tamper(task, site, work):
        reply = work()
        if task == "train" and site == "site-001" and "scores" in reply.metrics:
            reply.metrics["scores"] = "{}"
        return reply

    federation = run(TOGETHER, tamper=tamper)
    first, second, last = federation.rows
    for row in (first, second):
        assert (row["rejected"], row["not_evaluated"], row["replies"]) == (1, ["site-001"], 5)
    assert (last["rejected"], last["not_evaluated"]) == (0, [])


@pytest.mark.parametrize(("task", "models"), [("register", '["after"]'), ("train", '["validation"]')])
def test_a_request_for_scores_is_refused_without_adapters_or_a_model(task, models):
    federation = Federation().start()
    (_, message), *_ = federation.strategy.configure_fit(1, federation.parameters, federation.manager)
    message.config |= {"task": task, "models": models}
    with pytest.raises(InvalidInstructionError):
        federation.nodes[0].fit(message, None, None)


def test_a_site_that_sends_no_scores_trains_and_is_missing_in_the_evaluation():
    def tamper(task, site, work):
        reply = work()
        if task == "train" and site == "site-001":
            reply.metrics.pop("scores", None)
        return reply

    federation = run(TOGETHER, tamper=tamper)
    assert [row["not_evaluated"] for row in federation.rows] == [["site-001"], ["site-001"], []]
    assert all((row["rejected"], row["replies"]) == (0, 5) for row in federation.rows)


def test_a_site_that_cannot_score_the_adapters_trains_them(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of memory")

    federation = Federation(ROUNDS, TOGETHER).start()
    play(federation, 1)
    monkeypatch.setattr(Site, "evaluate", broken)
    federation.train(2)
    assert (federation.rows[0]["sites_evaluated"], federation.strategy._row["replies"]) == (0, 5)
