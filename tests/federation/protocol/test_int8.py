"""Weights as int8 differences: within half a step and half a byte; anything else that comes is refused."""

import json
import math
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.common import ndarrays_to_parameters
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.federation import protocol as wire
from fed_a2v.federation.protocol import InvalidReplyError
from fed_a2v.federation.protocol.int8 import STEPS, WEIGHT_BYTES, decode_differences, encode_differences
from tests.federation.protocol.helpers import SHAPES, decode, make_expected, make_reply
from tests.federation.protocol.hostile import assert_presentable, mutate
from tests.refusals import refused

LIMIT = 1e6


def received(seed=1):
    """The weights that a site has got in half precision."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float16) for shape in SHAPES]


def sent(reply=None, before=None):
    """A valid reply with int8 weights as (arrays, metrics, num_examples)."""
    reply = reply or make_reply()
    return *wire.encode_reply(reply, "float16", before or received()), reply.num_examples


def expected(**changes):
    return make_expected(**{"sent_weights": received(), **changes})


def steps_of(weights, before):
    for weight, start in zip(weights, before, strict=True):
        difference = weight.numpy().astype(np.float64) - start
        size = np.sqrt(np.square(difference).mean()) if difference.size else 0.0
        yield max(size / STEPS, np.abs(difference).max(initial=0.0) / 127)


@given(
    seed=st.integers(0, 2**32 - 1),
    shapes=st.lists(st.sampled_from([(), (0,), (1,), (7, 5), (2, 0), (3, 2, 4)]), min_size=1, max_size=4),
    scale=st.sampled_from([0.0, 1e-44, 1e-9, 1e-3, 1.0, 1e4]),
    power=st.sampled_from([0.0, 1.0, 5.0]),
)
def test_weights_come_back_within_half_a_step(seed, shapes, scale, power):
    rng = np.random.default_rng(seed)
    before = [np.asarray(rng.normal(size=shape), np.float16) for shape in shapes]
    draws = [rng.normal(size=shape) for shape in shapes]
    weights = [
        torch.from_numpy(np.asarray(start + scale * np.sign(draw) * np.abs(draw) ** power, np.float32))
        for start, draw in zip(before, draws, strict=True)
    ]
    got = decode_differences(encode_differences(weights, before), before, LIMIT)
    assert [(tensor.dtype, tensor.shape) for tensor in got] == [(torch.float32, tensor.shape) for tensor in weights]
    for tensor, weight, step in zip(got, weights, steps_of(weights, before), strict=True):
        error = (tensor.double() - weight.double()).abs().numpy().max(initial=0.0)
        assert error <= 0.501 * step + 1e-6 * weight.abs().numpy().max(initial=0.0)
        assert step > 0 or torch.equal(tensor, weight), "what is not trained stays as it is"


@pytest.mark.parametrize("kind", ["normal", "laplace", "signs", "uniform", "few", "one"])
def test_a_weight_takes_half_a_byte_whatever_it_was_trained_to(kind):
    rng, size = np.random.default_rng(0), 200_000
    differences = {
        "normal": rng.normal(size=size),
        "laplace": rng.laplace(size=size),
        "signs": rng.choice([-1.0, 1.0], size),
        "uniform": rng.uniform(-1, 1, size),
        "few": rng.normal(size=size) * (rng.random(size) < 0.01),
        "one": np.eye(1, size)[0],
    }[kind]
    weights = torch.from_numpy(differences.astype(np.float32))
    steps, packed = encode_differences([weights], [np.zeros(size, np.float16)])
    assert (steps.dtype, packed.dtype) == (np.float32, np.uint8)
    assert wire.payload_bytes([steps, packed]) <= WEIGHT_BYTES * size


def test_a_reply_survives_flowers_bytes_and_only_its_weights_are_rounded():
    reply = make_reply()
    parts, metrics = wire.pack_reply(reply, "float16", received())
    assert len(parts) == 2
    arrays = wire.read_arrays(ndarrays_to_parameters(parts), expected().max_arrays)
    got = wire.decode_reply(arrays, metrics, reply.num_examples, expected())
    arrays, metrics = wire.pack_reply(reply, "float16")
    arrays = wire.read_arrays(ndarrays_to_parameters(arrays), make_expected().max_arrays)
    whole = wire.decode_reply(arrays, metrics, reply.num_examples, make_expected())
    for one, other in zip(got.statistics, whole.statistics, strict=True):
        assert torch.equal(one.clip, other.clip)
        assert torch.equal(one.audio.means, other.audio.means)
    for weight, meant, step in zip(got.weights, reply.weights, steps_of(reply.weights, received()), strict=True):
        torch.testing.assert_close(weight, meant, rtol=0, atol=0.501 * step)


def test_a_site_that_trains_nothing_sends_no_weights():
    reply = replace(make_reply(task="register"), weights=[])
    arrays, metrics = wire.encode_reply(reply, "float16")
    assert wire.decode_reply(arrays, metrics, reply.num_examples, expected(task="register")).weights == []
    assert encode_differences([], []) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_have_diverged_are_refused_by_the_server(value):
    reply = make_reply()
    reply.weights[0][1, 1] = value
    arrays, metrics, examples = sent(reply)
    with refused(InvalidReplyError, "steps", "finite"):
        wire.decode_reply(arrays, metrics, examples, expected())


def test_the_size_of_decoded_weights_is_limited():
    arrays, metrics, examples = sent()
    with refused(InvalidReplyError, "aggregation.max_scale"):
        wire.decode_reply(arrays, metrics, examples, expected(max_weight_rms=0.1))


def test_differences_and_weights_do_not_pass_for_each_other():
    arrays, metrics, examples = sent()
    with refused(InvalidReplyError, "weights", 2, 3):
        wire.decode_reply(arrays, metrics, examples, make_expected())
    arrays, metrics = wire.encode_reply(make_reply(), "float16")
    with refused(InvalidReplyError, "weights", 3, 2):
        wire.decode_reply(arrays, metrics, examples, expected())


NUMBERS = sum(math.prod(shape) for shape in SHAPES)


def packed(data):
    return np.frombuffer(zlib.compress(data), np.uint8)


def edit(place, function):
    return lambda arrays: [function(array) if place == number else array for number, array in enumerate(arrays)]


HOSTILE = {
    "steps of another number of weights": (edit(0, lambda a: a[:2]), ("steps", (2,), (3,))),
    "steps that are integers": (edit(0, lambda a: a.astype(np.int64)), ("steps", "'int64'")),
    "a negative step": (edit(0, np.negative), ("steps",)),
    "a step that is none": (edit(0, lambda a: a * np.nan), ("steps", "nan")),
    "a huge step": (edit(0, lambda a: a + np.float32(1e7)), ("steps", "1e+07", "1e+06")),
    "steps that make huge weights": (edit(0, lambda a: a * 0 + np.float32(1e6)), ("weight 0", "1e+06")),
    "numbers that are not bytes": (edit(1, lambda a: a.astype(np.float32)), ("int8", "'float32'")),
    "a table of bytes": (edit(1, lambda a: a[None]), ("int8", "uint8")),
    "no bytes": (edit(1, lambda a: a[:0]), ("int8", NUMBERS)),
    "bytes that are not compressed": (edit(1, lambda a: np.zeros(NUMBERS, np.uint8)), ("int8", "zlib")),
    "an end that is cut off": (edit(1, lambda a: a[:-1]), ("int8", NUMBERS)),
    "a changed checksum": (edit(1, lambda a: np.append(a[:-1], a[-1] ^ 1).astype(np.uint8)), ("int8", "zlib")),
    "something behind": (edit(1, lambda a: np.append(a, np.uint8(0))), ("int8", NUMBERS)),
    "one number less": (edit(1, lambda a: packed(bytes(NUMBERS - 1))), ("int8", NUMBERS)),
    "one number more": (edit(1, lambda a: packed(bytes(NUMBERS + 1))), ("int8", NUMBERS)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_differences_are_refused_with_their_reason(case):
    change_arrays, named = HOSTILE[case]
    arrays, metrics, examples = sent()
    arrays = change_arrays(arrays[:2]) + arrays[2:]
    with refused(InvalidReplyError, *named) as caught:
        wire.decode_reply(arrays, metrics, examples, expected())
    assert_presentable(caught.value)


def test_no_more_is_decompressed_than_the_weights_have():
    bomb = packed(bytes(50_000_000))
    before = received()
    steps, _ = encode_differences([torch.zeros(shape) for shape in SHAPES], before)
    tracemalloc.start()
    try:
        with refused(InvalidReplyError, "int8", NUMBERS):
            decode_differences([steps, bomb], before, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@given(data=st.data())
def test_a_mutated_reply_is_refused_cleanly_or_is_sound(data):
    arrays, metrics, examples = sent()
    manifest = metrics["manifest"]
    if data.draw(st.booleans()):
        raw = bytearray(arrays[1].tobytes())
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        arrays[1] = np.frombuffer(bytes(raw), np.uint8)
    else:
        with np.errstate(all="ignore"):
            arrays, manifest = mutate(data, arrays, json.loads(manifest))
    try:
        got = decode(arrays, manifest, examples, expected())
    except InvalidReplyError as error:
        assert_presentable(error)
    else:
        assert [tuple(weight.shape) for weight in got.weights] == list(SHAPES)
        assert all(weight.isfinite().all() and weight.abs().max() <= LIMIT for weight in got.weights)
