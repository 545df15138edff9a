"""The wire format: what is sent arrives, and nothing else gets in."""

import copy
import io
import json
import math
import pickle
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.common import Parameters, ndarrays_to_parameters
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fed_a2v.core.prompts import AudioPrototypes, ClassPrompts, PromptBank
from fed_a2v.federation import wire
from fed_a2v.federation.wire import BadReplyError, ClassScores, Expected, Scores, SiteReply

CLASSES = ("dog", "rain", "siren", "Säge", "door knock")
SHAPES = ((4, 3), (3,), ())
QUICK = settings(derandomize=True, max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def prompts(name, rng, task, prototypes=2, held=False, t5=True, variance=True):
    counts = rng.integers(1, 9, prototypes)
    audio = AudioPrototypes(
        means=torch.tensor(rng.normal(size=(prototypes, 2, 5)), dtype=torch.float32),
        counts=torch.tensor(counts),
        variances=torch.tensor(rng.uniform(0.1, 2, (prototypes, 2, 5)) * variance, dtype=torch.float32),
    )
    trained = task == "train"
    return ClassPrompts(
        name=name,
        count=int(counts.sum()) + int(rng.integers(0, 3)),
        audio=None if held else audio,
        clip=torch.tensor(rng.normal(size=(1, 6)), dtype=torch.float32) if trained else None,
        t5=torch.tensor(rng.normal(size=(3, 7)), dtype=torch.float32) if trained and t5 else None,
    )


def make_reply(seed=0, task="train", names=("dog", "rain"), **options):
    rng = np.random.default_rng(seed)
    said = [prompts(name, rng, task, **options) for name in names]
    return SiteReply(
        site="site-0",
        round_number=3,
        task=task,
        num_examples=sum(p.count for p in said) + 1,
        weights=[torch.tensor(rng.normal(size=shape), dtype=torch.float32) for shape in SHAPES]
        if task == "train"
        else [],
        prompts=said,
        fingerprint="abc123",
        square_root=True,
        losses={"mse": 0.25, "contrastive": 1.5},
        seconds=1.25,
    )


def make_expected(task="train", **changes):
    expected = Expected(
        site="site-0",
        round_number=3,
        task=task,
        weight_shapes=SHAPES,
        classes=CLASSES,
        audio_shape=(2, 5),
        clip_shape=(1, 6),
        t5_shape=(3, 7),
        square_root=True,
    )
    return replace(expected, **changes)


def sent(reply=None, dtype="float32"):
    """A valid reply as (arrays, manifest as a tree, num_examples)."""
    reply = reply or make_reply()
    arrays, metrics = wire.encode_reply(reply, dtype)
    return arrays, json.loads(metrics["manifest"]), reply.num_examples


def decode(arrays, manifest, num_examples, expected=None):
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    return wire.decode_reply(arrays, {"manifest": text}, num_examples, expected or make_expected())


def assert_same(got, wanted, tolerance):
    assert (got.site, got.round_number, got.task) == (wanted.site, wanted.round_number, wanted.task)
    assert (got.num_examples, got.fingerprint) == (wanted.num_examples, wanted.fingerprint)
    assert (got.square_root, got.losses, got.seconds) == (wanted.square_root, wanted.losses, wanted.seconds)
    pairs = list(zip(got.weights, wanted.weights, strict=True))
    for one, other in zip(got.prompts, wanted.prompts, strict=True):
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


# ------------------------------------------------------------------------------------------------ round trip


@QUICK
@given(
    seed=st.integers(0, 2**32 - 1),
    task=st.sampled_from(["train", "introduce"]),
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
    received = wire.read_arrays(ndarrays_to_parameters(arrays))
    expected = make_expected(
        task, t5_shape=(3, 7) if t5 else None, held_fingerprint="abc123" if held else "", held_classes=CLASSES
    )
    got = wire.decode_reply(received, metrics, reply.num_examples, expected)
    assert_same(got, reply, 0 if dtype == "float32" else 2e-3)


def test_zero_variances_do_not_travel():
    with_variance, _, _ = sent(make_reply(variance=True))
    without, manifest, examples = sent(make_reply(variance=False))
    assert len(without) == len(with_variance) - 2
    got = decode(without, manifest, examples)
    assert all(p.audio.variances.shape == (2, 2, 5) and not p.audio.variances.any() for p in got.prompts)


def test_an_array_that_half_precision_cannot_hold_stays_in_single_precision():
    reply = make_reply()
    reply.weights[0][0, 0] = 70000.0
    reply.prompts[0].audio.variances[0, 0, 0] = 1e-12
    arrays, manifest, examples = sent(reply, "float16")
    entry = manifest["classes"][0]["prototypes"]
    assert [a.dtype.name for a in arrays[:3]] == ["float32", "float16", "float16"]
    assert arrays[entry["variances"]].dtype == np.float32
    assert arrays[entry["means"]].dtype == np.float16
    got = decode(arrays, manifest, examples, make_expected(max_weight_rms=1e5))
    assert got.weights[0][0, 0] == 70000.0
    assert got.prompts[0].audio.variances[0, 0, 0] > 0


def test_encoded_arrays_share_no_memory_with_the_models_and_decoded_weights_alone_with_the_bytes():
    reply = make_reply()
    arrays, manifest, examples = sent(reply, "float32")
    arrays[0][:] = 0
    assert reply.weights[0].abs().sum() > 0
    got = decode(arrays, manifest, examples)
    for array in arrays:
        array[...] = 99
    assert all((weight == 99).all() for weight in got.weights), "a copy of what waits in memory anyway"
    audio = got.prompts[0].audio
    assert not any((tensor == 99).any() for tensor in (audio.means, audio.counts, audio.variances, got.prompts[0].clip))


def test_arrays_keep_the_precision_in_which_they_came():
    got = decode(*sent(dtype="float16"))
    audio = got.prompts[0].audio
    assert {tensor.dtype for tensor in (*got.weights, audio.means, audio.variances)} == {torch.float16}
    arrays, manifest, examples = sent()
    arrays[0], arrays[3] = arrays[0].astype(np.float64), arrays[3].astype(np.float64)
    got = decode(arrays, manifest, examples)
    assert {got.weights[0].dtype, got.prompts[0].audio.means.dtype} == {torch.float32}


def test_weights_may_require_grad_and_be_transposed_or_bfloat16():
    weight = torch.randn(3, 4, requires_grad=True)
    arrays = wire.encode_weights([weight.t(), torch.ones(2, dtype=torch.bfloat16)], "float16")
    assert [a.shape for a in arrays] == [(4, 3), (2,)]
    back = wire.decode_weights(arrays, [(4, 3), (2,)])
    torch.testing.assert_close(back[0], weight.detach().t(), rtol=1e-3, atol=1e-3)


def test_a_site_cannot_encode_a_loss_that_is_not_finite():
    with pytest.raises(ValueError, match="mse"):
        wire.encode_reply(replace(make_reply(), losses={"mse": math.nan}), "float16")


def test_payload_bytes_counts_what_the_arrays_hold():
    weights = [torch.zeros(10, 10), torch.zeros(5)]
    assert wire.payload_bytes(wire.encode_weights(weights, "float16")) == 210
    assert wire.payload_bytes(wire.encode_weights(weights, "float32")) == 420


# ------------------------------------------------------------------------------------------------ hostile replies


def assert_presentable(error):
    """The reason is one short line, and a check gave it: the last resort is for what nobody thought of."""
    assert len(str(error)) <= 200
    assert str(error).isprintable()
    assert not str(error).startswith("unreadable")


def change(*path, to):
    """A hostile edit of the manifest at `path`."""

    def edit(arrays, manifest):
        target = manifest
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = to
        return arrays, manifest

    return edit


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


def drop(*path):
    def edit(arrays, manifest):
        target = manifest
        for key in path[:-1]:
            target = target[key]
        del target[path[-1]]
        return arrays, manifest

    return edit


def text(function):
    return lambda arrays, manifest: (arrays, function(json.dumps(manifest)))


# Arrays of make_reply(): 0-2 weights; dog: 3 means, 4 counts, 5 variances, 6 clip, 7 t5; rain: 8 to 12.
DOG = ("classes", 0)
HOSTILE = {
    "manifest is not JSON": (text(lambda t: t[:-5]), "not valid JSON"),
    "manifest is empty": (text(lambda t: ""), "not valid JSON"),
    "manifest is a list": (text(lambda t: "[1]"), "not a JSON object"),
    "manifest is huge": (text(lambda t: t + " " * (1 << 20)), "characters, the limit is 18944"),
    "manifest is nested deep": (text(lambda t: "[" * 10_000), "nested too deep"),
    "manifest has a number of many digits": (text(lambda t: "9" * 5000), "not valid JSON"),
    "manifest holds NaN": (change("seconds", to=math.nan), "contains NaN"),
    "manifest holds infinity": (change("losses", "mse", to=-math.inf), "contains -Infinity"),
    "manifest overflows to infinity": (text(lambda t: t.replace("1.25", "1e999")), "seconds: .*finite"),
    "a key comes twice": (text(lambda t: t.replace("{", '{"site": "site-0", ', 1)), "key 'site' twice"),
    "a nested key comes twice": (text(lambda t: t.replace('"mse"', '"mse": 1, "mse"')), "key 'mse' twice"),
    "no version": (drop("schema_version"), "schema version None, this program has 1"),
    "another version": (change("schema_version", to=2), "schema version 2, this program has 1"),
    "version true": (change("schema_version", to=True), "schema version True, this program has 1"),
    "a key is missing": (drop("classes", 0, "count"), "classes.0.count: Field required"),
    "an unknown key": (change("code", to="x"), "manifest code: Extra inputs"),
    "an unknown key that is long": (change("x" * 15_000, to=1), "manifest 'xxx.*xxx': Extra inputs"),
    "an unknown key that breaks lines": (change("a\nERROR b", to=1), r"manifest 'a\\nERROR b': Extra"),
    "another site": (change("site", to="../../site"), r"reply of site '../../site', asked was 'site-0'"),
    "a long site": (change("site", to="s" * 15_000), "reply of site 'sss"),
    "another round": (change("round_number", to=2), "reply to round 2, asked was round 3"),
    "round true": (change("round_number", to=True), "round_number: .*valid integer"),
    "round 3.0": (change("round_number", to=3.0), "round_number: .*valid integer"),
    "another task": (change("task", to="introduce"), "answers task 'introduce', asked was 'train'"),
    "an unknown task": (change("task", to="exec"), "manifest task: Input should be"),
    "square roots where others have none": (change("square_root", to=False), "square_root is False"),
    "square_root 1": (change("square_root", to=1), "square_root: .*valid boolean"),
    "fingerprint with spaces": (change("fingerprint", to="a b"), "fingerprint: .*pattern"),
    "fingerprint too long": (change("fingerprint", to="a" * 129), "fingerprint: .*pattern"),
    "loss is a string": (change("losses", "mse", to="0"), "losses.mse: .*number"),
    "loss is huge": (change("losses", "mse", to=1e300), "losses.mse: .*less than"),
    "loss has a long name": (change("losses", "m" * 65, to=1.0), "losses.'mmm.*pattern"),
    "time runs backwards": (change("seconds", to=-1), "seconds: .*greater than"),
    "classes are an object": (change("classes", to={}), "classes: .*list"),
    "a class is a number": (change("classes", 0, to=7), "classes.0: "),
    "unknown class": (change(*DOG, "name", to="../../x"), r"unknown class '../../x'"),
    "long unknown class": (change(*DOG, "name", to="n" * 15_000), "unknown class 'nnn"),
    "class name is a number": (change(*DOG, "name", to=1), "name: .*valid string"),
    "class name is half a surrogate": (change(*DOG, "name", to="\ud800"), r"unknown class '\\ud800'"),
    "class twice": (change(*DOG, "name", to="rain"), "class 'rain' comes twice"),
    "no clips": (change(*DOG, "count", to=0), "count: .*greater than or equal to 1"),
    "negative clips": (change(*DOG, "count", to=-3), "count: .*greater than or equal to 1"),
    "clips true": (change(*DOG, "count", to=True), "count: .*valid integer"),
    "clips 4.0": (change(*DOG, "count", to=4.0), "count: .*valid integer"),
    "too many clips": (change(*DOG, "count", to=10**9 + 1), "has 1000000001 clips, the limit"),
    "more clips than examples": (change(*DOG, "count", to=1000), "have 10.. clips, num_examples is"),
    "prototypes cover more than the class": (change(*DOG, "count", to=1), "cover .* clips of 1"),
    "index out of range": (change(*DOG, "clip", to=13), "names array 13, the reply has 13"),
    "negative index": (change(*DOG, "clip", to=-1), "clip: .*greater than or equal to 0"),
    "huge index": (change(*DOG, "clip", to=10**30), "names array 10000"),
    "index true": (change(*DOG, "clip", to=True), "clip: .*valid integer"),
    "index of a weight": (change(*DOG, "clip", to=0), "uses array 0 2 times"),
    "index used twice": (change(*DOG, "clip", to=11), "uses array 11 2 times"),
    "an array too many": (lambda a, m: ([*a, a[0]], m), "has 14 arrays, the manifest uses 13"),
    "an array too few": (lambda a, m: (a[:-1], m), "names array 12, the reply has 12"),
    "no arrays": (lambda a, m: ([], m), "names array 0, the reply has 0"),
    "a weight too few": (change("weights", to=2), "2 weights, expected 3"),
    "very many weights": (change("weights", to=10**18), "1000000000000000000 weights, expected 3"),
    "weights in another order": (lambda a, m: ([a[1], a[0], *a[2:]], m), r"weight 0: shape \(3,\), expected"),
    "weights of integers": (
        swap(0, lambda a: a.astype(np.int64)),
        "weight 0: type 'int64', expected a float",
    ),
    "weights of bool": (swap(0, lambda a: a > 0), "weight 0: type 'bool'"),
    "weights of complex": (swap(0, lambda a: a.astype(complex)), "weight 0: type 'complex128'"),
    "weights of objects": (swap(0, lambda a: a.astype(object)), "weight 0: type 'object'"),
    "weights in foreign byte order": (swap(0, lambda a: a.astype(">f4")), "weight 0: type '>f4'"),
    "a masked array": (swap(0, np.ma.masked_array), "not a list of numpy arrays"),
    "a list for an array": (swap(0, lambda a: a.tolist()), "not a list of numpy arrays"),
    "a numpy scalar for an array": (swap(2, lambda a: np.float32(1)), "not a list of numpy arrays"),
    "NaN in weights": (poke(0, math.nan), "weight 0: not finite"),
    "infinity in weights": (poke(1, -math.inf), "weight 1: not finite"),
    "1e30 in weights": (poke(0, 1e30), r"weight 0: magnitude 1e\+30, the limit is 1e\+06"),
    "1e300 in weights": (swap(0, lambda a: np.full(a.shape, 1e300)), "weight 0: not finite"),
    "weights a thousand times too large": (
        lambda a, m: ([np.asarray(x * 1000) for x in a[:3]] + a[3:], m),
        "weights have root mean square .* the limit is 100",
    ),
    "no prototypes": (
        lambda a, m: change(*DOG, "prototypes", to=None)(a, m),
        "the reply has 13 arrays, the manifest uses 10",
    ),
    "prototypes of another width": (swap(3, lambda a: a[..., :4]), r"prototypes of 'dog': shape \(2, 2, 4\)"),
    "prototypes without tokens": (swap(3, lambda a: a[:, 0]), r"have shape \(2, 5\), expected \(K, S, Da\)"),
    "a prototype more than counts": (swap(3, lambda a: np.concatenate([a, a])), r"dog': shape \(4, 2, 5\)"),
    "infinite prototypes": (poke(3, math.inf), "prototypes of 'dog': not finite"),
    "prototypes of 1e30": (poke(3, 1e30), "prototypes of 'dog': magnitude 1e"),
    "counts of floats": (swap(4, lambda a: a.astype(float)), "prototype counts of 'dog' are 'float64'"),
    "counts of int32": (swap(4, lambda a: a.astype(np.int32)), "prototype counts of 'dog' are 'int32'"),
    "counts of bool": (swap(4, lambda a: a > 0), "prototype counts of 'dog' are 'bool'"),
    "counts as a matrix": (swap(4, lambda a: a[None]), r"are 'int64' \(1, 2\)"),
    "no counts": (swap(4, lambda a: a[:0]), r"are 'int64' \(0,\)"),
    "very many counts": (swap(4, lambda a: np.ones(5000, dtype=np.int64)), r"with K up to 4096"),
    "a count of zero": (poke(4, 0), "a prototype of 'dog' has 0 clips"),
    "a negative count": (poke(4, -5), "a prototype of 'dog' has -5 clips"),
    "counts that overflow": (
        swap(4, lambda a: np.full(2, 2**62)),
        "a prototype of 'dog' has 4611686018427387904",
    ),
    "negative variances": (poke(5, -1e-3), "variances of 'dog': smallest value -0.001"),
    "NaN variances": (poke(5, math.nan), "variances of 'dog': not finite"),
    "huge variances": (poke(5, 1e13), "variances of 'dog': magnitude 1e"),
    "variances of another shape": (swap(5, lambda a: a[:1]), "variances of 'dog': shape"),
    "clip output of another shape": (swap(6, lambda a: a[0]), r"clip output of 'dog': shape \(6,\)"),
    "clip output to be broadcast": (swap(6, lambda a: a[:, :1]), r"clip output of 'dog': shape \(1, 1\)"),
    "NaN clip output": (poke(6, math.nan), "clip output of 'dog': not finite"),
    "1e30 t5 output": (poke(7, 1e30), "t5 output of 'dog': magnitude"),
    "no t5 output": (
        lambda a, m: change(*DOG, "t5", to=None)(a[:12], shifted(m, 7)),
        "class 'dog' has no t5 output",
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
    edit, reason = HOSTILE[case]
    arrays, manifest, examples = sent()
    arrays, manifest = edit(list(arrays), copy.deepcopy(manifest))
    with pytest.raises(BadReplyError, match=reason) as refused:
        decode(arrays, manifest, examples)
    assert_presentable(refused.value)


def test_the_claimed_sender_is_read_before_the_rest_is_checked():
    _, manifest, _ = sent()
    claim = {"schema_version": 1, "site": "site-7"}
    assert wire.claimed_site({"manifest": json.dumps(manifest)}, CLASSES) == "site-0"
    assert wire.claimed_site(wire.encode_scores("site-0", 3, {}), CLASSES) == "site-0"
    assert wire.claimed_site({"manifest": json.dumps(claim | {"classes": [7], "x": None})}, CLASSES) == "site-7"
    for bad in ({"site": "a"}, {"schema_version": 1}, claim | {"site": 3}, claim | {"site": None}):
        with pytest.raises(BadReplyError):
            wire.claimed_site({"manifest": json.dumps(bad)}, CLASSES)


@pytest.mark.parametrize("metrics", [{}, None, [], {"manifest": b"{}"}, {"manifest": 3}, {"manifest": None}])
def test_a_reply_without_a_manifest_is_refused(metrics):
    with pytest.raises(BadReplyError, match="no manifest"):
        wire.decode_reply([], metrics, 1, make_expected())


@pytest.mark.parametrize(
    "examples", [0, -1, True, 3.0, "3", None, np.int64(30), 10**9 + 1, pytest.param(10**6000, id="huge")]
)
def test_a_bad_number_of_examples_is_refused(examples):
    arrays, manifest, _ = sent()
    with pytest.raises(BadReplyError):
        decode(arrays, manifest, examples)


def test_an_introduction_carries_neither_weights_nor_outputs():
    arrays, manifest, examples = sent(make_reply(task="introduce"))
    assert decode(arrays, manifest, examples, make_expected("introduce")).weights == []
    arrays, manifest, examples = sent()
    with pytest.raises(BadReplyError, match="3 weights, expected 0"):
        decode(arrays, manifest | {"task": "introduce"}, examples, make_expected("introduce"))
    arrays, manifest, examples = sent(replace(make_reply(), weights=[], task="introduce"))
    with pytest.raises(BadReplyError, match="class 'dog' has a clip output"):
        decode(arrays, manifest, examples, make_expected("introduce"))


def test_a_t5_output_without_a_t5_adapter_is_refused():
    with pytest.raises(BadReplyError, match="class 'dog' has a t5 output"):
        decode(*sent(), make_expected(t5_shape=None))


def test_prototypes_may_stay_away_only_if_the_bank_holds_these_of_this_class():
    message = sent(make_reply(held=True))
    held = make_expected(held_fingerprint="abc123", held_classes={"dog", "rain"})
    got = decode(*message, held)
    bank = PromptBank()
    bank.update("site-0", make_reply().prompts, "abc123", 2)
    bank.update(got.site, got.prompts, got.fingerprint, 3)
    assert len(bank.rows()) == 4
    for missing in (
        make_expected(),
        replace(held, held_fingerprint="other"),
        replace(held, held_classes={"rain"}),
    ):
        with pytest.raises(BadReplyError, match="class 'dog' has no prototypes"):
            decode(*message, missing)


def test_while_the_audio_shape_is_unknown_the_prototypes_of_a_reply_must_agree():
    unknown = make_expected(audio_shape=None)
    arrays, manifest, examples = sent()
    assert decode(arrays, manifest, examples, unknown).prompts[1].audio.means.shape == (2, 2, 5)
    arrays[8] = arrays[8][..., :4]
    with pytest.raises(BadReplyError, match=r"prototypes of 'rain': shape \(2, 2, 4\), expected \(2, 2, 5\)"):
        decode(arrays, manifest, examples, unknown)


# ------------------------------------------------------------------------------------------------ mutations

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([0, 1, 2, 3, -1, 10**30, 1e30, "dog", "rain", "../../x", "train", "introduce", "x" * 10_000])
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)

BROKEN_ARRAYS = st.sampled_from(
    [
        lambda a: a * np.nan if a.dtype.kind == "f" else a * 0,
        lambda a: a.astype(np.float64) + 1e30 if a.dtype.kind == "f" else a + 2**62,
        lambda a: a * -1,
        lambda a: a * 3,
        lambda a: a[None],
        lambda a: a.ravel()[:1],
        lambda a: a.ravel()[:0],
        lambda a: a.T,
        lambda a: a.astype(np.float64),
        lambda a: a.astype(np.float16),
        lambda a: a.astype(np.int64),
        lambda a: a.astype(bool),
        lambda a: a.astype("S8"),
        lambda a: a.astype(object),
        lambda a: np.array(["x"]),
        lambda a: np.broadcast_to(a, (100_000, *a.shape)),
        lambda a: None,
        lambda a: b"bytes",
    ]
)


def places(tree, path=()):
    """Every path in a JSON tree."""
    if path:
        yield path
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from places(tree[key], (*path, key))


def mutate(data, arrays, manifest):
    """A few random changes of a valid reply; the manifest comes back as text."""
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(["replace", "delete", "array", "drop array", "swap arrays"]))
        if kind in ("replace", "delete") and (paths := list(places(manifest))):
            path = data.draw(st.sampled_from(paths))
            (change(*path, to=data.draw(JUNK)) if kind == "replace" else drop(*path))(arrays, manifest)
        elif kind == "array" and arrays:
            index = data.draw(st.integers(0, len(arrays) - 1))
            if isinstance(arrays[index], np.ndarray) and arrays[index].dtype.kind in "fi":
                arrays[index] = data.draw(BROKEN_ARRAYS)(arrays[index])
        elif kind == "drop array" and arrays:
            del arrays[data.draw(st.integers(0, len(arrays) - 1))]
        elif kind == "swap arrays" and len(arrays) > 1:
            i, j = data.draw(st.integers(0, len(arrays) - 1)), data.draw(st.integers(0, len(arrays) - 1))
            arrays[i], arrays[j] = arrays[j], arrays[i]
    written = json.dumps(manifest)
    if data.draw(st.integers(0, 9)) == 0:
        cut = data.draw(st.integers(0, len(written)))
        written = written[:cut] + data.draw(st.text(max_size=5)) + written[cut:]
    return arrays, written


def assert_sound(reply, expected):
    """What an accepted reply promises, whatever was sent."""
    assert [tuple(w.shape) for w in reply.weights] == list(expected.weight_shapes)
    names = [p.name for p in reply.prompts]
    assert len(names) == len(set(names))
    assert set(names) <= set(expected.classes)
    assert all(math.isfinite(loss) for loss in reply.losses.values())
    tensors = list(reply.weights)
    for p in reply.prompts:
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
        assert tensor.numel() == 0 or tensor.abs().max() <= expected.max_magnitude**2


@settings(derandomize=True, max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_mutated_reply_is_refused_cleanly_or_is_sound(data):
    arrays, manifest, examples = sent(dtype=data.draw(st.sampled_from(["float16", "float32"])))
    with np.errstate(all="ignore"):
        arrays, written = mutate(data, arrays, manifest)
    expected = make_expected()
    try:
        got = decode(arrays, written, examples, expected)
    except BadReplyError as error:
        assert_presentable(error)
    else:
        assert_sound(got, expected)


@QUICK
@given(arrays=JUNK, metrics=JUNK | st.fixed_dictionaries({"manifest": JUNK}), examples=JUNK)
def test_no_junk_raises_anything_but_a_bad_reply(arrays, metrics, examples):
    with pytest.raises(BadReplyError):
        wire.decode_reply(arrays, metrics, examples, make_expected())
    with pytest.raises(BadReplyError):
        wire.decode_scores(metrics, examples, "site-0", 3, CLASSES)
    with pytest.raises(BadReplyError):
        wire.claimed_site(metrics, CLASSES)


# ------------------------------------------------------------------------------------------------ bytes


def npy(array=None, header=None):
    """Bytes of an array in npy format 1.0, with the header's text replaced if given."""
    file = io.BytesIO()
    np.save(file, np.zeros(3, np.float32) if array is None else array, allow_pickle=True)
    if header is None:
        return file.getvalue()
    written = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(written).to_bytes(2, "little") + written + bytes(12)


def header(shape="(3,)", descr="'<f4'"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


def zipped():
    file = io.BytesIO()
    np.savez_compressed(file, np.zeros(10**6))
    return file.getvalue()


HOSTILE_BYTES = {
    "nothing": (b"", "no readable npy header"),
    "not npy": (b"\x93NUMPX" + bytes(100), "no readable npy header"),
    "a pickle": (pickle.dumps([1]), "no readable npy header"),
    "a compressed archive": (zipped(), "no readable npy header"),
    "another format version": (npy().replace(b"NUMPY\x01", b"NUMPY\x03"), "no readable npy header"),
    "a long header": (npy(header=header() + " " * 60_000), "no readable npy header"),
    "a header nested deep": (npy(header="(" * 1000), "no readable npy header"),
    "a header that is code": (npy(header="__import__('os').getcwd()"), "no readable npy header"),
    "an object array": (npy(np.array([{}], dtype=object)), "has type 'object'"),
    "strings": (npy(np.array(["a"])), "has type '<U1'"),
    "records": (npy(header=header(descr="[('a', '<f4')]")), "has type"),
    "complex": (npy(np.zeros(2, complex)), "has type 'complex128'"),
    "big-endian": (npy(np.zeros(3, ">f4")), "has type '>f4'"),
    "truncated": (npy()[:-1], "declares 12 bytes and has 11"),
    "trailing bytes": (npy() + b"x", "declares 12 bytes and has 13"),
    "an exabyte": (
        npy(header=header("(10**6,)".replace("10**6", "1000000000000000000"))),
        "declares 4000000",
    ),
    "a product that overflows": (npy(header=header("(4294967296, 4294967296)")), "declares 7378"),
    "nothing of an endless axis": (npy(header=header("(0, 9223372036854775807, 8)"))[:-12], "declares shape"),
    "a negative axis": (npy(header=header("(-3,)")), r"declares shape \(-3,\)"),
    "a boolean axis": (npy(header=header("(True, 3)")), r"declares shape \(True, 3\)"),
    "a hundred axes": (npy(header=header("(" + "1," * 100 + "3)")), "declares shape"),
    "text": ("text", "is not bytes"),
}


@pytest.mark.parametrize("case", HOSTILE_BYTES)
def test_hostile_bytes_are_refused_with_their_reason(case):
    tensor, reason = HOSTILE_BYTES[case]
    with pytest.raises(BadReplyError, match=reason) as refused:
        wire.read_arrays(Parameters([npy(), tensor], "numpy.ndarray"))
    assert str(refused.value).startswith("array 1 ")
    assert len(str(refused.value)) <= 200


def test_declared_sizes_are_not_believed():
    bomb = npy(header=header("(2000000000,)"))
    start = time.perf_counter()
    with pytest.raises(BadReplyError, match="declares 8000000000 bytes and has 12"):
        wire.read_arrays(Parameters([bomb] * 4, "numpy.ndarray"))
    assert time.perf_counter() - start < 0.1


@pytest.mark.parametrize("parameters", [None, [], Parameters([], "torch"), Parameters(None, "numpy.ndarray")])
def test_what_is_no_list_of_numpy_arrays_is_refused(parameters):
    with pytest.raises(BadReplyError):
        wire.read_arrays(parameters)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float16).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(2.5, np.float32),
        np.zeros((0, 4), np.float32),
        np.array([1, 2]),
    ],
)
def test_arrays_are_read_as_flower_wrote_them(array):
    (got,) = wire.read_arrays(ndarrays_to_parameters([array]))
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert np.array_equal(got, array)


@QUICK
@given(data=st.data())
def test_bytes_with_random_changes_raise_nothing_else(data):
    tensor = bytearray(npy(np.arange(6, dtype=np.float32)))
    for _ in range(data.draw(st.integers(1, 4))):
        tensor[data.draw(st.integers(0, len(tensor) - 1))] = data.draw(st.integers(0, 255))
    tensor = bytes(tensor)[: data.draw(st.integers(0, 200))]
    try:
        wire.read_arrays(Parameters([tensor], "numpy.ndarray"))
    except BadReplyError as error:
        assert_presentable(error)


# ------------------------------------------------------------------------------------------------ the way down


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ([np.zeros((2, 2), np.float32)], "1 weights, expected 2"),
        ([np.zeros((2, 2), np.float32), np.zeros(3, np.float32)], r"weight 1: shape \(3,\), expected \(2,\)"),
        ([np.zeros((2, 2), np.float32), np.array([1, np.nan])], "weight 1: not finite"),
        ([np.zeros((2, 2), np.float32), np.array([1, 2])], "weight 1: type 'int64'"),
        (None, "not a list"),
    ],
)
def test_bad_weights_from_the_server_are_refused(arrays, reason):
    with pytest.raises(BadReplyError, match=reason):
        wire.decode_weights(arrays, [(2, 2), (2,)])


# ------------------------------------------------------------------------------------------------ evaluation


def score(clips=4, right=2, right5=3, cosine=1.5, loss=2.0):
    return ClassScores(clips=clips, right_at_1=right, right_at_5=right5, cosine=cosine, loss=loss)


def sent_scores():
    before = Scores({"dog": score(), "rain": score(6, 0, 6, -1.0, 0.0)})
    after = Scores({"dog": score(4, 4, 4), "rain": score(6, 3, 6)})
    return {"before": before, "after": after}


def test_scores_survive_the_way():
    metrics = wire.encode_scores("site-0", 3, sent_scores())
    assert wire.decode_scores(metrics, 10, "site-0", 3, CLASSES) == sent_scores()


def test_predictions_survive_the_way_and_add_up():
    predicted = score().model_copy(update={"predicted": {"dog": 3, "rain": 1}})
    metrics = wire.encode_scores("site-0", 3, {"after": Scores({"dog": predicted})})
    got = wire.decode_scores(metrics, 4, "site-0", 3, CLASSES, ["after"], confusion=True)["after"]
    merged = Scores.merge([got, got, Scores({"dog": score().model_copy(update={"predicted": {"cat": 4}})})])
    assert merged.classes["dog"].predicted == {"cat": 4, "dog": 6, "rain": 2}


def test_scores_give_figures_over_clips_not_over_sites():
    merged = Scores.merge([Scores({"dog": score(1, 1, 1, 1.0, 0.5)}), Scores({"dog": score(9, 0, 9, 4.0, 4.5)})])
    assert (merged.clips, merged.accuracy, merged.accuracy_at_5) == (10, 0.1, 1.0)
    assert (merged.cosine, merged.loss) == (0.5, 0.5)
    assert merged.class_accuracy == {"dog": 0.1}


def test_no_scores_have_no_figures():
    assert math.isnan(Scores.merge([]).accuracy)


@QUICK
@given(
    parts=st.lists(
        st.dictionaries(st.sampled_from(CLASSES), st.floats(-4, 4).map(lambda x: score(cosine=x, loss=x / 3))),
        min_size=1,
        max_size=8,
    ),
    order=st.randoms(),
)
def test_sums_over_sites_do_not_depend_on_their_order(parts, order):
    sites = [Scores(part) for part in parts]
    other = [Scores(dict(sorted(part.items(), reverse=True))) for part in parts]
    order.shuffle(other)
    one, two = Scores.merge(sites), Scores.merge(other)
    assert one == two
    assert list(one.classes) == list(two.classes)
    assert repr((one.accuracy, one.cosine, one.loss)) == repr((two.accuracy, two.cosine, two.loss))


def test_sites_at_the_limit_can_still_be_merged():
    scores = {"after": Scores({"dog": score(clips=10**9, loss=1e21)})}
    got = wire.decode_scores(wire.encode_scores("site-0", 3, scores), 10**9, "site-0", 3, CLASSES, models=("after",))
    assert Scores.merge([got["after"]] * 3).clips == 3 * 10**9


DOG_SCORE = ("models", "after", "dog")
HOSTILE_SCORES = {
    "another version": (change("schema_version", to=0), "schema version 0, this program has 1"),
    "another site": (change("site", to="site-1"), "reply of site 'site-1'"),
    "another round": (change("round_number", to=4), "reply to round 4"),
    "a model missing": (drop("models", "before"), "scores for models"),
    "a model too many": (change("models", "m" * 1000, to={}), "scores for models"),
    "unknown class": (change("models", "after", "../x", to=score().model_dump()), r"unknown class '../x'"),
    "predicted an unknown class": (change(*DOG_SCORE, "predicted", to={"../x": 4}), r"unknown class '../x'"),
    "more predictions than clips": (change(*DOG_SCORE, "predicted", to={"dog": 5}), "5 predictions"),
    "predictions against the hits": (change(*DOG_SCORE, "predicted", to={"rain": 4}), "None of them right"),
    "a negative number of predictions": (change(*DOG_SCORE, "predicted", to={"dog": -4}), "greater than"),
    "no clips": (change(*DOG_SCORE, "clips", to=0), "after.dog.clips: .*greater than"),
    "clips true": (change(*DOG_SCORE, "clips", to=True), "after.dog.clips: .*integer"),
    "too many clips": (change(*DOG_SCORE, "clips", to=10**10), "10000000000 clips, the limit"),
    "fewer at 5 than at 1": (change(*DOG_SCORE, "right_at_5", to=3), "4 right at 1, 3 at 5"),
    "more right than clips": (change(*DOG_SCORE, "right_at_5", to=5), "5 at 5, 4 clips"),
    "negative right": (change(*DOG_SCORE, "right_at_1", to=-1), "right_at_1: .*greater"),
    "right 2.0": (change(*DOG_SCORE, "right_at_1", to=2.0), "right_at_1: .*integer"),
    "cosine above one": (change(*DOG_SCORE, "cosine", to=4.1), "cosines of 4 clips cannot sum to 4.1"),
    "cosine below minus one": (change(*DOG_SCORE, "cosine", to=-4.1), "cannot sum to -4.1"),
    "cosine NaN": (change(*DOG_SCORE, "cosine", to=math.nan), "contains NaN"),
    "loss overflows": (text(lambda t: t.replace('"loss": 2.0', '"loss": 1e999')), "loss: .*finite"),
    "loss absurd": (change(*DOG_SCORE, "loss", to=-1e30), "losses of 4 clips sum to -1e"),
    "clips and examples differ": (change(*DOG_SCORE, "clips", to=5), "scored 11 clips, num_examples is 10"),
    "a class twice": (text(lambda t: t.replace('"dog"', '"rain"')), "key 'rain' twice"),
}


@pytest.mark.parametrize("case", HOSTILE_SCORES)
def test_hostile_scores_are_refused_with_their_reason(case):
    edit, reason = HOSTILE_SCORES[case]
    manifest = json.loads(wire.encode_scores("site-0", 3, sent_scores())["manifest"])
    _, manifest = edit([], manifest)
    written = manifest if isinstance(manifest, str) else json.dumps(manifest)
    with pytest.raises(BadReplyError, match=reason) as refused:
        wire.decode_scores({"manifest": written}, 10, "site-0", 3, CLASSES)
    assert_presentable(refused.value)


@QUICK
@given(data=st.data())
def test_mutated_scores_are_refused_cleanly_or_are_sound(data):
    manifest = json.loads(wire.encode_scores("site-0", 3, sent_scores())["manifest"])
    _, written = mutate(data, [], manifest)
    try:
        got = wire.decode_scores({"manifest": written}, 10, "site-0", 3, CLASSES)
    except BadReplyError as error:
        assert_presentable(error)
    else:
        assert got.keys() == {"before", "after"}
        for scores in got.values():
            assert 0 <= scores.accuracy <= scores.accuracy_at_5 <= 1
            assert abs(scores.cosine) <= 1.001
            assert math.isfinite(scores.loss)


@pytest.mark.parametrize("name", ["right_among", "right_calibrated"])
def test_figures_of_unseen_classes_are_checked_and_add_up(name):
    one, other = (Scores({"dog": score().model_copy(update={name: number})}) for number in (1, 2))
    assert getattr(Scores.merge([one, other]).classes["dog"], name) == 3
    assert Scores.merge([one]).of({"cat"}).classes == {}
