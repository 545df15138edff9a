"""Sites' replies: only valid ones are used, and the row has the reasons of the others."""

import numpy as np
import pytest
import torch

from fed_a2v.federation.server.reply_validator import SECOND_REPLY
from tests.federation.helpers import (
    BAD,
    PLAIN,
    Federation,
    assert_same,
    failed,
    lie,
    overwrite,
    rewrite,
    set_manifest,
    trained_weights,
    with_nan,
)


def first_class(**entries):
    def change(arrays, manifest):
        manifest["classes"][0].update(entries)

    return change


def with_output(arrays, manifest):
    arrays.append(np.zeros((1, 768), np.float16))
    manifest["classes"][0]["clip"] = len(arrays) - 1


BAD_REPLIES = {
    "a weight that is not a number": (overwrite(0, with_nan), ("weight 0", "nan")),
    "weights beyond all measure": (overwrite(3, lambda a: np.full(a.shape, 1e30)), ("weight 3", "1e+30", "1e+06")),
    "a weight of the wrong shape": (overwrite(3, lambda a: a[:-1]), ("weight 3", (511,), (512,))),
    "a weight too few": (lambda arrays, manifest: arrays.pop(0), ("array 11", 11)),
    "an extra array": (lambda arrays, manifest: arrays.append(np.zeros(3, np.float32)), (13, 12)),
    "integers for weights": (overwrite(0, lambda a: a.astype(np.int64)), ("weight 0", "'int64'")),
    "an output that was not requested": (with_output, ("clip",)),
    "the name of no site": (set_manifest(site="site-999"), ("'site-999'",)),
    "the name of another node's site": (set_manifest(site="site-001"), ("'site-001'",)),
    "another round": (set_manifest(round_number=78), ("round", 78)),
    "another task": (set_manifest(task="register"), ("'register'", "'train'")),
    "another schema version": (set_manifest(schema_version=99), ("schema_version", 99)),
    "square roots where the others have none": (
        lambda arrays, manifest: manifest.update(square_root=not manifest["square_root"]),
        ("square_root", "False"),
    ),
    "a class that nobody knows": (first_class(name="banjo"), ("'banjo'",)),
    "no clips of a class": (first_class(count=0), ("classes.0.count",)),
    "more clips of a class than clips": (first_class(count=10**6), ("num_examples",)),
    "losses that are no numbers": (set_manifest(losses={"loss": "NaN"}), ("losses.loss",)),
}


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


@pytest.mark.parametrize("kind", BAD_REPLIES)
def test_a_bad_reply_never_enters_the_average_and_its_reason_is_recorded(kind, average_without_the_bad):
    change, named = BAD_REPLIES[kind]
    federation = Federation(PLAIN, tamper=lie(change)).start()
    row = federation.round()
    assert_same(federation.weights, average_without_the_bad)
    assert (row["replies"], row["rejected"], row["failures"]) == (4, 1, 0)
    assert len(row["rejections"]) == 1
    assert pytest.approx(30) == row["test_clips"], "the site is still evaluated"
    assert [name for name in named if str(name) not in row["rejections"][0]] == [], row["rejections"]
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
    (reason,) = federation.round()["rejections"]
    assert "message part 0" in reason
    assert "npy" in reason
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


def test_the_row_has_the_status_of_every_site():
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
def test_the_reason_of_a_failure_is_the_sites_exception_without_flowers_text(told, kept):
    def tamper(task, site, work):
        if site == BAD:
            raise ValueError(
                f"Message contains an Error (reason: {told}). It originated during client-side execution of a message."
            )
        return work()

    row = Federation(tamper=tamper).start().round()
    assert row["failure_reasons"] == [kept] * 3, "in the registration, the training and the evaluation"


def test_a_reply_with_an_error_status_counts_as_a_failure(average_without_the_bad):
    def tamper(task, site, work):
        return failed(work(), "no such device") if (task, site) == ("train", BAD) else work()

    federation = Federation(PLAIN, tamper=tamper).start()
    row = federation.round()
    assert_same(federation.weights, average_without_the_bad)
    assert row["failures"] == 1
    assert row["failure_reasons"] == ["no such device"]


def test_a_reply_for_a_site_that_the_node_was_not_asked_for_does_not_displace_the_sites_own():
    # Node 2 represents site-002, and claims to be site-001, which node 1 represents.
    federation = Federation(PLAIN, tamper=lie(set_manifest(site="site-001"))).start()
    row = federation.round()
    assert row["replies"] == 4
    assert "site-001" in federation.strategy.step.bank.entries
    assert_same(federation.weights, honest_average())


@pytest.mark.parametrize("lie_first", [False, True])
def test_of_two_replies_for_a_site_only_that_of_its_own_node_counts(lie_first):
    # One node represents all sites; site-002 replies again as site-001.
    lies = []

    def tamper(task, site, work):
        reply = work()
        if (task, site) == ("train", BAD):
            reply = rewrite(reply, set_manifest(site="site-001"))
            lies.append(reply)
        return reply

    # Prototypes tell the sites apart; the server learns nothing from them here, so that the average stays.
    with_prototypes = ("finetune.enabled=true", "finetune.learning_rate=1e-50")
    federation = Federation(*with_prototypes, nodes=1, tamper=tamper).start()
    row = federation.round(order=lambda results: sorted(results, key=lambda r: (r[1] in lies) != lie_first))
    assert (row["replies"], row["rejected"]) == (4, 1)
    assert row["rejections"] == [SECOND_REPLY]
    assert_same(federation.weights, honest_average(with_prototypes))


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


def test_text_from_a_site_cannot_break_a_log_line(caplog):
    Federation(tamper=lie(set_manifest(site="x\nERROR all is lost"))).start().round()
    assert all(len(record.getMessage().splitlines()) == 1 for record in caplog.records if record.name == "fed_a2v")


def test_the_bytes_of_a_reply_are_freed_after_unpacking():
    """All sites' weights, unpacked at the same time, would be most of the server's memory."""
    federation = Federation(PLAIN).start()
    kept = []
    federation.train(1, order=lambda results: kept.extend(results) or results)
    assert kept
    assert all(result.parameters.tensors == [] for _, result in kept)


def test_scores_that_are_bad_are_left_out_of_the_sums_and_counted(honest_row):
    def too_good(arrays, manifest):
        entry = next(iter(manifest["models"]["after"].values()))
        entry["right_at_1"] = 10**6

    row = Federation(tamper=lie(too_good, task="evaluate")).start().round()
    assert row["rejected"] == 1
    assert row["test_clips"] == 24
    assert row["accuracy"] <= 1
    others = [name for name in honest_row["per_class"] if row["per_class"][name] is not None]
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
    assert "'site-001'" in row["rejections"][0]
