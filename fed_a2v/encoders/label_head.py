"""The public label head of an encoder, whose directions make the public space of `share=statistics`.

The server calls it before any site sends anything; see `fed_a2v.core.public_space`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fed_a2v.config.sections.data import DatasetSettings, EncoderSettings, ProjectionSettings
from fed_a2v.errors import ConfigError
from fed_a2v.storage.npz import ArrayFileError, read_arrays

WEIGHT = "weight"


def head_weight(projection: ProjectionSettings, dataset: DatasetSettings, encoder: EncoderSettings) -> Tensor:
    """(K, Da) float32 weight of a head with K labels: that of `projection.path`, else of the encoder.

    Raises:
        ConfigError: the file has no such array, or the encoder has no label head.
    """
    if projection.path is None:
        raise ConfigError(
            f"projection=head: encoder={encoder.name} with dataset={dataset.name} has no label head; set "
            "projection.path to an npz file with its weight, or choose projection=random"
        )
    path = Path(projection.path).expanduser()
    try:
        weight = read_arrays(str(path), (WEIGHT,), ())[WEIGHT]
    except (ArrayFileError, OSError) as error:
        raise ConfigError(f"projection.path: {error}") from error
    if weight.ndim != 2 or weight.dtype.kind != "f" or not weight.size:
        raise ConfigError(
            f"projection.path={path}: weight is {weight.dtype} {weight.shape}, expected floats (labels, width)"
        )
    return torch.from_numpy(weight.astype("float32"))
