"""Writing class prompts to a file, for sites without a text model: `fed-a2v targets`, read with targets=file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fed_a2v.config.schema import Settings
from fed_a2v.core.adapters import ClassPrompts
from fed_a2v.encoders.text import targets_for
from fed_a2v.storage.files import replacing


def write_targets(settings: Settings, classes: Sequence[str], path: str | Path) -> ClassPrompts:
    """Compute the class prompts that `settings` describe, and write them to a file; see `save_targets`.

    Args:
        settings: settings of the experiment.
        classes: the C class names.
        path: the file; replaced atomically if it exists.

    Raises:
        TargetsError, ModelError: see `load_targets`.
        OSError: the file cannot be written.
    """
    prompts = targets_for(settings, classes)
    save_targets(prompts, Path(path).expanduser().absolute())
    return prompts


def save_targets(prompts: ClassPrompts, path: Path) -> None:
    """Write class prompts to an `.npz` file that `targets=file targets.path=...` reads.

    The file has `category` (C,), `vectors` (C, Tc, Dc) and, if the prompts have a T5 part, `t5_vectors` (C, T, Dt),
    float32, with the same bits as `prompts`. It fits adapters of the same shapes.

    Raises:
        OSError: the file cannot be written.
    """
    arrays = {"category": np.array(prompts.names), "vectors": prompts.clip.cpu().numpy()}
    if prompts.t5 is not None:
        arrays["t5_vectors"] = prompts.t5.cpu().numpy()
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **arrays)
