"""Targets as a file, for sites that have no text model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fed_a2v.config.schema import Settings
from fed_a2v.core.adapters import ClassPrompts
from fed_a2v.encoders.text import targets_for
from fed_a2v.storage.files import replacing


def write_targets(settings: Settings, classes: Sequence[str], path: str | Path) -> ClassPrompts:
    """Write the targets that `settings` describe into an `.npz` file that `targets=file targets.path=...` reads.

    The file has `category` (C,), `vectors` (C, Tc, Dc) and, where the adapters have a T5 side, `t5_vectors`
    (C, T, Dt), float32: to the last bit what was computed. It fits adapters of the same shapes.

    Args:
        settings: of the experiment.
        classes: the C class names.
        path: of the file; replaced in one step if it is there.

    Raises:
        TargetsError: see `load_targets`; so `ModelError`.
        OSError: the file cannot be written.
    """
    targets = targets_for(settings, classes)
    arrays = {"category": np.array(targets.names), "vectors": targets.clip.numpy()}
    if targets.t5 is not None:
        arrays["t5_vectors"] = targets.t5.numpy()
    with replacing(Path(path).expanduser().absolute()) as file:
        np.savez(file, allow_pickle=False, **arrays)
    return targets
