"""The vectors of secure aggregation (`secure_sums=secagg`): what a site hands to SecAgg+, and what its total means.

A site divides its sums by public scales, so that every entry is between -1 and 1; the client mod quantises and masks
them. The server multiplies the total by the same scales. `client/local_training.py` makes the vectors,
`server/secure_exchange.py` adds them up.

Shapes: C classes; R columns of the public space; n entries of a vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fed_a2v.core.class_sums import ClassSums, triangle_size
from fed_a2v.core.statistics import ClassStatistics
from fed_a2v.federation.protocol.errors import InvalidReplyError

MaskedTask = Literal["masked_centre", "masked_sums"]
MASKED_TASKS = ("masked_centre", "masked_sums")

# Parameters of SecAgg+ that are the same in every run. Entries of a vector are clipped to +-CLIPPING.
MODULUS = 2**32
CLIPPING = 1.0
# Every site claims this number of examples, so that the weighted mean of SecAgg+ is the plain one.
WEIGHT = 1
# Rounding of float32 may exceed the bound that unit rows give.
_TOLERANCE = 1e-5


def centre_scales(clips: Iterable[int], noise: float = 0.0) -> Tensor:
    """(1,) float32 scale of the sum of a site's rows: no entry is larger than the number of its clips.

    Args:
        clips: clips of each site.
        noise: largest privacy noise on an entry of one site's vector.
    """
    return torch.tensor([max([1, *clips]) + noise], dtype=torch.float32)


def sums_scales(
    sites: Iterable[Sequence[ClassStatistics]], classes: Sequence[str], noise: tuple[float, float] = (0.0, 0.0)
) -> Tensor:
    """(C + 1,) float32 scales of each class sum, and of the scatter: the largest number of clips of any site.

    Args:
        sites: the classes of each site, with their numbers of clips.
        classes: names of all classes.
        noise: largest privacy noise on an entry of one site's class sums, and of its scatter.
    """
    largest, total = dict.fromkeys(classes, 1), 1
    for statistics in sites:
        for each in statistics:
            largest[each.name] = max(largest[each.name], each.count)
        total = max(total, sum(each.count for each in statistics))
    of_scatter = total + noise[1] if math.isfinite(noise[1]) else 1.0  # infinite: there is no scatter
    return torch.tensor([*(count + noise[0] for count in largest.values()), of_scatter], dtype=torch.float32)


def entry_scales(task: MaskedTask, scales: Tensor, columns: int, scatter: bool = True) -> Tensor:
    """(n,) float64 scale of each entry of a task's vector, with or without a scatter."""
    scales = scales.double()
    if task == "masked_centre":
        return scales.expand(columns)
    triangle = triangle_size(columns) if scatter else 0
    return torch.cat([scales[:-1].repeat_interleave(columns), scales[-1:].expand(triangle)])


def sums_vector(sums: ClassSums) -> Tensor:
    """(n,) float64: all class sums, then the scatter."""
    return torch.cat([sums.sums.flatten(), sums.scatter])


def read_sums(vector: Tensor, counts: Tensor, columns: int) -> ClassSums:
    """The sums in a vector of `sums_vector`, with (C,) counts that travel apart from it."""
    split = len(counts) * columns
    return ClassSums(counts, vector[:split].reshape(len(counts), columns), vector[split:])


def scaled(vector: Tensor, scales: Tensor, clip: bool = False) -> NDArray[np.float64]:
    """(n,) float64 entries for quantisation, from -1 to 1.

    Args:
        vector: (n,) sums.
        scales: (n,) scales.
        clip: clip larger entries, under privacy noise: a refusal would tell the server of one site's vector, in which
            there is only a part of the noise of the total.

    Raises:
        InvalidReplyError: an entry is larger than its scale, so that quantisation would clip it.
    """
    entries: NDArray[np.float64] = (vector / scales).numpy()
    if clip:
        return np.clip(np.nan_to_num(entries), -CLIPPING, CLIPPING)
    if not np.all(np.abs(entries) <= CLIPPING + _TOLERANCE):  # False for NaN
        raise InvalidReplyError("the server's scales are smaller than this site's sums: secure_sums would clip them")
    return entries


def quantisation_step(bits: int) -> float:
    """Difference of two neighbouring quantised entries, before scaling; a site's error is below it."""
    return float(2 * CLIPPING / 2**bits)


def quantised_mean(vectors: Sequence[NDArray[Any]], bits: int) -> NDArray[np.float64]:
    """The mean of vectors that are already quantised, with the arithmetic of Flower's workflow."""
    from flwr.common.secure_aggregation.quantization import dequantize

    total: NDArray[np.int64] = np.stack(vectors).sum(axis=0, dtype=np.int64)
    (mean,) = dequantize([total], CLIPPING, 2**bits)
    mean += -(len(vectors) - 1) * CLIPPING
    mean *= 2**bits / (len(vectors) * 2**bits)
    return mean
