"""Arrays arrive as they were sent, and no bytes of a stranger do any harm."""

import io
import pickle
import time

import numpy as np
import pytest
import torch
from flwr.common import Parameters, ndarrays_to_parameters
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.federation import wire
from fed_a2v.federation.wire import BadReplyError

from .helpers import QUICK
from .hostile import assert_presentable


def test_weights_may_require_grad_and_be_transposed_or_bfloat16():
    weight = torch.randn(3, 4, requires_grad=True)
    arrays = wire.encode_weights([weight.t(), torch.ones(2, dtype=torch.bfloat16)], "float16")
    assert [a.shape for a in arrays] == [(4, 3), (2,)]
    back = wire.decode_weights(arrays, [(4, 3), (2,)])
    torch.testing.assert_close(back[0], weight.detach().t(), rtol=1e-3, atol=1e-3)


def test_payload_bytes_counts_what_the_arrays_hold():
    weights = [torch.zeros(10, 10), torch.zeros(5)]
    assert wire.payload_bytes(wire.encode_weights(weights, "float16")) == 210
    assert wire.payload_bytes(wire.encode_weights(weights, "float32")) == 420


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
