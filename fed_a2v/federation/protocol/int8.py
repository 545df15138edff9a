"""A site's weights as int8: the differences from the weights that it received, on a coarse grid, compressed.

The grid of a tensor has `STEPS` steps in the root mean square of its differences. Of all distributions with this root
mean square the normal one has the largest entropy, about log2(STEPS) + 2.05 bits; a Huffman code takes little more, so
a weight takes half a byte at most, however it was trained. Rounding is at most half a step and has no preferred sign.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fed_a2v.federation.protocol.arrays import BYTES, Array, read_floats
from fed_a2v.federation.protocol.errors import InvalidReplyError, show

# Steps of the grid in the root mean square of a tensor's differences.
STEPS = 4.0
_LARGEST = 127  # steps; the grid is coarser where a difference would need more
# Bytes of a weight in a message, at most, for estimates: 4.1 bits.
WEIGHT_BYTES = 0.52
# Arrays that take the place of all weights: the grids' steps, and the compressed numbers of steps.
ARRAYS = 2


def encode_differences(weights: Sequence[Tensor], received: Sequence[Array]) -> list[Array]:
    """The differences of weights from those that the site received.

    Args:
        weights: the trained weights.
        received: the weights as they were in the message, of the same shapes.

    Returns:
        (n,) float32 steps of the grids, 0 for a tensor that has not changed; and uint8, all tensors' int8 numbers of
        steps in order, compressed by zlib. The step of a tensor whose differences are not finite is not finite either,
        so that the server refuses it.
    """
    if not weights:
        return []
    steps = np.zeros(len(weights), np.float32)
    # Repetitions are too rare to look for: the Huffman code alone is as short, in a tenth of the time.
    packer = zlib.compressobj(memLevel=9, strategy=zlib.Z_HUFFMAN_ONLY)
    packed = []
    for place, (weight, before) in enumerate(zip(weights, received, strict=True)):
        change = weight.detach().to("cpu", torch.float32).numpy() - before.astype(np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            rms = math.sqrt(np.square(change, dtype=np.float64).mean()) if change.size else 0.0
            steps[place] = step = np.float32(max(rms / STEPS, np.abs(change).max(initial=0.0) / _LARGEST))
        if not (math.isfinite(step) and step > 0):
            change, step = np.zeros_like(change), np.float32(1)
        numbers = np.rint(change / step).clip(-_LARGEST, _LARGEST).astype(np.int8)
        packed.append(packer.compress(numbers.tobytes()))
    return [steps, np.frombuffer(b"".join([*packed, packer.flush()]), BYTES)]


def decode_differences(arrays: Sequence[Array], sent: Sequence[Array], max_magnitude: float) -> list[Tensor]:
    """The weights of a site, in float32, from an untrusted reply; no more is decompressed than they have.

    Args:
        arrays: the two arrays of `encode_differences`.
        sent: the weights as they were in the message to the site.
        max_magnitude: largest absolute value of a weight, and of a step.

    Raises:
        InvalidReplyError: a type, a size or a value is wrong.
    """
    steps = read_floats(arrays[0], (len(sent),), "steps of the weights", max_magnitude, min_value=0.0).float().numpy()
    numbers = _decompressed(arrays[1], sum(before.size for before in sent))
    weights, place = [], 0
    for position, (step, before) in enumerate(zip(steps, sent, strict=True)):
        weight = numbers[place : place + before.size].astype(np.float32).reshape(before.shape)
        place += before.size
        weight *= step
        weight += before
        weights.append(read_floats(weight, before.shape, f"weight {position}", max_magnitude, copy=False))
    return weights


def _decompressed(data: Array, size: int) -> Array:
    """(size,) int8 that the untrusted bytes have to be."""
    if data.dtype != BYTES or data.ndim != 1:
        raise InvalidReplyError(f"int8 weights: type {show(str(data.dtype))} and shape {show(data.shape)}")
    unpacker = zlib.decompressobj()
    try:
        # One more, so that the end of the data is read as well, and a longer one is noticed.
        numbers = unpacker.decompress(data.tobytes(), size + 1)
    except zlib.error as error:
        raise InvalidReplyError("int8 weights: not compressed by zlib") from error
    if len(numbers) != size or not unpacker.eof or unpacker.unused_data:
        raise InvalidReplyError(f"int8 weights: not of {size} bytes when decompressed")
    return np.frombuffer(numbers, np.int8)
