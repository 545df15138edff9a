"""Joins the arrays of a message into one array of bytes, as consecutive npy files, and splits it again.

Flower stores, announces, fetches and confirms each array of a message separately. Adapters and classes have dozens of
small arrays, for which that is most of the time of a deployed round; so a message has only one array of bytes, or
two.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Set
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.common import Parameters

from fed_a2v.federation.protocol.arrays import BYTES, COUNTS, FLOATS, Array
from fed_a2v.federation.protocol.errors import InvalidReplyError, show

_ALIGNMENT = 64  # bytes; the alignment of npy headers, so that arrays can be used without a copy
_SENT: Set[np.dtype[Any]] = {*FLOATS, COUNTS, BYTES}
_MAX_HEADER = 1024  # characters; numpy writes about 70
_PREFIX = 10  # bytes before the header: the magic string, the version, and the header's length as little-endian uint16
# Maximum number of byte arrays in a message: weights, and all other arrays. It is checked before any is read.
_MAX_PARTS = 2


def join_arrays(arrays: Iterable[Array]) -> Array:
    """Join arrays into one of bytes, (n,) uint8: each in npy format 1.0, at a multiple of 64 bytes."""
    parts: list[bytes | memoryview] = []
    for array in arrays:
        by_columns = array.flags.f_contiguous and not array.flags.c_contiguous
        header = _written_header(array.dtype, array.shape, by_columns)
        data = np.asarray(array.T if by_columns else array, order="C").data
        parts += [header, data, bytes(-(len(header) + array.nbytes) % _ALIGNMENT)]
    return np.frombuffer(b"".join(parts[:-1]), BYTES)


def split_arrays(joined: Iterable[Array], most: int) -> list[Array]:
    """The arrays that `join_arrays` joined; the sizes that they declare are checked.

    Each is a view of the received bytes, so no memory is allocated. Only the types that this program sends are read:
    little-endian float16, float32, float64, int64 and uint8. Object arrays, archives and truncated arrays are refused.

    Args:
        joined: one or more arrays of bytes.
        most: maximum number of arrays in all.

    Raises:
        InvalidReplyError: an array is invalid; the message names the first.
    """
    arrays: list[Array] = []
    for whole in joined:
        if type(whole) is not np.ndarray or whole.dtype != BYTES or whole.ndim != 1 or not whole.flags.c_contiguous:
            raise InvalidReplyError("a part of the message is not an array of bytes")
        place = 0
        while place < whole.size:
            if len(arrays) == most:
                raise InvalidReplyError(f"the message has more than {most} arrays, the limit")
            array, end = _read_npy(whole, place, f"array {len(arrays)}", _SENT)
            arrays.append(array)
            place = end if end == whole.size else end + -end % _ALIGNMENT
            if place > end and (place >= whole.size or whole[end:place].any()):
                raise InvalidReplyError(f"array {len(arrays) - 1} is followed by other bytes")
    return arrays


def read_arrays(parameters: Parameters, most: int) -> list[Array]:
    """The arrays in Flower's parameters; see `split_arrays`."""
    if not isinstance(parameters, Parameters) or not isinstance(parameters.tensors, list):
        raise InvalidReplyError("the reply has no list of arrays")
    if parameters.tensor_type != "numpy.ndarray":
        raise InvalidReplyError(f"arrays are {show(parameters.tensor_type)}, expected 'numpy.ndarray'")
    if len(parameters.tensors) > _MAX_PARTS:
        raise InvalidReplyError(f"the reply has {len(parameters.tensors)} parts, the limit is {_MAX_PARTS}")
    return split_arrays((_whole(tensor, number) for number, tensor in enumerate(parameters.tensors)), most)


def _whole(tensor: Any, number: int) -> Array:
    """The array of bytes in an npy file that Flower wrote."""
    what = f"message part {number}"
    if type(tensor) is not bytes:
        raise InvalidReplyError(f"{what} is not bytes")
    array, end = _read_npy(np.frombuffer(tensor, BYTES), 0, what, {BYTES})
    if end != len(tensor):
        raise InvalidReplyError(f"{what} is followed by other bytes")
    return array


def _read_npy(data: Array, start: int, what: str, types: Set[np.dtype[Any]]) -> tuple[Array, int]:
    """The array in the npy file that begins at `start`, as a view of `data`, and the end of the file."""
    try:
        first = start + _PREFIX
        length = int.from_bytes(data[first - 2 : first].tobytes(), "little")
        if length > _MAX_HEADER:
            raise ValueError("a long header")
        shape, by_columns, dtype = _read_header(data[start : first + length].tobytes())
    except Exception as error:  # the header is parsed as a Python literal: many kinds of error
        raise InvalidReplyError(f"{what} has no readable npy header") from error
    if dtype not in types:
        raise InvalidReplyError(f"{what} has type {show(str(dtype))}, expected {', '.join(sorted(map(str, types)))}")
    if any(type(size) is not int or size < 0 for size in shape):
        raise InvalidReplyError(f"{what} declares the invalid shape {show(shape)}")
    offset = first + length
    declared, present = math.prod(shape) * dtype.itemsize, data.size - offset
    if declared > present:
        raise InvalidReplyError(f"{what} declares {show(declared)} bytes and has {present}")
    try:
        array = np.ndarray(shape, dtype, buffer=data, offset=offset, order="F" if by_columns else "C")
    except Exception as error:  # e.g. too many axes, or an empty array with an axis beyond the address space
        raise InvalidReplyError(f"{what} declares the impossible shape {show(shape)}") from error
    return array, offset + declared


# Both are pure functions of their arguments, and the messages of a run repeat a few headers thousands of times.


@lru_cache(maxsize=256)
def _written_header(dtype: np.dtype[Any], shape: tuple[int, ...], by_columns: bool) -> bytes:
    """The first bytes of an array's npy file."""
    file = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": by_columns, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


@lru_cache(maxsize=256)
def _read_header(text: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of an array, from the first bytes of its npy file."""
    file = io.BytesIO(text)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("another version of the format")
    return np.lib.format.read_array_header_1_0(file, max_header_size=_MAX_HEADER)
