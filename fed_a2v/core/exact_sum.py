"""A running sum without rounding errors, so that it does not depend on the order of what is added."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# float16 values are multiples of 2**-24, and float64 has 53 bits: below this magnitude their sums are exact in float64.
_EXACT = 2.0 ** (53 - 24)
_CHUNK = 1 << 15  # elements added at a time, which stay in the processor's cache


class ExactSum:
    """A weighted sum of lists of tensors, which are added one list after the other.

    Each element is the unevaluated sum of two float64 numbers, and the rounding error of every addition goes into the
    second (TwoSum, Knuth 1969). With 106 bits the sum of float16 or float32 weights is exact, and the result is the
    float64 number nearest to it, whatever the order. Sums of float16 are exact in one float64 number while they are
    below 2**29, and are then added up three times as fast.
    """

    def __init__(self) -> None:
        self._high: list[Tensor] = []
        self._low: list[Tensor] = []
        self._bound = 0.0  # on the magnitude of the sum; infinite after values that are no multiples of 2**-24

    def add(self, tensors: Sequence[Tensor], factor: float = 1) -> None:
        """Add `factor` times each tensor to the sum at its place; the tensors' shapes are those of the first call."""
        if not self._high:
            self._high = [torch.zeros(tensor.shape, dtype=torch.float64) for tensor in tensors]
        self._bound += abs(factor) * _largest(tensors) if factor == int(factor) else math.inf
        if self._bound <= _EXACT:
            for high, tensor in zip(self._high, tensors, strict=True):
                high.add_(tensor, alpha=factor)
            return
        self._low = self._low or [torch.zeros_like(high) for high in self._high]
        for whole in zip(self._high, self._low, tensors, strict=True):
            for high, low, values in zip(*(each.reshape(-1).split(_CHUNK) for each in whole), strict=True):
                addend = values.double() * factor
                total = high + addend
                added = total - high
                low += (high - (total - added)).add_(addend.sub_(added))
                high.copy_(total)

    def value(self) -> list[Tensor]:
        """The sum, float64."""
        if not self._low:
            return [high.clone() for high in self._high]
        return [high + low for high, low in zip(self._high, self._low, strict=True)]


def _largest(tensors: Sequence[Tensor]) -> float:
    """The largest magnitude of float16 values; infinite if a tensor is of another type."""
    if any(tensor.dtype != torch.float16 for tensor in tensors):
        return math.inf
    extremes = [torch.aminmax(tensor) for tensor in tensors if tensor.numel()]
    return max((max(-float(low), float(high)) for low, high in extremes), default=0.0)
