"""Arrays are unchanged by joining and splitting, and no untrusted bytes do harm."""

import io
import pickle
import tracemalloc

import numpy as np
import pytest
from flwr.common import Parameters, ndarrays_to_parameters
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from fed_a2v.federation import protocol as wire
from fed_a2v.federation.protocol import InvalidReplyError, join_arrays, packing, read_arrays
from tests.federation.protocol.hostile import assert_presentable
from tests.refusals import refused


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
    "nothing": (b"", ("npy",)),
    "not npy": (b"\x93NUMPX" + bytes(100), ("npy",)),
    "a pickle": (pickle.dumps([1]), ("npy",)),
    "a compressed archive": (zipped(), ("npy",)),
    "another format version": (npy().replace(b"NUMPY\x01", b"NUMPY\x03"), ("npy",)),
    "a long header": (npy(header=header() + " " * 60_000), ("npy",)),
    "a header nested deep": (npy(header="(" * 1000), ("npy",)),
    "a header that is code": (npy(header="__import__('os').getcwd()"), ("npy",)),
    "an object array": (npy(np.array([{}], dtype=object)), ("'object'",)),
    "strings": (npy(np.array(["a"])), ("'<U1'",)),
    "records": (npy(header=header(descr="[('a', '<f4')]")), ("('a', '<f4')",)),
    "complex": (npy(np.zeros(2, complex)), ("'complex128'",)),
    "big-endian": (npy(np.zeros(3, ">f4")), ("'>f4'",)),
    "truncated": (npy()[:-1], (12, 11)),
    "trailing bytes": (npy() + b"x", ()),
    "trailing zeros": (npy() + bytes(3), ()),
    "an exabyte": (npy(header=header(f"({10**18},)")), (4 * 10**18,)),
    "a product that overflows": (npy(header=header("(4294967296, 4294967296)")), (2**66,)),
    "nothing of an endless axis": (
        npy(header=header("(0, 9223372036854775807, 8)"))[:-12],
        ("(0, 9223372036854775807, 8)",),
    ),
    "a negative axis": (npy(header=header("(-3,)")), ("(-3,)",)),
    "a boolean axis": (npy(header=header("(True, 3)")), ("(True, 3)",)),
    "a hundred axes": (npy(header=header("(" + "1," * 100 + "3)")), ("(1, 1, 1, ",)),
    "an array of int8": (npy(np.zeros(3, np.int8)), ("'int8'",)),
}


def joined(*files):
    """Consecutive files, as `join_arrays` writes them."""
    content = b"".join(file + bytes(-len(file) % 64) for file in files[:-1]) + files[-1]
    return np.frombuffer(content, np.uint8)


def received(*parts):
    return Parameters(list(parts), "numpy.ndarray")


@pytest.mark.parametrize("case", sorted(HOSTILE_BYTES.keys() - {"nothing"}))
def test_hostile_bytes_are_refused_with_their_reason(case):
    tensor, named = HOSTILE_BYTES[case]
    with refused(InvalidReplyError, "array 1", *named) as caught:
        wire.read_arrays(received(npy(joined(npy(), tensor))), 2)
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize("case", HOSTILE_BYTES)
def test_hostile_parts_of_a_message_are_refused_with_their_reason(case):
    tensor, _ = HOSTILE_BYTES[case]
    with refused(InvalidReplyError, "message part 1") as caught:
        wire.read_arrays(received(npy(joined(npy())), tensor), 2)
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize("part", ["text", None, bytearray(100)])
def test_what_is_not_bytes_is_refused(part):
    with refused(InvalidReplyError, "message part 0", "bytes"):
        wire.read_arrays(received(part), 2)


@pytest.mark.parametrize("whole", [np.zeros((2, 64), np.uint8), np.zeros(3, np.float32), np.zeros(128, np.uint8)[::2]])
def test_what_is_not_one_array_of_bytes_is_refused(whole):
    with refused(InvalidReplyError, "bytes"):
        wire.split_arrays([whole], 2)


def test_declared_sizes_are_checked():
    bomb = npy(header=header("(2000000000,)"))
    tracemalloc.start()
    with refused(InvalidReplyError, "array 0", 8000000000, 12):
        wire.read_arrays(received(npy(joined(bomb)), bomb), 100)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**20


def test_no_more_than_the_maximum_number_of_arrays_is_read(monkeypatch):
    read, looked_at = packing._read_npy, []
    monkeypatch.setattr(packing, "_read_npy", lambda *given: looked_at.append(given) or read(*given))
    many = npy(joined(*[npy(np.zeros(0, np.float32))] * 100_000))
    with refused(InvalidReplyError, "arrays", 5):
        wire.read_arrays(received(many), 5)
    assert len(looked_at) <= 1 + 5
    with refused(InvalidReplyError, "arrays", 2):
        wire.read_arrays(received(*[npy(joined(npy(), npy()))] * 2), 2)


def test_bytes_between_two_arrays_must_be_zero_padding():
    hidden = bytearray(joined(npy(), npy()).tobytes())
    hidden[len(npy()) + 5] = 1
    with refused(InvalidReplyError, "array 0"):
        wire.split_arrays([np.frombuffer(bytes(hidden), np.uint8)], 2)


@pytest.mark.parametrize("parameters", [None, [], Parameters([], "torch"), Parameters(None, "numpy.ndarray")])
def test_what_is_no_list_of_numpy_arrays_is_refused(parameters):
    with pytest.raises(InvalidReplyError):
        wire.read_arrays(parameters, 2)


ARRAYS = arrays_of.arrays(
    st.sampled_from([np.float16, np.float32, np.float64, np.int64, np.uint8]),
    arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


@given(parts=st.lists(st.lists(ARRAYS, max_size=5), max_size=2))
def test_arrays_are_read_as_they_were_joined(parts):
    parameters = ndarrays_to_parameters([wire.join_arrays(part) for part in parts])
    sent = [array for part in parts for array in part]
    got = wire.read_arrays(parameters, len(sent))
    assert [(array.shape, array.dtype, array.tobytes()) for array in got] == [
        (array.shape, array.dtype, array.tobytes()) for array in sent
    ]


def test_an_array_in_column_order_stays_in_column_order():
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    (got,) = wire.split_arrays([wire.join_arrays([array])], 1)
    assert got.flags.f_contiguous
    assert np.array_equal(got, array)


def test_arrays_are_aligned_views_of_the_received_bytes():
    sent = [np.ones(3, np.float16), np.ones((5, 7), np.float32), np.arange(3)]
    whole = wire.join_arrays(sent)
    got = wire.split_arrays([whole], 3)
    assert all(np.shares_memory(array, whole) and array.flags.aligned for array in got)
    received = wire.read_arrays(ndarrays_to_parameters([whole]), 3)
    assert all(not array.flags.owndata and not array.flags.writeable and array.flags.aligned for array in received)


@given(data=st.data())
def test_bytes_with_random_changes_raise_nothing_else(data):
    tensor = bytearray(npy(joined(npy(np.arange(6, dtype=np.float32)), npy(np.arange(2)))))
    for _ in range(data.draw(st.integers(1, 4))):
        tensor[data.draw(st.integers(0, len(tensor) - 1))] = data.draw(st.integers(0, 255))
    tensor = bytes(tensor)[: data.draw(st.integers(0, len(tensor) + 10))]
    try:
        wire.read_arrays(received(tensor), 2)
    except InvalidReplyError as error:
        assert_presentable(error)


def test_parts_are_counted_before_any_is_read(monkeypatch):
    (part,) = ndarrays_to_parameters([join_arrays([])]).tensors
    monkeypatch.setattr(packing, "_whole", None)
    with refused(InvalidReplyError, 100_000, 2):
        read_arrays(Parameters([part] * 100_000, "numpy.ndarray"), 5)
