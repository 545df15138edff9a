"""Replies with class sums, and with the mean in the public space: valid ones arrive, all others are refused."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_a2v.core.class_sums import ClassSums
from fed_a2v.core.statistics import ClassStatistics
from fed_a2v.federation import protocol as wire
from fed_a2v.federation.protocol import InvalidReplyError
from tests.federation.protocol.helpers import (
    CLASSES,
    COLUMNS,
    SPACE,
    decode,
    make_centre_reply,
    make_expected,
    make_reply,
    make_sums_expected,
    make_sums_reply,
    sent,
    unit_rows,
)
from tests.federation.protocol.hostile import assert_presentable, change, drop, mutate
from tests.refusals import refused


@given(
    names=st.lists(st.sampled_from(CLASSES), unique=True),
    clips=st.integers(1, 9),
    seed=st.integers(0, 99),
    dtype=st.sampled_from(["float16", "float32"]),
)
@settings(max_examples=40)
def test_sums_of_any_classes_arrive_at_their_classes(names, clips, seed, dtype):
    reply = make_sums_reply(names, clips, seed)
    got = decode(*sent(reply, dtype), make_sums_expected())
    assert got.space == SPACE
    assert [(each.name, each.count) for each in got.statistics] == [
        (each.name, each.count) for each in reply.statistics
    ]
    assert (got.sums is None) == (not names)
    if names:
        assert torch.equal(got.sums.counts, reply.sums.counts)
        tolerance = 1e-6 if dtype == "float32" else 1e-2
        torch.testing.assert_close(got.sums.sums.double(), reply.sums.sums, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(got.sums.scatter.double(), reply.sums.scatter, rtol=tolerance, atol=tolerance)


def test_the_rows_have_their_meaning_by_the_order_of_the_classes_in_the_reply():
    """A site whose manifest has another order than the labels, with its rows in that order, is understood."""
    reply = make_sums_reply(("dog", "siren", "rain"))
    arrays, manifest, examples = sent(reply)
    order = [2, 0, 1]
    manifest["classes"] = [manifest["classes"][place] for place in order]
    arrays[manifest["sums"]["classes"]] = arrays[manifest["sums"]["classes"]][order]
    got = decode(arrays, manifest, examples, make_sums_expected())
    torch.testing.assert_close(got.sums.sums.double(), reply.sums.sums, rtol=0, atol=1e-6)
    for name in CLASSES[3:]:
        assert not got.sums.sums[CLASSES.index(name)].any()


def test_a_site_cannot_encode_sums_whose_classes_are_in_another_order():
    reply = make_sums_reply()
    uneven = [ClassStatistics("siren", 1), ClassStatistics("rain", 7)]
    sums = ClassSums.of(unit_rows(8), torch.tensor([1] * 7 + [2]), len(CLASSES))
    for statistics in (uneven, uneven[:1], []):
        with pytest.raises(ValueError, match="order"):
            wire.encode_reply(replace(reply, sums=sums, statistics=statistics), "float32")


def test_the_mean_in_the_public_space_survives_the_way():
    reply = make_centre_reply()
    got = decode(*sent(reply), make_sums_expected("centre"))
    assert (got.moments.count, got.statistics, got.sums) == (5, [], None)
    torch.testing.assert_close(got.moments.mean, reply.moments.mean)


def test_a_reply_to_training_has_sums_unless_the_server_has_them():
    reply = make_sums_reply(task="train")
    assert torch.equal(decode(*sent(reply), make_sums_expected("train")).sums.counts, reply.sums.counts)
    held = {"held_fingerprint": reply.fingerprint, "held_classes": ("siren", "rain")}
    again = sent(replace(reply, sums=None))
    assert decode(*again, make_sums_expected("train", **held)).sums is None
    with refused(InvalidReplyError, "class sums"):
        decode(*again, make_sums_expected("train"))
    with refused(InvalidReplyError, "class sums"):
        decode(*sent(reply), make_sums_expected("train", **held))
    with refused(InvalidReplyError, "2 classes", "1 are stored"):
        decode(*again, make_sums_expected("train", **{**held, "held_classes": ("rain",)}))


def swap(index, function):
    def edit(arrays, manifest):
        arrays[index] = function(arrays[index])
        return arrays, manifest

    return edit


def poke(index, value):
    def function(array):
        array = array.copy()
        array.flat[0] = value
        return array

    return swap(index, function)


def both(*edits):
    def edit(arrays, manifest):
        for each in edits:
            arrays, manifest = each(arrays, manifest)
        return arrays, manifest

    return edit


RAIN = ("classes", 0)
# Arrays of make_sums_reply(): 0 class sums of rain and siren, 1 scatter.
HOSTILE = {
    "another space": (change("space", to="f" * 64), ("'fff", SPACE)),
    "no space": (change("space", to=None), (None, SPACE)),
    "the space is not named": (drop("space"), ("space",)),
    "a space of text": (change("space", to="a\nb"), ("space",)),
    "another task": (change("task", to="centre"), ("'centre'", "'sums'")),
    "the task of prototypes": (change("task", to="register"), ("'register'", "'sums'")),
    "no sums": (lambda a, m: ([], {**m, "sums": None}), ("class sums",)),
    "sums of no class": (change("classes", to=[]), ("class sums",)),
    "a class too few": (lambda a, m: (a, {**m, "classes": m["classes"][:1]}), ("class sums", (2, 6), (1, 6))),
    "a class too many": (
        lambda a, m: (a, {**m, "classes": [*m["classes"], {**m["classes"][0], "name": "dog", "count": 1}]}),
        ("class sums", (2, 6), (3, 6)),
    ),
    "an unknown class": (change(*RAIN, "name", to="../../x"), ("'../../x'",)),
    "a class twice": (change(*RAIN, "name", to="siren"), ("'siren'",)),
    "no clips": (change(*RAIN, "count", to=0), ("classes.0.count",)),
    "fewer clips than the sum is long": (change(*RAIN, "count", to=1), ("'rain'",)),
    "more clips than the site has": (change(*RAIN, "count", to=10**6), (10**6 + 4, 10)),
    "more clips than there can be": (change(*RAIN, "count", to=10**10), ("'rain'", 10**10)),
    "a mean beside the sums": (
        lambda a, m: (
            [*a, np.zeros((1, COLUMNS), np.float32)],
            {**m, "moments": {"mean": 2, "variance": 0, "count": 3}},
        ),
        ("moments", "'sums'"),
    ),
    "prototypes beside the sums": (
        lambda a, m: (
            [*a, np.zeros((1, 1, COLUMNS), np.float32), np.array([4])],
            change(*RAIN, "prototypes", to={"means": 2, "counts": 3, "variances": None})(a, m)[1],
        ),
        ("'rain'", "prototypes"),
    ),
    "outputs beside the sums": (
        lambda a, m: ([*a, np.zeros((1, 6), np.float32)], change(*RAIN, "clip", to=2)(a, m)[1]),
        ("'rain'", "clip"),
    ),
    "weights beside the sums": (change("weights", to=1), ("weights", 1, 0)),
    "losses beside the sums": (change("losses", to={"mse": 1.0}), ("'mse'",)),
    "one array for both": (change("sums", "scatter", to=0), ("array 0", 2)),
    "an array that is not there": (change("sums", "scatter", to=9), ("array 9",)),
    "a scatter that is not used": (lambda a, m: ([*a, a[1]], m), (3, 2)),
    "sums of another width": (swap(0, lambda a: a[:, :5]), ("class sums", (2, 5))),
    "sums as a row": (swap(0, np.ravel), ("class sums", (12,))),
    "sums of integers": (swap(0, lambda a: a.astype(np.int64)), ("class sums", "'int64'")),
    "a whole scatter matrix": (swap(1, lambda a: np.eye(COLUMNS, dtype=np.float32)), ("scatter", (6, 6), (21,))),
    "NaN in a sum": (poke(0, math.nan), ("class sums", "nan")),
    "infinity in the scatter": (poke(1, math.inf), ("scatter", "inf")),
    "a sum that is too long": (poke(0, 40.0), ("'rain'",)),
    "a scatter that is too large": (swap(1, lambda a: a * 2), ("trace", 8)),
    "a scatter with a negative eigenvalue": (poke(1, -1.0), ("scatter",)),
    "an off-diagonal entry that no rows have": (swap(1, lambda a: a + 5 * (np.arange(21) == 1)), ("scatter",)),
    "no scatter around the means": (swap(1, np.zeros_like), ("scatter",)),
    "sums far from the scatter": (
        swap(0, lambda a: np.float32(3.9) * np.eye(2, COLUMNS, dtype=np.float32)),
        ("scatter",),
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_sums_are_refused_with_their_reason(case):
    edit, named = HOSTILE[case]
    arrays, manifest, examples = sent(make_sums_reply())
    arrays, manifest = edit(list(arrays), copy.deepcopy(manifest))
    with refused(InvalidReplyError, *named) as caught:
        decode(arrays, manifest, examples, make_sums_expected())
    assert_presentable(caught.value)


HOSTILE_CENTRE = {
    "a mean longer than its rows": (poke(0, 3.0), ("length",)),
    "a mean of embeddings": (swap(0, lambda a: np.zeros((2, 5), np.float32)), ("mean", (2, 5), (1, 6))),
    "NaN in the mean": (poke(0, math.nan), ("mean", "nan")),
    "a mean over more clips than there are": (change("moments", "count", to=6), ("moments", 6, 5)),
    "a class": (
        change("classes", to=[{"name": "dog", "count": 1, "prototypes": None, "clip": None, "t5": None}]),
        ("1 classes", "'centre'"),
    ),
    "class sums": (change("sums", to={"classes": 0, "scatter": 0}), ("array 0",)),
    "another space": (change("space", to="0"), ("'0'", SPACE)),
}


@pytest.mark.parametrize("case", HOSTILE_CENTRE)
def test_a_hostile_mean_is_refused_with_its_reason(case):
    edit, named = HOSTILE_CENTRE[case]
    arrays, manifest, examples = sent(make_centre_reply())
    arrays, manifest = edit(list(arrays), copy.deepcopy(manifest))
    with refused(InvalidReplyError, *named) as caught:
        decode(arrays, manifest, examples, make_sums_expected("centre"))
    assert_presentable(caught.value)


def test_the_limits_of_the_run_hold_for_sums():
    with refused(InvalidReplyError, "'rain'", 4, "share.min_clips", 5):
        decode(*sent(make_sums_reply()), make_sums_expected(min_clips=5))
    with refused(InvalidReplyError, "moments", "share.min_clips", 6):
        decode(*sent(make_centre_reply()), make_sums_expected("centre", min_clips=6))


def test_noise_that_was_announced_raises_the_limits():
    arrays, manifest, examples = sent(make_sums_reply())
    noise = np.random.default_rng(0)
    noisy = [array + noise.normal(scale=3.0, size=array.shape).astype(np.float32) for array in arrays]
    with pytest.raises(InvalidReplyError):
        decode(noisy, manifest, examples, make_sums_expected())
    assert decode(noisy, manifest, examples, make_sums_expected(sums_noise=(3.0, 3.0))).sums is not None
    with pytest.raises(InvalidReplyError):
        decode([noisy[0] + 100, noisy[1]], manifest, examples, make_sums_expected(sums_noise=(3.0, 3.0)))


def test_a_run_with_prototypes_takes_no_sums():
    arrays, manifest, examples = sent(make_reply(task="register"))
    manifest = manifest | {"sums": {"classes": len(arrays), "scatter": len(arrays) + 1}}
    arrays = [*arrays, np.zeros((2, COLUMNS), np.float32), np.zeros(21, np.float32)]
    with refused(InvalidReplyError, "class sums"):
        decode(arrays, manifest, examples, make_expected("register"))
    with refused(InvalidReplyError, SPACE, None):
        decode(arrays, manifest | {"space": SPACE}, examples, make_expected("register"))


@given(st.data())
@settings(max_examples=150)
def test_no_mutation_of_a_reply_with_sums_raises_anything_but_a_refusal(data):
    task, make = data.draw(st.sampled_from([("sums", make_sums_reply), ("centre", make_centre_reply)]))
    arrays, manifest, examples = sent(make())
    arrays, manifest = mutate(data, list(arrays), copy.deepcopy(manifest))
    try:
        got = decode(arrays, manifest, examples, make_sums_expected(task))
    except InvalidReplyError as error:
        assert_presentable(error)
        return
    if got.sums is not None:
        assert all(tensor.isfinite().all() for tensor in vars(got.sums).values())
        assert (got.sums.sums.norm(dim=1) <= got.sums.counts * 1.01).all()
