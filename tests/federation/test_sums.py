"""Federations whose sites send sums: in what order they come, what they may send, and how they leave."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_a2v.config.compose import ConfigError
from fed_a2v.core.public_space import PublicSpace
from fed_a2v.data.site import labelled_rows
from fed_a2v.federation.client.flower_client import A2VClient
from fed_a2v.federation.client.ledger import Ledger
from fed_a2v.federation.client.local_training import Site
from fed_a2v.federation.client.message_handler import InvalidReplyError
from fed_a2v.federation.client.privacy_policy import PolicyViolationError
from fed_a2v.federation.protocol import FederationError, join_arrays
from fed_a2v.federation.protocol.instruction import InvalidInstructionError
from tests.federation.helpers import (
    BAD,
    SITES,
    Federation,
    assert_same,
    failed,
    lie,
    overwrite,
    rewrite,
    set_manifest,
    with_nan,
    without_seconds,
)
from tests.refusals import refused

SUMS = ("share=statistics", "projection.columns=16", "adapters=closed_form")


def total(federation):
    return vars(federation.strategy.step.sums.total)


@pytest.fixture(scope="module")
def honest():
    """A federation after its registration; tests copy it or leave it as it is."""
    return Federation(*SUMS).start()


def with_space_of(federation, *overrides, **options):
    """Another federation, whose centre is that of the first: as if it were public."""
    other = Federation(*SUMS, *overrides, **options)
    register = other.strategy._register_sums

    def around_the_same_centre(manager, row):
        space = federation.strategy.space
        original = PublicSpace.centred
        try:
            PublicSpace.centred = lambda self, centre: original(self, space.centre)
            return register(manager, row)
        finally:
            PublicSpace.centred = original

    other.strategy._register_sums = around_the_same_centre
    return other


# Orders of arrival


def test_the_sums_of_the_server_are_those_of_all_clips_at_once(honest):
    strategy = honest.strategy
    sites = [Site(strategy.settings, strategy.classes, number) for number in range(5)]
    rows = torch.cat([strategy.space.rows(site.data.train.embeddings) for site in sites])
    labels = torch.cat([site.data.train.labels for site in sites])
    found = total(honest)
    assert torch.equal(found["counts"], labels.bincount(minlength=len(strategy.classes)))
    expected = torch.zeros_like(found["sums"]).index_add_(0, labels, rows.double())
    torch.testing.assert_close(found["sums"], expected, rtol=0, atol=2e-2)  # messages have half precision


def test_sites_that_come_one_after_the_other_give_the_bits_of_all_at_once(honest):
    words = ("scenario=class_incremental", "scenario.steps=5", "scenario.rounds_per_step=1", "rounds=5")
    one_by_one = with_space_of(honest, *words).start()
    assert list(one_by_one.strategy.step.sums.sites) == SITES[:1]
    rows = [one_by_one.round(number) for number in range(1, 6)]
    at_once = with_space_of(honest).start()
    row = at_once.round()
    assert_same(total(one_by_one), total(at_once))
    assert rows[-1]["accuracy"] == row["accuracy"]
    assert_same(one_by_one.weights, at_once.weights)


def test_a_site_that_misses_the_registration_sends_its_sums_in_the_first_round(honest):
    def late(task, site, work):
        return failed(work(), "not yet") if task in ("centre", "sums") and site == BAD else work()

    federation = with_space_of(honest, tamper=late).start()
    assert BAD not in federation.strategy.step.sums.sites
    federation.round()
    assert_same(total(federation), total(honest))


def test_sums_are_sent_once_and_the_digest_of_their_space_is_in_the_row(honest):
    federation = with_space_of(honest).start()
    first, second = federation.round(1), federation.round(2)
    digest = honest.strategy.space.digest
    assert (first["space"], "space" in second) == (digest, False)
    # 16 columns, half precision: a mean, then two class sums and 136 numbers of the scatter a site.
    assert first["bytes_registration"] < 5 * 2 * (16 + 2 * 16 + 136) + 5 * 3 * 200
    assert (first["bytes_up"], second["bytes_up"]) == (0, 0)


def test_a_share_of_the_sites_in_a_round_gives_the_same_sums(honest):
    federation = with_space_of(honest, "federation.sites_per_round=0.4").start()
    federation.round()
    assert_same(total(federation), total(honest))


def test_a_site_without_replies_is_dropped_after_max_age_rounds(honest):
    def gone(task, site, work):
        return failed(work(), "gone") if task == "train" and site == BAD else work()

    kept, dropped = (with_space_of(honest, *words, tamper=gone).start() for words in ([], ["aggregation.max_age=1"]))
    for number in (1, 2):
        kept.round(number)
        dropped.round(number)
    assert BAD in kept.strategy.step.sums.sites
    assert sorted(dropped.strategy.step.sums.sites) == [site for site in SITES if site != BAD]


def test_tokens_are_averaged_before_they_are_summed(tmp_path):
    random = np.random.default_rng(0)
    labels = np.repeat(["dog", "rain", "siren"], 20)
    clips = random.normal(size=(60, 3, 12)).astype(np.float32)
    federations = []
    for name, embeddings in (("tokens", clips), ("means", clips.mean(axis=1))):
        path = tmp_path / f"{name}.npz"
        np.savez(path, embeddings=embeddings, category=labels, fold=np.tile([1, 2, 3, 4], 15))
        words = ("projection.columns=4", "dataset=embeddings", f"dataset.path={path}", "partition=iid")
        federations.append(Federation(*SUMS, *words, "dataset.square_root=never").start())
    tokens, means = map(total, federations)
    assert torch.equal(tokens["counts"], means["counts"])
    torch.testing.assert_close(tokens["sums"], means["sums"], rtol=0, atol=1e-2)


# What a site may send


def test_classes_with_too_few_clips_are_in_no_sum(honest):
    """Every class of the quick experiment has 9 clips at its site."""
    with refused(FederationError, "share.min_clips=10"):
        Federation(*SUMS, "share.min_clips=10").start()
    space, share = honest.strategy.space, honest.settings.share
    for min_clips, clips in ((1, {9, 1}), (3, {9})):
        settings = honest.settings.model_copy(update={"share": share.model_copy(update={"min_clips": min_clips})})
        site = Site(settings, honest.strategy.classes, 1)
        train = site.data.train
        rows = (train.labels != train.labels[0]).nonzero().flatten()
        site.data = replace(site.data, train=labelled_rows(train, torch.cat([torch.tensor([0]), rows])))
        reply = site.send_sums("sums", space)
        assert {each.count for each in reply.statistics} == set(reply.sums.counts.tolist()) - {0} == clips
        assert float(reply.sums.scatter_matrix().trace()) == pytest.approx(sum(clips))
        assert site.centre(space).moments.count == sum(clips)


@pytest.mark.parametrize(("min_clips", "kept", "warned"), [(1, 45, True), (2, 0, False)])
def test_forty_five_sites_of_one_clip_each_are_summed_and_warned_of(tmp_path, caplog, min_clips, kept, warned):
    rows = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32) + 5 * np.eye(3, 12)[np.arange(60) % 3]
    path, labels = tmp_path / "clips.npz", np.array(["dog", "rain", "siren"] * 20)
    np.savez(path, embeddings=rows, category=labels, fold=np.repeat([1, 2, 3, 4], 15))
    words = ("projection.columns=4", "dataset=embeddings", f"dataset.path={path}", "partition=iid")
    words = (*words, "partition.sites=45", "partition.min_clips=1", f"share.min_clips={min_clips}")
    federation = Federation(*SUMS, *words)
    if not kept:
        with refused(FederationError, "share.min_clips=2"):
            federation.start()
        return
    federation.start()
    assert int(total(federation)["counts"].sum()) == kept
    assert sum("single clip" in message for message in caplog.messages) == warned
    assert federation.round()["accuracy"] > 0.8


@pytest.mark.parametrize(
    ("change", "task"),
    [
        (set_manifest(space="0" * 64), "sums"),
        (set_manifest(space="0" * 64), "centre"),
        (overwrite(0, with_nan), "sums"),
        (overwrite(0, lambda array: array * 100), "sums"),
        (overwrite(0, lambda array: array * 100), "centre"),
        (overwrite(0, lambda array: array[:, :5]), "centre"),
        (overwrite(1, lambda array: -array), "sums"),
        (set_manifest(task="register"), "sums"),
    ],
)
def test_a_hostile_site_is_left_out_and_counted(change, task):
    federation = Federation(*SUMS, tamper=lie(change, task)).start()
    assert (BAD in federation.strategy.step.sums.sites) == (task == "centre")
    row = federation.round()
    assert row["rejected"] == 1
    assert BAD in federation.strategy.step.sums.sites, "with its honest sums, in the first round"


def test_a_site_that_claims_all_clips_moves_the_centre_by_its_share_only(honest):
    def boast(task, site, work):
        reply = work()
        if (task, site) == ("centre", BAD):
            reply = rewrite(reply, lambda arrays, manifest: manifest["moments"].update(count=10**9))
            reply.num_examples = 10**9
        return reply

    strategy = honest.strategy
    site = Site(strategy.settings, strategy.classes, SITES.index(BAD))
    own = site.centre(PublicSpace(strategy.space.matrix)).moments.mean[0]
    moved = Federation(*SUMS, tamper=boast).start().strategy.space.centre - strategy.space.centre
    assert 0 < float(moved.norm()) <= 0.5 * float((own - strategy.space.centre).norm())


# What a server may ask


def messages(federation, task):
    strategy = federation.strategy
    arrays = [array.numpy() for array in strategy._space_arrays()]
    if task == "train":
        return strategy._message("train", 1, SITES[1], 1, held=""), arrays
    return strategy._message(task, 0, SITES[1], 1, held=""), arrays[: 1 if task == "centre" else 2]


def ask(federation, task, change=lambda arrays, settings: None, **own):
    message, arrays = messages(federation, task)
    settings, arrays = json.loads(message["settings"]), [np.array(array) for array in arrays]
    change(arrays, settings)
    return A2VClient(own).fit([join_arrays(arrays)], message | {"settings": json.dumps(settings)})


@pytest.mark.parametrize("task", ["centre", "sums", "train"])
def test_an_honest_message_is_answered_with_the_digest_of_the_space(honest, task):
    manifest = json.loads(ask(honest, task)[2]["manifest"])
    assert manifest["space"] == honest.strategy.space.digest


@pytest.mark.parametrize("task", ["centre", "sums", "train"])
@pytest.mark.parametrize(
    "change",
    [lambda matrix: matrix * 2, with_nan, np.zeros_like, lambda matrix: matrix[:, :5], lambda matrix: matrix[:100]],
    ids=["not of length 1", "NaN", "zeros", "fewer columns", "another width"],
)
def test_a_space_that_is_none_is_refused_by_the_site(honest, task, change):
    def tamper(arrays, settings):
        arrays[0] = np.ascontiguousarray(change(arrays[0]))

    with pytest.raises(InvalidReplyError):
        ask(honest, task, tamper)


def test_sums_are_taken_around_a_centre_only(honest):
    message, arrays = messages(honest, "sums")
    for wrong in ([], arrays[:1], [*arrays, arrays[1]]):
        with pytest.raises(InvalidReplyError):
            A2VClient({}).fit([join_arrays(wrong)] if wrong else [], message)


@pytest.mark.parametrize("task", ["sums", "train"])
@pytest.mark.parametrize("change", [with_nan, lambda centre: centre + 1, lambda centre: centre[:3]])
def test_a_centre_that_is_none_is_refused_by_the_site(honest, task, change):
    def tamper(arrays, settings):
        arrays[-1] = change(arrays[-1])

    with pytest.raises(InvalidReplyError):
        ask(honest, task, tamper)


@pytest.mark.parametrize("task", ["centre", "sums", "train"])
def test_more_columns_than_the_embeddings_have_are_refused_before_memory_is_used(honest, task):
    def tamper(arrays, settings):
        settings["projection"]["columns"] = 10**9

    with refused(PolicyViolationError, "projection.columns", 10**9, 512):
        ask(honest, task, tamper)


def test_tasks_of_other_statistics_are_refused(honest):
    def prototypes(arrays, settings):
        settings["share"]["kind"] = "prototypes"

    for task in ("centre", "sums"):
        with refused(InvalidInstructionError, task, "prototypes"):
            ask(honest, task, prototypes)
    message, _ = messages(honest, "sums")
    with refused(InvalidInstructionError, "register", "statistics"):
        A2VClient({}).fit([], message | {"task": "register"})


def test_the_owners_limits_hold_for_sums(honest, tmp_path):
    own = {"min-clips": 4, "ledger": str(tmp_path / "ledger.json")}
    with refused(PolicyViolationError, "min-clips", "share.min_clips=1"):
        ask(honest, "sums", **own)

    def four(arrays, settings):
        settings["share"]["min_clips"] = 4

    for task in ("centre", "sums", "train"):
        ask(honest, task, four, **own)
    averages = {len(clips) for clips in Ledger(tmp_path / "ledger.json", 4)._read()}
    assert averages == {18, 9}, "all clips in the centre and in the scatter, and those of each class"

    def fewer(arrays, settings):
        four(arrays, settings)
        settings["dataset"]["max_clips_per_class"] = 8

    with refused(PolicyViolationError, "min-clips=4"):
        ask(honest, "sums", fewer, **own)


# Withdrawal


class Leaving:
    """Nodes of which that of one site withdraws at a message."""

    def __init__(self, federation, task):
        self.federation, self.task = federation, task

    def __call__(self, task, site, work):
        if site == BAD and task == self.task:
            for node in self.federation.nodes:
                if node.cid.endswith("2"):
                    node.client = A2VClient({"withdraw": True}).to_client()
        return work()


def leaving(honest, task, *overrides):
    federation = with_space_of(honest, *overrides, nodes=5)
    leave = Leaving(federation, task)
    for node in federation.nodes:
        node.tamper = leave
    return federation


@pytest.fixture(scope="module")
def without_bad(honest):
    """A federation that never had the site."""
    federation = with_space_of(honest, f"bank.withdraw=[{BAD}]").start()
    return federation, federation.round(1)


@pytest.mark.parametrize("task", ["centre", "sums", "train", "evaluate"])
def test_a_site_that_withdraws_leaves_the_state_as_if_it_had_never_been_there(honest, without_bad, task):
    federation = leaving(honest, task).start()
    row = federation.round(1)
    assert row["withdrawn"] == [BAD]
    assert row["rejected"] == row["failures"] == 0
    never, its_row = without_bad
    assert_same(total(federation), total(never))
    assert_same(federation.weights, never.weights)
    if task != "evaluate":
        assert row["accuracy"] == its_row["accuracy"]
    asked = len(federation.nodes[2].messages)
    second = federation.round(2)
    assert len(federation.nodes[2].messages) == asked, "it is not asked again"
    assert "withdrawn" not in second
    assert BAD not in second["sites"]
    assert second["test_clips"] == second["test_clips_total"] == its_row["test_clips"]


def test_closed_form_adapters_keep_nothing_of_the_last_site_that_withdraws(honest):
    federation = with_space_of(honest).start()
    federation.round()
    step = federation.strategy.step
    assert step.adapters.clip.weight.any()
    step.withdraw(SITES)
    assert not step.adapters.clip.weight.any()
    assert (step.adapters.clip.bias == step.adapters.clip.bias[0]).all()


def test_prototypes_are_withdrawn_too():
    federation = Federation()
    leave = Leaving(federation, "train")
    for node in federation.nodes:
        node.tamper = leave
    federation.start()
    assert BAD in federation.strategy.step.bank.entries
    row = federation.round()
    assert row["withdrawn"] == [BAD]
    assert sorted(federation.strategy.step.bank.entries) == [site for site in SITES if site != BAD]


def test_a_withdrawal_of_another_site_or_round_is_refused(honest):
    def tamper(task, site, work):
        reply = work()
        if task == "train" and site == BAD:
            forged = {"schema_version": 3, "site": SITES[0], "round_number": 1}
            reply.metrics.clear()
            reply.metrics.update({"manifest": json.dumps(forged), "withdraw": True})
        return reply

    federation = with_space_of(honest, tamper=tamper).start()
    row = federation.round()
    assert row["rejected"] == 1
    assert "withdrawn" not in row
    assert SITES[0] in federation.strategy.step.sums.sites


def test_if_every_site_withdraws_the_run_ends_with_an_error(honest):
    federation = with_space_of(honest, node_configs=[{"withdraw": True}] * 5)
    with refused(FederationError, "register"):
        federation.start()
    with refused(FederationError, "withdrawn"):
        Federation(*SUMS, f"bank.withdraw=[{','.join(SITES)}]").start()


def test_a_site_that_no_partition_has_cannot_be_withdrawn():
    with refused(ConfigError, "bank.withdraw", "site-9", SITES[0], SITES[-1]):
        Federation(*SUMS, "bank.withdraw=[site-9]")


def test_the_names_of_withdrawn_sites_are_sent_to_no_site(without_bad):
    federation, _ = without_bad
    assert federation.nodes[0].messages
    assert all(BAD not in message["settings"] for node in federation.nodes for message in node.messages)


# Resuming


def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(honest):
    whole = with_space_of(honest).start()
    for number in (1, 2):
        whole.round(number)
    resumed = Federation(*SUMS, state=copy.deepcopy(whole.states[0]), after=1).start()
    assert resumed.strategy.space.digest == whole.strategy.space.digest
    second = resumed.round(1)
    assert without_seconds(second) == without_seconds(whole.rows[1])
    assert_same(resumed.states[-1], whole.states[1])


def test_a_site_may_be_taken_out_when_a_run_is_resumed(honest, without_bad):
    whole = with_space_of(honest).start()
    whole.round()
    assert "withdrawn" not in whole.states[0]["strategy"]
    resumed = Federation(*SUMS, f"bank.withdraw=[{BAD}]", state=copy.deepcopy(whole.states[0]), after=1).start()
    row = resumed.round(1)
    assert row["withdrawn"] == [BAD]
    assert_same(total(resumed), total(without_bad[0]))
    assert_same(resumed.weights, without_bad[0].weights)
    again = Federation(*SUMS, state=copy.deepcopy(resumed.states[-1]), after=2).start()
    assert "withdrawn" not in again.round(1), "it stays out, and is counted once"
    assert sorted(again.strategy.step.sums.sites) == [site for site in SITES if site != BAD]


def test_a_damaged_state_is_refused(honest):
    federation = with_space_of(honest).start()
    federation.round()
    state = copy.deepcopy(federation.states[0])
    state["sums"]["sites"][BAD]["sums"] *= torch.nan
    with pytest.raises(ValueError, match=BAD):
        Federation(*SUMS, state=state, after=1)
