"""Conversion to and from the arrays of Flower's aggregation functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from flwr.common import NDArrays
from torch import Tensor


def as_flower(sites: Iterable[Sequence[Tensor]]) -> list[tuple[NDArrays, int]]:
    """Each site's weights with the number of examples 1, so that all sites have the same weight."""
    return [([weight.cpu().float().numpy() for weight in weights], 1) for weights in sites]


def as_tensors(arrays: NDArrays) -> list[Tensor]:
    """Combined weights as float32 tensors; the data are copied."""
    return [torch.from_numpy(np.array(array, dtype=np.float32)) for array in arrays]
