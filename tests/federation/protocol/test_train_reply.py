"""Sites' replies: valid ones are unchanged by encoding, all others are refused."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.common import ndarrays_to_parameters
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_a2v.core.prototype_bank import PrototypeBank
from fed_a2v.core.statistics import AudioPrototypes, ClassStatistics
from fed_a2v.federation import protocol as wire
from fed_a2v.federation.protocol import InvalidReplyError
from fed_a2v.federation.protocol.train_reply import MAX_MAGNITUDE
from tests.federation.protocol.helpers import CLASSES, decode, make_expected, make_moments_reply, make_reply, sent
from tests.federation.protocol.hostile import assert_presentable, change, drop, manifest_fault, mutate, text
from tests.refusals import refused


def assert_same(got, wanted, tolerance):
    assert (got.site, got.round_number, got.task) == (wanted.site, wanted.round_number, wanted.task)
    assert (got.num_examples, got.fingerprint) == (wanted.num_examples, wanted.fingerprint)
    assert (got.square_root, got.losses, got.seconds) == (wanted.square_root, wanted.losses, wanted.seconds)
    pairs = list(zip(got.weights, wanted.weights, strict=True))
    for one, other in zip(got.statistics, wanted.statistics, strict=True):
        assert (one.name, one.count) == (other.name, other.count)
        pairs += [(one.clip, other.clip), (one.t5, other.t5)]
        assert (one.audio is None) == (other.audio is None)
        if one.audio is not None:
            assert torch.equal(one.audio.counts, other.audio.counts)
            pairs += [(one.audio.means, other.audio.means), (one.audio.variances, other.audio.variances)]
    for one, other in pairs:
        if other is None:
            assert one is None
        else:
            assert one.dtype in (torch.float16, torch.float32)
            torch.testing.assert_close(one.float(), other, rtol=tolerance, atol=tolerance)


@given(
    seed=st.integers(0, 2**32 - 1),
    task=st.sampled_from(["train", "register"]),
    names=st.lists(st.sampled_from(CLASSES), unique=True),
    prototypes=st.integers(1, 5),
    held=st.booleans(),
    variance=st.booleans(),
    t5=st.booleans(),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_a_valid_reply_survives_the_whole_way_through_flowers_bytes(
    seed, task, names, prototypes, held, variance, t5, dtype
):
    reply = make_reply(seed, task, names, prototypes=prototypes, held=held, variance=variance, t5=t5)
    arrays, metrics = wire.encode_reply(reply, dtype)
    assert all(type(value) in (bool, int, float, str, bytes) for value in metrics.values())
    assert all(a.flags.c_contiguous and a.dtype.isnative and a.flags.owndata is not None for a in arrays)
    received = wire.read_arrays(ndarrays_to_parameters([wire.join_arrays(arrays)]), make_expected(task).max_arrays)
    expected = make_expected(
        task, t5_shape=(3, 7) if t5 else None, held_fingerprint="abc123" if held else "", held_classes=CLASSES
    )
    got = wire.decode_reply(received, metrics, reply.num_examples, expected)
    assert_same(got, reply, 0 if dtype == "float32" else 2e-3)


def test_zero_variances_are_not_sent():
    with_variance, _, _ = sent(make_reply(variance=True))
    without, manifest, examples = sent(make_reply(variance=False))
    assert len(without) == len(with_variance) - 2
    got = decode(without, manifest, examples)
    assert all(p.audio.variances.shape == (2, 2, 5) and not p.audio.variances.any() for p in got.statistics)


def test_one_variance_for_all_groups_of_a_class_is_sent_once():
    reply = make_reply()
    for prompt in reply.statistics:
        prompt.audio.variances[:] = prompt.audio.variances[:1]
    arrays, manifest, examples = sent(reply)
    assert sum(array.nbytes for array in sent(make_reply())[0]) - sum(array.nbytes for array in arrays) > 0
    for said in ("class", "groups"):
        got = decode(arrays, manifest, examples, make_expected(variances=said))
        for prompt, meant in zip(got.statistics, reply.statistics, strict=True):
            torch.testing.assert_close(prompt.audio.variances, meant.audio.variances, atol=2e-3, rtol=2e-3)
    with refused(InvalidReplyError, "variances of 'dog'"):
        decode(*sent(), make_expected(variances="class"))


def test_an_array_that_half_precision_cannot_hold_stays_in_single_precision():
    reply = make_reply()
    reply.weights[0][0, 0] = 70000.0
    reply.statistics[0].audio.variances[0, 0, 0] = 1e-12
    arrays, manifest, examples = sent(reply, "float16")
    entry = manifest["classes"][0]["prototypes"]
    assert [a.dtype.name for a in arrays[:3]] == ["float32", "float16", "float16"]
    assert arrays[entry["variances"]].dtype == np.float32
    assert arrays[entry["means"]].dtype == np.float16
    got = decode(arrays, manifest, examples, make_expected(max_weight_rms=1e5))
    assert got.weights[0][0, 0] == 70000.0
    assert got.statistics[0].audio.variances[0, 0, 0] > 0


def test_encoded_arrays_share_no_memory_with_the_models_and_decoded_weights_alone_with_the_bytes():
    reply = make_reply()
    arrays, manifest, examples = sent(reply, "float32")
    arrays[0][:] = 0
    assert reply.weights[0].abs().sum() > 0
    got = decode(arrays, manifest, examples)
    for array in arrays:
        array[...] = 99
    assert all((weight == 99).all() for weight in got.weights), "a copy of what waits in memory anyway"
    audio = got.statistics[0].audio
    assert not any(
        (tensor == 99).any() for tensor in (audio.means, audio.counts, audio.variances, got.statistics[0].clip)
    )


def test_arrays_keep_the_precision_in_which_they_came():
    got = decode(*sent(dtype="float16"))
    audio = got.statistics[0].audio
    assert {tensor.dtype for tensor in (*got.weights, audio.means, audio.variances)} == {torch.float16}
    arrays, manifest, examples = sent()
    arrays[0], arrays[3] = arrays[0].astype(np.float64), arrays[3].astype(np.float64)
    got = decode(arrays, manifest, examples)
    assert {got.weights[0].dtype, got.statistics[0].audio.means.dtype} == {torch.float32}


def test_a_site_cannot_encode_a_loss_that_is_not_finite():
    with refused(ValueError, "losses.mse", "nan"):
        wire.encode_reply(replace(make_reply(), losses={"mse": math.nan}), "float16")


def swap(index, function):
    """A hostile edit of one array."""

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


# Arrays of make_reply(): 0-2 weights; dog: 3 means, 4 counts, 5 variances, 6 clip, 7 t5; rain: 8 to 12.
DOG = ("classes", 0)
HOSTILE = {
    "manifest is not JSON": (text(lambda t: t[:-5]), ("manifest", "JSON")),
    "manifest is empty": (text(lambda t: ""), ("manifest", "JSON")),
    "manifest is a list": (text(lambda t: "[1]"), ("manifest", "JSON")),
    "manifest is huge": (text(lambda t: t + " " * (1 << 20)), ("manifest", 18944)),
    "manifest is nested deep": (text(lambda t: "[" * 10_000), ("manifest",)),
    "manifest has a number of many digits": (text(lambda t: "9" * 5000), ("manifest", "JSON")),
    "manifest holds NaN": (change("seconds", to=math.nan), ("manifest", "NaN")),
    "manifest holds infinity": (change("losses", "mse", to=-math.inf), ("manifest", "-Infinity")),
    "manifest overflows to infinity": (text(lambda t: t.replace("1.25", "1e999")), ("seconds",), "finite_number"),
    "a key comes twice": (text(lambda t: t.replace("{", '{"site": "site-0", ', 1)), ("'site'",)),
    "a nested key comes twice": (text(lambda t: t.replace('"mse"', '"mse": 1, "mse"')), ("'mse'",)),
    "no version": (drop("schema_version"), ("schema_version", None)),
    "another version": (change("schema_version", to=78), ("schema_version", 78)),
    "version true": (change("schema_version", to=True), ("schema_version", True)),
    "a key is missing": (drop("classes", 0, "count"), ("classes.0.count",), "missing"),
    "an unknown key": (change("code", to="x"), ("code",), "extra_forbidden"),
    "an unknown key that is long": (change("x" * 15_000, to=1), ("'xxx", "xxx'"), "extra_forbidden"),
    "an unknown key that breaks lines": (change("a\nERROR b", to=1), (r"'a\nERROR b'",), "extra_forbidden"),
    "another site": (change("site", to="../../site"), ("'../../site'", "'site-0'")),
    "a long site": (change("site", to="s" * 15_000), ("'sss", "'site-0'")),
    "another round": (change("round_number", to=2), ("round 2", "round 3")),
    "round true": (change("round_number", to=True), ("round_number",), "int_type"),
    "round 3.0": (change("round_number", to=3.0), ("round_number",), "int_type"),
    "another task": (change("task", to="register"), ("'register'", "'train'")),
    "an unknown task": (change("task", to="exec"), ("task",), "literal_error"),
    "square roots where others have none": (change("square_root", to=False), ("square_root", False)),
    "square_root 1": (change("square_root", to=1), ("square_root",), "bool_type"),
    "fingerprint with spaces": (change("fingerprint", to="a b"), ("fingerprint",), "string_pattern_mismatch"),
    "fingerprint too long": (change("fingerprint", to="a" * 129), ("fingerprint",), "string_pattern_mismatch"),
    "loss is a string": (change("losses", "mse", to="0"), ("losses.mse",), "float_type"),
    "loss is huge": (change("losses", "mse", to=1e300), ("losses.mse",), "less_than_equal"),
    "a loss below zero": (change("losses", "mse", to=-1.0), ("losses.mse",), "greater_than_equal"),
    "a loss that nobody knows": (change("losses", "x", to=1.0), ("'x'", "'contrastive'")),
    "a loss too few": (drop("losses", "mse"), ("'contrastive'", "'mse'")),
    "loss has a long name": (change("losses", "m" * 65, to=1.0), ("losses.'mmm",), "string_pattern_mismatch"),
    "time runs backwards": (change("seconds", to=-1), ("seconds",), "greater_than_equal"),
    "test clips of an unknown class": (change("test_clips", "../../x", to=1), ("'../../x'",)),
    "no test clips of a class": (change("test_clips", "dog", to=0), ("test_clips.dog",), "greater_than_equal"),
    "test clips true": (change("test_clips", "dog", to=True), ("test_clips.dog",), "int_type"),
    "test clips 3.0": (change("test_clips", "dog", to=3.0), ("test_clips.dog",), "int_type"),
    "too many test clips": (change("test_clips", "dog", to=10**9), ("test clips", 10**9 + 1, 10**9)),
    "test clips untold": (drop("test_clips"), ("test_clips",), "missing"),
    "classes are an object": (change("classes", to={}), ("classes",), "list_type"),
    "a class is a number": (change("classes", 0, to=7), ("classes.0",), "model_type"),
    "unknown class": (change(*DOG, "name", to="../../x"), ("'../../x'",)),
    "long unknown class": (change(*DOG, "name", to="n" * 15_000), ("'nnn",)),
    "class name is a number": (change(*DOG, "name", to=1), ("classes.0.name",), "string_type"),
    "class name is half a surrogate": (change(*DOG, "name", to="\ud800"), (r"'\ud800'",)),
    "class twice": (change(*DOG, "name", to="rain"), ("'rain'",)),
    "no clips": (change(*DOG, "count", to=0), ("classes.0.count",), "greater_than_equal"),
    "negative clips": (change(*DOG, "count", to=-3), ("classes.0.count",), "greater_than_equal"),
    "clips true": (change(*DOG, "count", to=True), ("classes.0.count",), "int_type"),
    "clips 4.0": (change(*DOG, "count", to=4.0), ("classes.0.count",), "int_type"),
    "too many clips": (change(*DOG, "count", to=10**9 + 1), ("'dog'", 10**9 + 1, 10**9)),
    "more clips than examples": (change(*DOG, "count", to=1000), ("num_examples", 1009, 23)),
    "prototypes cover more than the class": (change(*DOG, "count", to=2), ("'dog'", 13)),
    "index out of range": (change(*DOG, "clip", to=13), ("array 13",)),
    "negative index": (change(*DOG, "clip", to=-1), ("classes.0.clip",), "greater_than_equal"),
    "huge index": (change(*DOG, "clip", to=10**30), ("array 10000", 13)),
    "index true": (change(*DOG, "clip", to=True), ("classes.0.clip",), "int_type"),
    "index of a weight": (change(*DOG, "clip", to=0), ("array 0", 2)),
    "index used twice": (change(*DOG, "clip", to=11), ("array 11", 2)),
    "an array too many": (lambda a, m: ([*a, a[0]], m), (14, 13)),
    "an array too few": (lambda a, m: (a[:-1], m), ("array 12",)),
    "no arrays": (lambda a, m: ([], m), ("array 0",)),
    "a weight too few": (change("weights", to=2), ("weights", 2, 3)),
    "very many weights": (change("weights", to=10**18), ("weights", 10**18, 3)),
    "weights in another order": (lambda a, m: ([a[1], a[0], *a[2:]], m), ("weight 0", (3,), (4, 3))),
    "weights of integers": (swap(0, lambda a: a.astype(np.int64)), ("weight 0", "'int64'")),
    "weights of bool": (swap(0, lambda a: a > 0), ("weight 0", "'bool'")),
    "weights of complex": (swap(0, lambda a: a.astype(complex)), ("weight 0", "'complex128'")),
    "weights of objects": (swap(0, lambda a: a.astype(object)), ("weight 0", "'object'")),
    "weights in foreign byte order": (swap(0, lambda a: a.astype(">f4")), ("weight 0", "'>f4'")),
    "a masked array": (swap(0, np.ma.masked_array), ("list", "numpy")),
    "a list for an array": (swap(0, lambda a: a.tolist()), ("list", "numpy")),
    "a numpy scalar for an array": (swap(2, lambda a: np.float32(1)), ("list", "numpy")),
    "NaN in weights": (poke(0, math.nan), ("weight 0", "nan")),
    "infinity in weights": (poke(1, -math.inf), ("weight 1", "-inf")),
    "1e30 in weights": (poke(0, 1e30), ("weight 0", "1e+30", "1e+06")),
    "1e300 in weights": (swap(0, lambda a: np.full(a.shape, 1e300)), ("weight 0", "inf")),
    "weights a thousand times too large": (
        lambda a, m: ([np.asarray(x * 1000) for x in a[:3]] + a[3:], m),
        ("weights", 100),
    ),
    "no prototypes": (
        lambda a, m: change(*DOG, "prototypes", to=None)(a, m),
        (13, 10),
    ),
    "prototypes of another width": (swap(3, lambda a: a[..., :4]), ("'dog'", "prototypes", (2, 2, 4))),
    "prototypes without tokens": (swap(3, lambda a: a[:, 0]), ("'dog'", "prototypes", (2, 5), "(K, S, Da)")),
    "a prototype more than counts": (swap(3, lambda a: np.concatenate([a, a])), ("'dog'", "prototypes", (4, 2, 5))),
    "infinite prototypes": (poke(3, math.inf), ("'dog'", "prototypes", "inf")),
    "prototypes of 1e30": (poke(3, 1e30), ("'dog'", "prototypes", "1e+30")),
    "counts of floats": (swap(4, lambda a: a.astype(float)), ("'dog'", "counts", "'float64'")),
    "counts of int32": (swap(4, lambda a: a.astype(np.int32)), ("'dog'", "counts", "'int32'")),
    "counts of bool": (swap(4, lambda a: a > 0), ("'dog'", "counts", "'bool'")),
    "counts as a matrix": (swap(4, lambda a: a[None]), ("'dog'", "counts", (1, 2))),
    "no counts": (swap(4, lambda a: a[:0]), ("'dog'", "counts", (0,))),
    "200 prototypes where 8 are asked": (
        swap(4, lambda a: np.ones(200, dtype=np.int64)),
        ("'dog'", "counts", (200,), 8),
    ),
    "a count of zero": (poke(4, 0), ("'dog'", 0)),
    "a negative count": (poke(4, -5), ("'dog'", -5)),
    "counts that overflow": (
        swap(4, lambda a: np.full(2, 2**62)),
        ("'dog'", 2**62),
    ),
    "negative variances": (poke(5, -1e-3), ("'dog'", "variances", -0.001)),
    "NaN variances": (poke(5, math.nan), ("'dog'", "variances", "nan")),
    "huge variances": (poke(5, 1e13), ("'dog'", "variances", "1e+13", "1e+12")),
    "variances of another shape": (swap(5, lambda a: a[..., :4]), ("'dog'", "variances", (2, 2, 4))),
    "clip output of another shape": (swap(6, lambda a: a[0]), ("'dog'", "clip", (6,))),
    "clip output to be broadcast": (swap(6, lambda a: a[:, :1]), ("'dog'", "clip", (1, 1))),
    "NaN clip output": (poke(6, math.nan), ("'dog'", "clip", "nan")),
    "1e30 t5 output": (poke(7, 1e30), ("'dog'", "t5", "1e+30")),
    "no t5 output": (
        lambda a, m: change(*DOG, "t5", to=None)(a[:12], shifted(m, 7)),
        ("'dog'", "t5"),
    ),
}


def shifted(manifest, gone):
    """The manifest with one array taken out."""
    text = json.dumps(manifest)
    tree = json.loads(text)
    for entry in tree["classes"]:
        for part, keys in ((entry, ("clip", "t5")), (entry["prototypes"], ("means", "counts", "variances"))):
            for key in keys:
                if part[key] > gone:
                    part[key] -= 1
    return tree


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_reply_is_refused_with_its_reason(case):
    edit, named, *fault = HOSTILE[case]
    arrays, manifest, examples = sent()
    arrays, manifest = edit(list(arrays), copy.deepcopy(manifest))
    with refused(InvalidReplyError, *named) as caught:
        decode(arrays, manifest, examples)
    assert manifest_fault(caught.value) == fault
    assert_presentable(caught.value)


@pytest.mark.parametrize(
    "examples", [0, -1, True, 3.0, "3", None, np.int64(30), 10**9 + 1, pytest.param(10**6000, id="huge")]
)
def test_a_bad_number_of_examples_is_refused(examples):
    arrays, manifest, _ = sent()
    with pytest.raises(InvalidReplyError):
        decode(arrays, manifest, examples)


def test_an_registration_carries_neither_weights_nor_outputs():
    arrays, manifest, examples = sent(make_reply(task="register"))
    assert decode(arrays, manifest, examples, make_expected("register")).weights == []
    arrays, manifest, examples = sent()
    with refused(InvalidReplyError, "weights", 3, 0):
        decode(arrays, manifest | {"task": "register"}, examples, make_expected("register"))
    arrays, manifest, examples = sent(replace(make_reply(), weights=[], task="register"))
    with refused(InvalidReplyError, "'dog'", "clip"):
        decode(arrays, manifest, examples, make_expected("register"))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_moments_of_all_clips_survive_the_way(dtype):
    reply = make_moments_reply()
    got = decode(*sent(reply, dtype), make_expected("register", audio_shape=None))
    assert (got.statistics, got.moments.variance, got.moments.count) == ([], 0.7, 6)
    torch.testing.assert_close(got.moments.mean.float(), reply.moments.mean, rtol=2e-3, atol=2e-3)
    assert decode(*sent(make_reply(task="register")), make_expected("register")).moments is None


HOSTILE_MOMENTS = {
    "of more clips than there are": (change("moments", "count", to=7), ("num_examples", 7, 6)),
    "of no clip": (change("moments", "count", to=0), ("moments.count",), "greater_than_equal"),
    "a negative variance": (change("moments", "variance", to=-0.1), ("moments.variance",), "greater_than_equal"),
    "a variance that is none": (change("moments", "variance", to=math.nan), ("manifest", "NaN")),
    "a huge variance": (change("moments", "variance", to=1e13), ("1e+13", "1e+12")),
    "an array that is not there": (change("moments", "mean", to=1), ("array 1", 1)),
    "an array without a use": (change("moments", to=None), (1, 0)),
    "no key": (drop("moments"), ("moments",), "missing"),
    "another key": (change("moments", "std", to=1.0), ("moments.std",), "extra_forbidden"),
    "NaN": (poke(0, math.nan), ("mean", "nan")),
    "1e30": (poke(0, 1e30), ("mean", "1e+30", "1e+06")),
    "a mean of every class": (swap(0, lambda a: a[None]), ("mean", (1, 2, 5), "(S, Da)")),
    "no tokens": (swap(0, lambda a: a[:0]), ("mean", (0, 5))),
    "another shape": (swap(0, lambda a: a[:, :4]), ("mean", (2, 4), (2, 5))),
}


@pytest.mark.parametrize("case", HOSTILE_MOMENTS)
def test_hostile_moments_are_refused_with_their_reason(case):
    edit, named, *fault = HOSTILE_MOMENTS[case]
    arrays, manifest, examples = sent(make_moments_reply())
    arrays, manifest = edit(arrays, manifest)
    with refused(InvalidReplyError, *named) as caught:
        decode(arrays, manifest, examples, make_expected("register"))
    assert manifest_fault(caught.value) == fault
    assert_presentable(caught.value)


@pytest.mark.parametrize("task", ["register", "train"])
def test_moments_come_with_an_registration_without_classes_and_with_nothing_else(task):
    beside = replace(make_reply(task=task), moments=make_moments_reply().moments)
    with refused(InvalidReplyError, "moments", "2 classes", task):
        decode(*sent(beside), make_expected(task))
    if task == "train":
        with refused(InvalidReplyError, "moments", "0 classes", task):
            decode(*sent(replace(beside, statistics=[])), make_expected(task))


@settings(max_examples=2 * settings.default.max_examples)
@given(data=st.data())
def test_mutated_moments_are_refused_cleanly_or_are_sound(data):
    arrays, manifest, examples = sent(make_moments_reply(), data.draw(st.sampled_from(["float16", "float32"])))
    with np.errstate(all="ignore"):
        arrays, written = mutate(data, arrays, manifest)
    expected = make_expected("register", audio_shape=data.draw(st.sampled_from([None, (2, 5)])))
    try:
        got = decode(arrays, written, examples, expected)
    except InvalidReplyError as error:
        assert_presentable(error)
    else:
        assert got.weights == got.statistics == []
        if got.moments is not None:
            assert got.moments.mean.ndim == 2
            assert got.moments.mean.isfinite().all()
            assert 1 <= got.moments.count <= examples
            assert 0 <= got.moments.variance <= 1e12


def grouped(counts, clips):
    """A reply with one class, whose prototypes have so many clips each."""
    means = torch.ones(len(counts), 2, 5)
    audio = AudioPrototypes(means, torch.tensor(counts), torch.zeros_like(means))
    reply = make_reply(task="register", names=())
    return replace(reply, num_examples=clips, statistics=[ClassStatistics("dog", clips, audio)])


@pytest.mark.parametrize(
    ("limits", "fine", "too_much"),
    [
        ({"groups": 1}, ([24], 24), ([12, 12], 24)),
        ({"groups": 8, "min_clips": 3}, ([3] * 8, 24), ([3] * 9, 27)),
        ({"groups": 8, "min_clips": 3}, ([3, 3], 8), ([3, 3, 2], 8)),
        ({"groups": 8, "min_clips": 3}, ([4, 3], 7), ([5, 2], 7)),
        ({"groups": 8, "min_clips": 3}, ([3], 3), ([2], 2)),
        ({"groups": 0}, ([1] * 24, 24), ([2] * 12, 24)),
    ],
    ids=["mean", "more groups", "more groups than clips", "a small group", "a small class", "samples"],
)
def test_a_class_has_the_requested_number_of_prototypes_with_enough_clips_each(limits, fine, too_much):
    expected = make_expected("register", **limits)
    (said,) = decode(*sent(grouped(*fine)), expected).statistics
    assert said.audio.counts.tolist() == fine[0]
    with refused(InvalidReplyError, "'dog'"):
        decode(*sent(grouped(*too_much)), expected)


def test_moments_of_fewer_clips_than_were_asked_are_refused():
    assert decode(*sent(make_moments_reply()), make_expected("register", min_clips=6)).moments.count == 6
    with refused(InvalidReplyError, "moments", 6, 7):
        decode(*sent(make_moments_reply()), make_expected("register", min_clips=7))


def test_variances_that_were_not_requested_are_refused():
    with refused(InvalidReplyError, "'dog'", "variances"):
        decode(*sent(), make_expected(variances="none"))
    assert len(decode(*sent(make_reply(variance=False)), make_expected(variances="none")).statistics) == 2


def test_an_registration_has_no_losses():
    reply = replace(make_reply(task="register"), losses={"mse": 0.25, "contrastive": 1.5})
    with refused(InvalidReplyError, "'mse'"):
        decode(*sent(reply), make_expected("register"))


def test_a_t5_output_without_a_t5_adapter_is_refused():
    with refused(InvalidReplyError, "'dog'", "t5"):
        decode(*sent(), make_expected(t5_shape=None))


@pytest.mark.parametrize(("wanted", "kind"), [("prototypes", "prototypes"), ("outputs", "clip")])
def test_statistics_that_were_not_requested_are_refused_and_their_absence_is_not(wanted, kind):
    reply = make_reply()
    with refused(InvalidReplyError, "'dog'", kind):
        decode(*sent(reply), make_expected(**{wanted: False}))
    without = {"prototypes": {"audio": None}, "outputs": {"clip": None, "t5": None}}[wanted]
    bare = replace(reply, statistics=[replace(prompt, **without) for prompt in reply.statistics])
    got = decode(*sent(bare), make_expected(**{wanted: False}))
    assert [(prompt.name, prompt.count) for prompt in got.statistics] == [(p.name, p.count) for p in reply.statistics]
    assert all(getattr(prompt, field) is None for prompt in got.statistics for field in without)
    with refused(InvalidReplyError, "'dog'", kind):
        decode(*sent(bare))


def test_prototypes_may_stay_away_only_if_the_bank_holds_these_of_this_class():
    message = sent(make_reply(held=True))
    held = make_expected(held_fingerprint="abc123", held_classes={"dog", "rain"})
    got = decode(*message, held)
    bank = PrototypeBank()
    bank.update("site-0", make_reply().statistics, "abc123", 2)
    bank.update(got.site, got.statistics, got.fingerprint, 3)
    assert len(bank.rows()) == 4
    for missing in (
        make_expected(),
        replace(held, held_fingerprint="other"),
        replace(held, held_classes={"rain"}),
    ):
        with refused(InvalidReplyError, "'dog'", "prototypes"):
            decode(*message, missing)


def test_while_the_audio_shape_is_unknown_the_prototypes_of_a_reply_must_agree():
    unknown = make_expected(audio_shape=None)
    arrays, manifest, examples = sent()
    assert decode(arrays, manifest, examples, unknown).statistics[1].audio.means.shape == (2, 2, 5)
    arrays[8] = arrays[8][..., :4]
    with refused(InvalidReplyError, "'rain'", "prototypes", (2, 2, 4), (2, 2, 5)):
        decode(arrays, manifest, examples, unknown)


def assert_sound(reply, expected):
    """Properties of every accepted reply."""
    assert [tuple(w.shape) for w in reply.weights] == list(expected.weight_shapes)
    names = [p.name for p in reply.statistics]
    assert len(names) == len(set(names))
    assert set(names) <= set(expected.classes)
    assert all(math.isfinite(loss) for loss in reply.losses.values())
    tensors = list(reply.weights)
    for p in reply.statistics:
        k = len(p.audio.counts)
        assert type(p.count) is int
        assert p.audio.counts.min() >= 1
        assert p.audio.counts.sum() <= p.count <= reply.num_examples
        assert p.audio.means.shape == p.audio.variances.shape == (k, *expected.audio_shape)
        assert (p.audio.variances >= 0).all()
        assert (p.clip.shape, p.t5.shape) == (expected.clip_shape, expected.t5_shape)
        tensors += [p.audio.means, p.audio.variances, p.clip, p.t5]
    for tensor in tensors:
        assert tensor.dtype in (torch.float16, torch.float32)
        assert tensor.isfinite().all()
        assert tensor.numel() == 0 or tensor.abs().max() <= MAX_MAGNITUDE**2


@settings(max_examples=6 * settings.default.max_examples)
@given(data=st.data())
def test_a_mutated_reply_is_refused_cleanly_or_is_sound(data):
    arrays, manifest, examples = sent(dtype=data.draw(st.sampled_from(["float16", "float32"])))
    with np.errstate(all="ignore"):
        arrays, written = mutate(data, arrays, manifest)
    expected = make_expected()
    try:
        got = decode(arrays, written, examples, expected)
    except InvalidReplyError as error:
        assert_presentable(error)
    else:
        assert_sound(got, expected)
