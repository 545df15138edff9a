"""The strategy among failing, lying and vanishing sites: only good replies count, and the round goes on."""

import json
import re
import threading

import numpy as np
import pytest
import torch
from flwr.common import ndarrays_to_parameters
from flwr.server import SimpleClientManager

from fed_a2v.federation import strategy as strategy_module
from fed_a2v.federation.strategy import FederationError

from .helpers import SITES, Federation, Node, assert_same, failed, rewrite, trained_weights, without_seconds

# The sites' average is what stays, so that it can be compared.
PLAIN = "finetune.enabled=false"
BAD = "site-002"


def overwrite(position, value):
    def change(arrays, manifest):
        arrays[position] = np.array(value(arrays[position]))

    return change


def set_manifest(**entries):
    def change(arrays, manifest):
        manifest.update(entries)

    return change


def first_class(**entries):
    def change(arrays, manifest):
        manifest["classes"][0].update(entries)

    return change


def with_nan(array):
    array = array.copy()
    array.flat[0] = np.nan
    return array


BAD_REPLIES = {
    "a weight that is not a number": (overwrite(0, with_nan), "weight 0: not finite"),
    "weights beyond all measure": (overwrite(3, lambda a: np.full(a.shape, 1e30)), "weight 3: .*limit"),
    "a weight of the wrong shape": (overwrite(3, lambda a: a[:-1]), "weight 3: shape"),
    "a weight too few": (lambda arrays, manifest: arrays.pop(0), "array"),
    "an extra array": (lambda arrays, manifest: arrays.append(np.zeros(3, np.float32)), "arrays"),
    "integers for weights": (overwrite(0, lambda a: a.astype(np.int64)), "weight 0"),
    "an output that is not a number": (overwrite(-1, with_nan), "not finite"),
    "the name of no site": (set_manifest(site="site-999"), "not asked for"),
    "the name of another node's site": (set_manifest(site="site-001"), "not asked for"),
    "another round": (set_manifest(round_number=7), "round"),
    "another task": (set_manifest(task="introduce"), "task"),
    "another schema version": (set_manifest(schema_version=99), "schema version"),
    "square roots where the others have none": (
        lambda arrays, manifest: manifest.update(square_root=not manifest["square_root"]),
        "square_root",
    ),
    "a class that nobody knows": (first_class(name="banjo"), "banjo"),
    "no clips of a class": (first_class(count=0), "count"),
    "more clips of a class than clips": (first_class(count=10**6), ""),
    "losses that are no numbers": (set_manifest(losses={"loss": "NaN"}), "losses"),
}


def lie(change, task="train", site=BAD):
    """A tamper function: one site's replies to one task are altered."""
    return lambda t, s, work: rewrite(work(), change) if (t, s) == (task, site) else work()


def honest_average(overrides=(), without=(BAD,)):
    """The plain average of the honest sites' weights, added up in the order of their names."""
    replies = {}

    def listen(task, site, work):
        reply = work()
        if task == "train":
            replies[site] = trained_weights(reply)
        return reply

    Federation(PLAIN, *overrides, tamper=listen).start().train(1)
    good = [replies[site] for site in sorted(replies) if site not in without]
    total = list(good[0])
    for weights in good[1:]:
        total = [left + right for left, right in zip(total, weights, strict=True)]
    return [torch.from_numpy(np.asarray(array / np.float32(len(good)))) for array in total]


@pytest.fixture(scope="module")
def average_without_the_bad():
    return honest_average()


@pytest.fixture(scope="module")
def honest_row():
    return Federation().start().round()


# Bad replies


@pytest.mark.parametrize("kind", BAD_REPLIES)
def test_a_bad_reply_never_enters_the_average_and_its_reason_is_recorded(kind, average_without_the_bad):
    change, reason = BAD_REPLIES[kind]
    federation = Federation(PLAIN, tamper=lie(change)).start()
    row = federation.round()
    assert_same(federation.weights, average_without_the_bad)
    assert (row["replies"], row["rejected"], row["failures"]) == (4, 1, 0)
    assert len(row["rejections"]) == 1
    assert pytest.approx(30) == row["test_clips"], "the site is still evaluated"
    assert re.search(reason, row["rejections"][0]), row["rejections"]
    assert len(row["rejections"][0].splitlines()) == 1


@pytest.mark.parametrize(
    "metrics", [{}, {"manifest": "{"}, {"manifest": "[]"}, {"manifest": 3}, {"manifest": "9" * 10**6}]
)
def test_a_reply_without_a_readable_manifest_is_rejected(metrics, average_without_the_bad):
    def tamper(task, site, work):
        reply = work()
        if (task, site) == ("train", BAD):
            reply.metrics = metrics
        return reply

    federation = Federation(PLAIN, tamper=tamper).start()
    row = federation.round()
    assert_same(federation.weights, average_without_the_bad)
    assert row["rejected"] == 1


def test_bytes_that_are_no_arrays_are_rejected(average_without_the_bad):
    def tamper(task, site, work):
        reply = work()
        if (task, site) == ("train", BAD):
            reply.parameters.tensors[0] = b"\x80\x04garbage"
        return reply

    federation = Federation(PLAIN, tamper=tamper).start()
    assert "array 0 has no readable npy header" in federation.round()["rejections"][0]
    assert_same(federation.weights, average_without_the_bad)


def test_a_site_that_raises_is_counted_with_its_reason_and_the_others_go_on(average_without_the_bad):
    def tamper(task, site, work):
        if (task, site) == ("train", BAD):
            raise RuntimeError("disk on fire")
        return work()

    federation = Federation(PLAIN, tamper=tamper).start()
    row = federation.round()
    assert_same(federation.weights, average_without_the_bad)
    assert (row["replies"], row["rejected"], row["failures"]) == (4, 0, 1)
    assert "disk on fire" in row["failure_reasons"][0]


def test_the_row_says_of_every_site_how_it_answered():
    def tamper(task, site, work):
        if (task, site) == ("train", "site-001"):
            raise OSError("the disk is full")
        bad = task == "train" and site in (BAD, "site-003")
        return (
            rewrite(work(), set_manifest(site="site-999" if site == BAD else site, round_number=7)) if bad else work()
        )

    federation = Federation(PLAIN, tamper=tamper).start()
    row = federation.round()
    assert row["sites"] == {
        "site-000": "replied",
        "site-001": "failed",
        "site-002": "rejected",
        "site-003": "rejected",
        "site-004": "replied",
    }
    assert row["site_seconds"].keys() == {"site-000", "site-004"}


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("<class 'fed_a2v.data.errors.DataError'>:<'no clip (of 3)\nat all'>", "DataError: no clip (of 3) at all"),
        ("Node Unavailable - it is offline", "Node Unavailable - it is offline"),
    ],
)
def test_of_an_exception_at_a_site_the_reason_is_kept_and_flowers_words_are_not(told, kept):
    def tamper(task, site, work):
        if site == BAD:
            raise ValueError(
                f"Message contains an Error (reason: {told}). It originated during client-side execution of a message."
            )
        return work()

    row = Federation(tamper=tamper).start().round()
    assert row["failure_reasons"] == [kept] * 3, "in the introduction, the training and the evaluation"


def test_a_reply_with_an_error_status_counts_as_a_failure(average_without_the_bad):
    def tamper(task, site, work):
        return failed(work(), "no such device") if (task, site) == ("train", BAD) else work()

    federation = Federation(PLAIN, tamper=tamper).start()
    row = federation.round()
    assert_same(federation.weights, average_without_the_bad)
    assert row["failures"] == 1
    assert row["failure_reasons"] == ["no such device"]


def test_a_reply_for_a_site_that_the_node_was_not_asked_for_does_not_displace_the_sites_own():
    # Node 2 speaks for site-002, and claims to be site-001, which node 1 speaks for.
    federation = Federation(PLAIN, tamper=lie(set_manifest(site="site-001"))).start()
    row = federation.round()
    assert row["replies"] == 4
    assert "site-001" in federation.strategy.step.bank.entries
    assert_same(federation.weights, honest_average())


@pytest.mark.parametrize("lie_first", [False, True])
def test_of_two_replies_for_one_site_only_one_counts_and_never_the_one_of_another_site(lie_first):
    # With one node every site is the node's own to speak for; site-002 answers once more as site-001.
    lies = []

    def tamper(task, site, work):
        reply = work()
        if (task, site) == ("train", BAD):
            reply = rewrite(reply, set_manifest(site="site-001"))
            lies.append(reply)
        return reply

    federation = Federation(PLAIN, nodes=1, tamper=tamper).start()
    row = federation.round(order=lambda results: sorted(results, key=lambda r: (r[1] in lies) != lie_first))
    assert (row["replies"], row["rejected"]) == (4, 1)
    assert ("second reply" in row["rejections"][0]) != lie_first
    assert_same(federation.weights, honest_average())


def test_a_site_may_be_good_again_in_the_next_round():
    federation = Federation(tamper=lambda t, s, work: rewrite(work(), overwrite(0, with_nan)) if broken else work())
    broken = []
    federation.start()
    broken.append(True)
    first = federation.round(1)
    broken.clear()
    second = federation.round(2)
    assert (first["replies"], first["rejected"]) == (0, 5)
    assert (second["replies"], second["rejected"]) == (5, 0)


def test_what_a_stranger_writes_cannot_break_a_line_of_the_log(caplog):
    Federation(tamper=lie(set_manifest(site="x\nERROR all is lost"))).start().round()
    assert all(len(record.getMessage().splitlines()) == 1 for record in caplog.records if record.name == "fed_a2v")


# Too few good replies


def test_too_few_good_replies_keep_the_old_adapters_and_the_round_is_evaluated_and_recorded():
    federation = Federation("aggregation.min_replies=5", tamper=lie(overwrite(0, with_nan))).start()
    before = federation.weights
    row = federation.round()
    assert_same(federation.weights, before)
    assert row["skipped"]
    assert row["accuracy"] == row["accuracy_before"]
    assert row["test_clips"] == 30
    assert federation.states[-1]["round"] == 1


def test_just_enough_good_replies_are_enough():
    federation = Federation("aggregation.min_replies=4", tamper=lie(overwrite(0, with_nan))).start()
    before = federation.weights
    row = federation.round()
    assert "skipped" not in row
    assert not torch.equal(federation.weights[0], before[0])


def test_a_round_in_which_every_site_fails_is_recorded_and_the_next_goes_on():
    def tamper(task, site, work):
        if down:
            raise ConnectionError("down")
        return work()

    down = []
    federation = Federation(tamper=tamper).start()
    before = federation.weights
    down.append(True)
    row = federation.round(1)
    assert (row["failures"], row["replies"]) == (10, 0)  # five in training, five in the evaluation
    assert "accuracy" not in row
    assert_same(federation.weights, before)
    down.clear()
    assert federation.round(2)["replies"] == 5


def down_while(broken, task="train"):
    """Sites that cannot be reached in one task, while `broken()` says so."""

    def tamper(asked, site, work):
        if asked == task and broken():
            raise ConnectionError(f"{site} is down")
        return work()

    return tamper


def test_rounds_skipped_in_a_row_end_the_run_when_patience_does_and_the_reason_is_one_line():
    federation = Federation("aggregation.patience=2", tamper=down_while(lambda: True)).start()
    assert all(federation.round(number)["skipped"] for number in (1, 2))
    with pytest.raises(FederationError) as error:
        federation.round(3)
    assert re.match(
        r"round 3: 0 good replies, aggregation.min_replies=1, .*2 rounds skipped.*is down", str(error.value)
    )
    assert len(str(error.value).splitlines()) == 1
    assert len(federation.states) == 2, "the run can go on behind round 2"


def test_a_good_round_renews_the_patience():
    down = iter([True] * 5 + [False] * 5 + [True] * 5)
    federation = Federation("aggregation.patience=1", tamper=down_while(lambda: next(down))).start()
    assert [federation.round(number).get("skipped", False) for number in (1, 2, 3)] == [True, False, True]


def test_a_repeated_round_gives_the_same_bits_as_one_that_went_well_at_once():
    down = iter([True] * 5)
    overrides = ("aggregation.if_too_few=repeat", "aggregation.min_replies=5")
    repeated = Federation(*overrides, tamper=down_while(lambda: next(down, False))).start()
    row = repeated.round()
    at_once = Federation(*overrides).start()
    plain = at_once.round()
    assert_same(repeated.weights, at_once.weights)
    assert (row["repetitions"], row["replies"], row["failures"], row["accuracy"]) == (1, 5, 5, plain["accuracy"])
    assert "repetitions" not in plain
    assert row["bytes_down"] > plain["bytes_down"], "what was sent twice counts twice"


def test_a_round_is_repeated_no_more_often_than_patience_says():
    asked = []
    federation = Federation(
        "aggregation.if_too_few=repeat",
        "aggregation.patience=2",
        tamper=down_while(lambda: asked.append(1) or True),
    ).start()
    with pytest.raises(FederationError, match=r"round 1: 0 good replies.*after 2 repetitions.*is down"):
        federation.round()
    assert len(asked) == 3 * 5
    assert federation.states == []


def test_the_log_names_the_sites_without_a_good_reply(caplog):
    federation = Federation(tamper=down_while(lambda: True)).start()
    federation.round()
    assert f"No good reply of {', '.join(SITES)}" in caplog.text


def test_a_round_waits_for_nodes_that_are_all_gone(caplog):
    federation = Federation("federation.start_timeout=60").start()
    for node in federation.nodes:
        federation.manager.unregister(node)
    back = threading.Timer(0.3, lambda: [federation.manager.register(node) for node in federation.nodes])
    back.start()
    assert federation.round()["replies"] > 0
    back.join()


def test_a_run_whose_nodes_do_not_come_back_ends():
    federation = Federation("federation.start_timeout=1").start()
    for node in federation.nodes:
        federation.manager.unregister(node)
    with pytest.raises(FederationError, match="0 of 1 nodes came within 1 s"):
        federation.strategy.configure_fit(1, federation.parameters, federation.manager)


# The introduction


def narrower(arrays, manifest):
    for entry in manifest["classes"]:
        for index in (entry["prototypes"]["means"], entry["prototypes"]["variances"]):
            arrays[index] = arrays[index][..., :100]


def other_scale(arrays, manifest):
    manifest["square_root"] = not manifest["square_root"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (narrower, "its embeddings are 1 x 100.*, most are 1 x 512"),
        (other_scale, "its embeddings are 1 x 512.*most are"),
    ],
    ids=["another width", "another scale"],
)
def test_a_site_with_other_embeddings_is_turned_away_at_the_introduction(change, reason):
    federation = Federation(tamper=lie(change, task="introduce")).start()
    assert set(federation.strategy.step.bank.entries) == set(SITES) - {BAD}
    assert federation.strategy.audio_shape == (1, 512)
    row = federation.round()
    assert row["rejected"] == 1
    assert re.search(reason, row["rejections"][0])


def test_a_site_with_other_embeddings_stays_out_of_the_standardisation():
    federation = Federation(tamper=lie(other_scale, task="introduce")).start()
    honest = Federation().start()
    moments = [f.strategy.step.adapters.audio_mean for f in (federation, honest)]
    assert not torch.equal(*moments)
    without = {site: classes for site, classes in honest.strategy.step.bank.entries.items() if site != BAD}
    honest.strategy.step.bank.entries = without
    honest.strategy.step.standardise_adapters()
    assert torch.equal(moments[0], honest.strategy.step.adapters.audio_mean)


def test_the_kind_of_embeddings_that_most_clips_have_wins_whoever_comes_first():
    def tamper(task, site, work):
        return rewrite(work(), narrower) if task == "introduce" and site != "site-004" else work()

    federation = Federation(tamper=tamper).start()
    assert federation.strategy.audio_shape == (1, 100)


def test_a_site_that_misses_the_introduction_joins_in_the_first_round():
    def tamper(task, site, work):
        if (task, site) == ("introduce", BAD):
            raise TimeoutError("still booting")
        return work()

    federation = Federation(tamper=tamper).start()
    assert BAD not in federation.strategy.step.bank.entries
    row = federation.round()
    assert row["replies"] == 5
    assert BAD in federation.strategy.step.bank.entries
    assert row["failures"] == 1
    assert "still booting" in row["failure_reasons"][0]


def test_if_no_site_can_introduce_itself_the_error_says_why():
    def tamper(task, site, work):
        raise FileNotFoundError("meta/esc50.csv: no such file")

    with pytest.raises(FederationError, match=r"no site could introduce itself: .*esc50.csv: no such file"):
        Federation(tamper=tamper).start()


def test_if_every_introduction_is_bad_the_error_says_what_is_wrong_with_it():
    with pytest.raises(FederationError, match=r"no site could introduce itself: .*schema version"):
        Federation(tamper=lambda t, s, work: rewrite(work(), set_manifest(schema_version=9))).start()


def test_if_no_site_has_clips_enough_of_a_class_the_error_names_the_setting():
    with pytest.raises(FederationError, match=r"share\.min_clips"):
        Federation("share.min_clips=100").start()


def test_the_prototypes_travel_once():
    federation = Federation("rounds=2").start()
    arrived = []

    def tamper(task, site, work):
        reply = work()
        if task == "train":
            arrived.append([entry["prototypes"] for entry in json.loads(reply.metrics["manifest"])["classes"]])
        return reply

    for node in federation.nodes:
        node.tamper = tamper
    federation.round(1)
    federation.round(2)
    assert len(arrived) == 10
    assert all(prototypes is None for classes in arrived for prototypes in classes)
    assert federation.strategy.step.bank.rows() is not None


# Waiting for nodes


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def perf_counter(self):
        return self.now


class EmptyManager(SimpleClientManager):
    """A manager that lets the clock run while it waits in vain."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def wait_for(self, num_clients, timeout=86400):
        if self.num_available() >= num_clients:
            return True
        self.clock.now += timeout
        return False


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(strategy_module, "time", clock)
    return clock


def test_every_10_s_a_message_says_how_many_nodes_are_missing(clock, caplog):
    federation = Federation("federation.min_nodes=3", "federation.start_timeout=35", nodes=0)
    with pytest.raises(FederationError), caplog.at_level("INFO", "fed_a2v"):
        federation.strategy.initialize_parameters(EmptyManager(clock))
    waiting = [record.getMessage() for record in caplog.records if "Waiting" in record.getMessage()]
    assert waiting == ["Waiting for 3 more of 3 nodes"] * 3


@pytest.mark.parametrize("present", [0, 2])
def test_nodes_that_do_not_come_in_time_are_an_error_that_counts_them(clock, present):
    federation = Federation("federation.min_nodes=3", "federation.start_timeout=25", nodes=present)
    manager = EmptyManager(clock)
    for node in federation.nodes:
        manager.register(node)
    with pytest.raises(FederationError, match=rf"{present} of 3 nodes came within 25 s.*federation.min_nodes"):
        federation.strategy.initialize_parameters(manager)
    assert 25 <= clock.now <= 36


def test_a_real_clock_ends_the_wait_as_well():
    federation = Federation("federation.start_timeout=0.5", nodes=0)
    with pytest.raises(FederationError, match="0 of 1 nodes came"):
        federation.start()


# The order of replies, and the number of nodes


def test_replies_in_another_order_give_the_same_bits():
    first, second = Federation(), Federation()
    rows = [first.start().round(), second.start().round(order=lambda results: results[::-1])]
    assert without_seconds(rows[0]) == without_seconds(rows[1])
    assert_same(first.states, second.states)


@pytest.mark.parametrize("nodes", [1, 2, 3, 7])
def test_any_number_of_nodes_gives_the_same_bits(nodes, honest_row):
    federation = Federation(nodes=nodes).start()
    assert without_seconds(federation.round()) == without_seconds(honest_row)


def test_sites_are_dealt_evenly_to_the_nodes():
    federation = Federation(nodes=2).start()
    federation.round()
    asked = [{message["site"] for message in node.messages} for node in federation.nodes]
    assert asked == [{"site-000", "site-002", "site-004"}, {"site-001", "site-003"}]


def test_every_round_draws_its_sites_anew_and_the_same_ones_for_the_same_seed():
    def drawn(seed):
        few = ("dataset.clips_per_class=4", "share.min_clips=1")
        federation = Federation("federation.sites_per_round=0.4", f"seed={seed}", *few).start()
        asked = [federation.strategy.configure_fit(n, federation.parameters, federation.manager) for n in range(1, 7)]
        return [[ins.config["site"] for _, ins in round_] for round_ in asked]

    first = drawn(0)
    assert first == drawn(0)
    assert [len(set(sites)) for sites in first] == [2] * 6
    assert any(first[0] != other for other in first[1:])
    assert first != drawn(1)


# Evaluation


def test_scores_that_are_bad_are_left_out_of_the_sums_and_counted(honest_row):
    def too_good(arrays, manifest):
        entry = next(iter(manifest["models"]["after"].values()))
        entry["right_at_1"] = 10**6

    row = Federation(tamper=lie(too_good, task="evaluate")).start().round()
    assert row["rejected"] == 1
    assert row["test_clips"] == 24
    assert row["accuracy"] <= 1
    others = [name for name in honest_row["per_class"] if name in row["per_class"]]
    assert len(others) == 8
    assert all(row["per_class"][name] == honest_row["per_class"][name] for name in others)


def test_a_site_that_cannot_be_evaluated_is_counted_and_the_others_add_up():
    def tamper(task, site, work):
        if (task, site) == ("evaluate", BAD):
            raise MemoryError("too little")
        return work()

    row = Federation(tamper=tamper).start().round()
    assert (row["failures"], row["test_clips"]) == (1, 24)
    assert "too little" in row["failure_reasons"][0]


def test_one_node_cannot_score_for_another():
    row = Federation(tamper=lie(set_manifest(site="site-001"), task="evaluate")).start().round()
    assert row["test_clips"] == 24
    assert "not asked for" in row["rejections"][0]


def test_the_average_before_the_server_step_is_evaluated_only_where_asked():
    federation = Federation("federation.evaluate_before=false").start()
    row = federation.round()
    assert "accuracy_before" not in row
    evaluations = [m for node in federation.nodes for m in node.messages if m["task"] == "evaluate"]
    assert all(json.loads(message["models"]) == ["after"] for message in evaluations)


# What the row and the state hold


def test_the_bytes_of_a_round_are_those_of_the_arrays_sent(honest_row):
    federation = Federation().start()
    federation.round()
    weights = sum(weight.numel() for weight in federation.weights)
    standardisation = 2 * 512 * 4
    down_per_site = (2 * weights + standardisation) + (2 * 2 * weights + standardisation)
    outputs_per_site = 2 * 768 * 2  # two classes, one token each, half precision
    assert honest_row["bytes_down"] == 5 * down_per_site
    assert honest_row["bytes_up"] == 5 * (2 * weights + outputs_per_site)
    assert honest_row["bytes_introduction"] > 0


def test_only_the_first_round_has_the_cost_of_the_introduction():
    federation = Federation().start()
    first, second = federation.round(1), federation.round(2)
    assert first["bytes_introduction"] > 0
    assert "bytes_introduction" not in second


def test_a_strategy_with_an_earlier_state_goes_on_behind_it_without_an_introduction():
    whole = Federation().start()
    for number in (1, 2, 3):
        whole.round(number)
    resumed = Federation(state=whole.states[1]).start()
    assert not [m for node in resumed.nodes for m in node.messages], "nobody is asked to introduce itself"
    row = resumed.round(1)
    assert row["round"] == 3
    assert without_seconds(row) == without_seconds(whole.rows[2])
    assert_same(resumed.states[-1], whole.states[2])


def test_what_is_sent_to_the_sites_is_allowed_on_the_wire():
    federation = Federation().start()
    federation.round()
    for node in federation.nodes:
        for message in node.messages:
            assert {type(value) for value in message.values()} <= {bool, int, float, str, bytes}


# Every node a site of its own


@pytest.fixture
def own_files(tmp_path):
    """Two nodes with files of their own: other classes, other numbers of clips."""
    random = np.random.default_rng(0)
    configs = []
    for name, classes, clips in (("lab", ["dog", "rain"], 6), ("field", ["siren"], 9)):
        labels = np.repeat(np.arange(len(classes)), clips * 4)
        means = random.normal(0, 3, (len(classes), 20))
        path = tmp_path / f"{name}.npz"
        np.savez(
            path,
            embeddings=(means[labels] + random.normal(0, 0.3, (len(labels), 20))).astype(np.float32),
            category=np.array(classes)[labels],
            fold=np.tile([1, 2, 3, 4], clips * len(classes)),
        )
        configs.append({"site": name, "data-dir": str(path)})
    return configs


OWN = ("partition=own", "dataset=embeddings", "dataset.classes=[dog,rain,siren]", "finetune.first_steps=40")


def test_where_every_node_is_a_site_it_trains_on_its_own_data_under_its_own_name(own_files):
    federation = Federation(*OWN, node_configs=own_files).start()
    bank = federation.strategy.step.bank
    assert {site: set(classes) for site, classes in bank.entries.items()} == {
        "site-lab": {"dog", "rain"},
        "site-field": {"siren"},
    }
    row = federation.round()
    assert (row["replies"], row["test_clips"]) == (2, 6 + 6 + 9)
    assert row["accuracy"] > 0.9


def test_a_node_that_does_not_say_its_name_is_left_out_until_it_does(own_files):
    federation = Federation(*OWN, node_configs=own_files)
    lost = federation.nodes[1]

    def unreachable(ins, timeout, group_id):
        raise ConnectionError("node gone")

    lost.get_properties = unreachable
    federation.start()
    assert set(federation.strategy.step.bank.entries) == {"site-lab"}
    assert federation.round(1)["replies"] == 1
    del lost.get_properties
    assert federation.round(2)["replies"] == 2


def test_a_site_without_a_usable_clip_says_why_and_the_round_goes_on(own_files, tmp_path):
    empty = {"site": "empty", "data-dir": str(tmp_path / "nothing.npz")}
    federation = Federation(*OWN, node_configs=[*own_files, empty]).start()
    row = federation.round()
    assert row["sites"] == {"site-empty": "failed", "site-field": "replied", "site-lab": "replied"}
    assert "nothing.npz" in row["failure_reasons"][0]


def test_nodes_are_asked_for_their_names_at_the_same_time(own_files):
    federation = Federation(*OWN, node_configs=own_files)
    together = threading.Barrier(2, timeout=20)
    for node in federation.nodes:
        answer = node.get_properties
        node.get_properties = lambda *words, answer=answer: (together.wait(), answer(*words))[1]
    federation.start()
    assert federation.round()["replies"] == 2


def test_two_nodes_of_the_same_name_do_not_count_twice(own_files):
    twin = {**own_files[0]}
    federation = Federation(*OWN, node_configs=[*own_files, twin]).start()
    row = federation.round()
    assert row["replies"] == 2
    assert row["test_clips"] == 21


def test_a_late_node_may_join_in_a_later_round(own_files):
    federation = Federation(*OWN, node_configs=own_files[:1]).start()
    federation.round(1)
    federation.manager.register(Node("000009", None, own_files[1]))
    assert federation.round(2)["replies"] == 2
    assert "site-field" in federation.strategy.step.bank.entries


def test_parameters_that_flower_hands_over_are_not_needed():
    federation = Federation().start()
    federation.parameters = ndarrays_to_parameters([])
    assert federation.round()["replies"] == 5


def test_the_bytes_of_a_reply_are_let_go_of_once_it_is_unpacked():
    """All sites' weights, unpacked at the same time, would be most of the server's memory."""
    federation = Federation(PLAIN).start()
    kept = []
    federation.train(1, order=lambda results: kept.extend(results) or results)
    assert kept
    assert all(result.parameters.tensors == [] for _, result in kept)


@pytest.mark.parametrize(("mode", "moved"), [("avg", True), ("median", False), ("trimmed", False), ("krum", False)])
def test_a_site_that_sends_garbage_moves_the_mean_but_no_robust_rule(mode, moved):
    def garbage(arrays, manifest):
        arrays[: manifest["weights"]] = [np.full_like(array, 5.0) for array in arrays[: manifest["weights"]]]

    def tamper(task, site, work):
        reply = work()
        return rewrite(reply, garbage) if (task, site) == ("train", BAD) else reply

    largest = []
    for node in (None, tamper):
        overrides = (f"aggregation.mode={mode}", "aggregation.trimmed_share=0.2", "finetune.enabled=false")
        federation = Federation(*overrides, tamper=node).start()
        federation.train(1)
        assert federation.strategy._row["rejected"] == 0  # it is well-formed garbage
        largest.append(max(float(weight.abs().max()) for weight in federation.weights))
    honest, attacked = largest
    assert (attacked > honest + 0.5) == moved


def test_distillation_runs_in_a_federation_and_trains_the_global_adapters():
    plain, distilled = (
        Federation(f"aggregation.mode={mode}", "finetune.enabled=false", "generator=gaussian").start()
        for mode in ("avg", "kd")
    )
    for federation in (plain, distilled):
        federation.train(1)
    row = distilled.strategy._row
    assert row["distil/loss"] > 0
    assert row["seconds/distil"] > 0
    assert "server/adapter_finetuning_loss" not in row
    assert not all(torch.equal(a, b) for a, b in zip(plain.weights, distilled.weights, strict=True))


def test_saving_memory_changes_no_metric_beyond_rounding():
    rows = [Federation(f"optimize_memory_usage={flag}").start().round() for flag in (False, True)]
    for name in ("accuracy", "cosine", "server/adapter_finetuning_loss"):
        assert rows[0][name] == pytest.approx(rows[1][name], abs=0.01), name


INCREMENTAL = ("scenario=class_incremental", "scenario.steps=5", "scenario.rounds_per_step=1", "rounds=5")


def asked(federation, task):
    return sorted(
        {message["site"] for node in federation.nodes for message in node.messages if message["task"] == task}
    )


def test_sites_come_one_after_the_other_and_all_are_scored():
    federation = Federation(*INCREMENTAL).start()
    assert asked(federation, "introduce") == SITES[:1]
    for number in (1, 2, 3):
        for node in federation.nodes:
            node.messages.clear()
        row = federation.round(number)
        assert asked(federation, "train") == [SITES[number - 1]]
        assert asked(federation, "evaluate") == SITES
        assert (row["classes_known"], row["classes_old"]) == (2 * number, 2 * (number - 1))
    federation.round(4)
    federation.round(5)
    federation.train(6)  # the last group stays
    assert federation.strategy._row["replies"] == 1


def test_replay_keeps_what_averaging_forgets():
    forgotten, kept, generated = (
        Federation(*INCREMENTAL, "finetune.steps=60", "finetune.first_steps=60", *extra).start()
        for extra in (("finetune.enabled=false",), ("generator=none",), ("generator=gaussian", "bank.keep=generator"))
    )
    for number in range(1, 6):
        for federation in (forgotten, kept, generated):
            federation.round(number)
    assert forgotten.rows[0]["accuracy_old"] is None
    old = [federation.rows[-1]["accuracy_old"] for federation in (forgotten, kept, generated)]
    assert min(old[1:]) > old[0] + 0.2


def test_sites_drawn_for_a_round_are_drawn_among_those_that_are_there():
    federation = Federation(
        "scenario=class_incremental", "scenario.steps=2", "scenario.rounds_per_step=1", "federation.sites_per_round=0.5"
    )
    assert federation.strategy._active(1) == [0, 1, 2]
    assert federation.strategy._active(9) == [3, 4]
    assert set(federation.strategy._sampled(2)) <= {3, 4}


def test_classes_without_a_recording_are_scored_with_and_without_calibration():
    federation = Federation("dataset.unseen=2", "finetune.first_steps=40", "site.epochs=2").start()
    row = federation.round(1)
    figures = {key.removeprefix("unseen/"): value for key, value in row.items() if key.startswith("unseen/")}
    assert figures["calibration"] == federation.strategy.step.calibration
    clips = row["test_clips"]
    share = 2 / 10  # of the test clips; synthesised classes are of the same size
    assert row["accuracy"] == pytest.approx(share * figures["unseen"] + (1 - share) * figures["seen"], abs=1 / clips)
    assert figures["unseen_calibrated"] >= figures["unseen"]
    assert figures["seen_calibrated"] <= figures["seen"]
    both = figures["unseen_calibrated"], figures["seen_calibrated"]
    assert figures["harmonic_calibrated"] == pytest.approx(2 * both[0] * both[1] / sum(both) if sum(both) else 0)


def test_the_calibration_is_chosen_once_and_survives_a_file():
    federation = Federation("dataset.unseen=2").start()
    federation.round(1)
    chosen = federation.strategy.step.calibration
    assert "seconds/calibration" in federation.rows[0]
    federation.round(2)
    assert "seconds/calibration" not in federation.rows[1]
    resumed = Federation("dataset.unseen=2", state=federation.states[0])
    assert resumed.strategy.step.calibration == chosen


def test_nothing_is_said_of_unseen_classes_where_there_are_none():
    assert not any(key.startswith("unseen/") for key in Federation().start().round())


def test_closed_form_adapters_are_solved_for_by_the_server_and_left_alone_by_the_sites():
    federation = Federation("adapters=bilinear", "generator=none", "dataset.unseen=2").start()
    row = federation.round(1)
    solved = federation.weights
    assert row["accuracy"] > 0.3  # chance is 0.1
    assert row["unseen/calibration"] > 0
    assert row["server/adapter_finetuning_loss"] > 0
    assert not any(key.startswith("site/") for key in row)
    federation.train(2)
    for one, other in zip(solved, federation.weights, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
