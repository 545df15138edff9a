"""Writing class prompts to a file: for sites without a text model (`fed-a2v targets`), and in a run's folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fed_a2v.core.adapters import ClassPrompts
from fed_a2v.storage.files import replacing


def save_targets(prompts: ClassPrompts, path: str | Path) -> None:
    """Write class prompts to an `.npz` file that `targets=file targets.path=...` reads.

    The file has `category` (C,), `vectors` (C, Tc, Dc) and, if the prompts have a T5 part, `t5_vectors` (C, T, Dt),
    float32, with the same bits as `prompts`. It fits adapters of the same shapes.

    Args:
        prompts: the class prompts, on any device.
        path: the file; replaced atomically if it exists.

    Raises:
        OSError: the file cannot be written.
    """
    arrays = {"category": np.array(prompts.names), "vectors": prompts.clip.cpu().numpy()}
    if prompts.t5 is not None:
        arrays["t5_vectors"] = prompts.t5.cpu().numpy()
    with replacing(Path(path).expanduser().absolute()) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
