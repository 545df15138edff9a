"""From the sites' adapters to one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from flwr.common import NDArrays
from flwr.server.strategy.aggregate import aggregate
from torch import Tensor

from fed_a2v.federation.wire import SiteReply


def aggregate_adapters(replies: Sequence[SiteReply], mode: str) -> list[Tensor] | None:
    """Combine the sites' weights.

    Args:
        replies: good replies, in a fixed order (sums of floats depend on it).
        mode: `avg`: equal weights; `weighted`: by training clips; `none`: keep the old adapters.

    Returns:
        The combined weights, or None to keep the old ones.

    Raises:
        ValueError: unknown mode.
    """
    if mode == "none":
        return None
    if mode not in ("avg", "weighted"):
        raise ValueError(f"aggregation.mode={mode!r}: choose avg, weighted or none")
    results: list[tuple[NDArrays, int]] = [
        ([weight.cpu().numpy() for weight in reply.weights], reply.num_examples if mode == "weighted" else 1)
        for reply in replies
    ]
    return [torch.from_numpy(np.asarray(array, dtype=np.float32)) for array in aggregate(results)]
