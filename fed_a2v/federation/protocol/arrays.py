"""The arrays of a message: tensors packed for the wire, and arrays of strangers read back as tensors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fed_a2v.federation.protocol.errors import InvalidReplyError, only_bad_reply, show

Array = NDArray[Any]
FloatType = Literal["float16", "float32"]

COUNTS = np.dtype("int64")
FLOATS = frozenset(np.dtype(name) for name in ("float16", "float32", "float64"))

_TORCH_TYPES = {"float16": torch.float16, "float32": torch.float32}


def encode_weights(tensors: Sequence[Tensor], dtype: FloatType) -> list[Array]:
    """Copies of weights as numpy arrays of `dtype`; one that would overflow there stays in float32."""
    return [pack(tensor, dtype) for tensor in tensors]


@only_bad_reply()
def decode_weights(arrays: Sequence[Array], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The weights that the server sent, as float32 copies.

    Raises:
        InvalidReplyError: their number, a shape or a type differs, or a value is not finite.
    """
    check_arrays(arrays)
    if len(arrays) != len(shapes):
        raise InvalidReplyError(f"{len(arrays)} weights, expected {len(shapes)}")
    return [
        read_floats(array, tuple(shape), f"weight {position}", limit=math.inf).float()
        for position, (array, shape) in enumerate(zip(arrays, shapes, strict=True))
    ]


def payload_bytes(arrays: Iterable[Array]) -> int:
    """Bytes of the arrays' contents, without the 128 or so of each one's header."""
    return sum(array.nbytes for array in arrays)


def check_arrays(arrays: Any) -> None:
    """Check that this is a list of plain numpy arrays.

    Raises:
        InvalidReplyError: it is not.
    """
    # Not isinstance: a masked array or a matrix is an ndarray that behaves otherwise.
    if not isinstance(arrays, list) or any(type(array) is not np.ndarray for array in arrays):
        raise InvalidReplyError("the reply is not a list of numpy arrays")


def read_floats(
    array: Array, shape: tuple[int, ...], what: str, limit: float, lowest: float | None = None, copy: bool = True
) -> Tensor:
    """`array` as a tensor, if it has this shape and all its values are finite and within the limits.

    float16 and float32 stay as they are; of those `copy=False` gives a view. float64 becomes float32.

    Args:
        array: from a stranger.
        shape: that it must have.
        what: the array is, for the reason.
        limit: of the values' magnitude.
        lowest: value allowed; None: any.
        copy: whether the tensor has memory of its own.

    Raises:
        InvalidReplyError: its type, shape or a value is not as it should be.
    """
    if array.dtype not in FLOATS:
        raise InvalidReplyError(f"{what}: type {show(str(array.dtype))}, expected a float")
    if array.shape != shape:
        raise InvalidReplyError(f"{what}: shape {show(array.shape)}, expected {show(shape)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of read-only memory: nobody writes into a view
        tensor = torch.from_numpy(np.array(array, order="C") if copy else array)
    # A float64 beyond float32 becomes infinite, and is refused below.
    tensor = tensor.float() if tensor.dtype == torch.float64 else tensor
    if tensor.numel() == 0:
        return tensor
    low, high = (float(value) for value in torch.aminmax(tensor))  # one pass; both are nan if any value is
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InvalidReplyError(f"{what}: not finite, {low:g} to {high:g}")
    if max(-low, high) > limit:
        raise InvalidReplyError(f"{what}: magnitude {max(-low, high):.3g}, the limit is {limit:g}")
    if lowest is not None and low < lowest:
        raise InvalidReplyError(f"{what}: smallest value {low:.3g}, expected at least {lowest:g}")
    return tensor


def pack(tensor: Tensor, dtype: FloatType, *, keep_positive: bool = False) -> Array:
    """A copy of a tensor as a contiguous array of `dtype`, or of float32 where `dtype` would not hold it.

    With `keep_positive`, `dtype` does not hold positive values that would become zero either.
    """
    tensor = tensor.detach()
    packed = tensor.to("cpu", _TORCH_TYPES[dtype], copy=True).contiguous()
    if dtype == "float16" and not _fits(tensor, packed, keep_positive):
        packed = tensor.to("cpu", torch.float32, copy=True).contiguous()
    array: Array = packed.numpy()
    return array


def _fits(tensor: Tensor, half: Tensor, keep_positive: bool) -> bool:
    if half.numel() == 0:
        return True
    low, high = (float(value) for value in torch.aminmax(half))
    overflows = math.isinf(low) or math.isinf(high)
    vanishes = keep_positive and int(torch.count_nonzero(half)) != int(torch.count_nonzero(tensor))
    return not overflows and not vanishes
