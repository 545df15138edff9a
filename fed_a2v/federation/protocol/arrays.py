"""The arrays of a message: tensors as numpy arrays for sending, and untrusted arrays as checked tensors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fed_a2v.federation.protocol.errors import InvalidReplyError, as_invalid_reply, show

Array = NDArray[Any]
FloatType = Literal["float16", "float32"]

COUNTS = np.dtype("int64")
BYTES = np.dtype("uint8")
FLOATS = frozenset(np.dtype(name) for name in ("float16", "float32", "float64"))

_TORCH_TYPES = {"float16": torch.float16, "float32": torch.float32}


def encode_weights(tensors: Sequence[Tensor], dtype: FloatType) -> list[Array]:
    """Copies of weights as numpy arrays of `dtype`; a tensor that would overflow in `dtype` stays float32."""
    return [pack(tensor, dtype) for tensor in tensors]


@as_invalid_reply()
def decode_weights(arrays: Sequence[Array], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The weights that the server sent, as float32 copies.

    Raises:
        InvalidReplyError: the number of arrays, a shape or a type is wrong, or a value is not finite.
    """
    check_arrays(arrays)
    if len(arrays) != len(shapes):
        raise InvalidReplyError(f"{len(arrays)} weights, expected {len(shapes)}")
    return [
        read_floats(array, tuple(shape), f"weight {position}", math.inf, copy=False).to(torch.float32, copy=True)
        for position, (array, shape) in enumerate(zip(arrays, shapes, strict=True))
    ]


def payload_bytes(arrays: Iterable[Array]) -> int:
    """Bytes of the arrays' contents, without the npy headers (about 128 bytes each)."""
    return sum(array.nbytes for array in arrays)


def check_arrays(arrays: Any) -> None:
    """Check that `arrays` is a list of plain numpy arrays.

    Raises:
        InvalidReplyError: it is not.
    """
    # Not isinstance: masked arrays and matrices are subclasses of ndarray with other semantics.
    if not isinstance(arrays, list) or any(type(array) is not np.ndarray for array in arrays):
        raise InvalidReplyError("the reply is not a list of numpy arrays")


def read_floats(
    array: Array,
    shape: tuple[int, ...],
    name: str,
    max_magnitude: float,
    min_value: float | None = None,
    copy: bool = True,
) -> Tensor:
    """An untrusted array as a tensor, if it has the expected shape and all its values are finite and within the limits.

    float16 and float32 keep their type; float64 becomes float32.

    Args:
        array: the untrusted array.
        shape: the expected shape.
        name: name of the array, for the error message.
        max_magnitude: largest absolute value allowed.
        min_value: smallest value allowed; None: no such limit.
        copy: copy the data; False returns a view of a float16 or float32 array.

    Raises:
        InvalidReplyError: the type, the shape or a value is wrong.
    """
    if array.dtype not in FLOATS:
        raise InvalidReplyError(f"{name}: type {show(str(array.dtype))}, expected a float")
    if array.shape != shape:
        raise InvalidReplyError(f"{name}: shape {show(array.shape)}, expected {show(shape)}")
    tensor = torch.from_numpy(np.array(array, order="C")) if copy else _view(array)
    # A float64 value beyond the range of float32 becomes infinite and is refused below.
    tensor = tensor.float() if tensor.dtype == torch.float64 else tensor
    if tensor.numel() == 0:
        return tensor
    low, high = (float(value) for value in torch.aminmax(tensor))  # one pass; both are nan if any value is nan
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InvalidReplyError(f"{name}: not finite, {low:g} to {high:g}")
    if max(-low, high) > max_magnitude:
        raise InvalidReplyError(f"{name}: magnitude {max(-low, high):.3g}, the limit is {max_magnitude:g}")
    if min_value is not None and low < min_value:
        raise InvalidReplyError(f"{name}: smallest value {low:.3g}, expected at least {min_value:g}")
    return tensor


def _view(array: Array) -> Tensor:
    """A tensor in the memory of a received array, which no code writes to."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of read-only memory
        return torch.from_numpy(array)


def pack(tensor: Tensor, dtype: FloatType, *, keep_positive: bool = False) -> Array:
    """A copy of a tensor as a contiguous array of `dtype`, or of float32 if a value would overflow in `dtype`.

    With `keep_positive` the array is float32 also if a positive value would become zero in `dtype`.
    """
    tensor = tensor.detach()
    packed = tensor.to("cpu", _TORCH_TYPES[dtype], copy=True).contiguous()
    if dtype == "float16" and not _fits(tensor, packed, keep_positive):
        packed = tensor.to("cpu", torch.float32, copy=True).contiguous()
    array: Array = packed.numpy()
    return array


def _fits(tensor: Tensor, half: Tensor, keep_positive: bool) -> bool:
    """Whether no value overflows in float16 and, with `keep_positive`, none becomes zero."""
    if half.numel() == 0:
        return True
    low, high = (float(value) for value in torch.aminmax(half))
    overflows = math.isinf(low) or math.isinf(high)
    vanishes = keep_positive and int(torch.count_nonzero(half)) != int(torch.count_nonzero(tensor))
    return not overflows and not vanishes
