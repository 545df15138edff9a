"""torch files of checkpoints and generators, written atomically and read with torch's safe loading.

Each contains a digest of its content and a schema version. torch is imported on use: settings of a saved run are
compared before it is needed.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fed_a2v.errors import UserError
from fed_a2v.storage.files import replacing
from fed_a2v.storage.untrusted import check_archive

# Version of the layout of checkpoints and generator files.
SCHEMA = 5


class CheckpointError(UserError, ValueError):
    """A checkpoint is damaged, or does not fit the run that loads it."""


class DamagedError(CheckpointError):
    """A checkpoint differs from what was written: it is truncated or altered."""


def numbered_files(folder: Path, stem: str, suffix: str) -> list[tuple[int, Path]]:
    """The files `STEM_round_N.SUFFIX` in a folder as (N, path), highest N first."""
    pattern = re.compile(rf"{re.escape(stem)}_round_(\d+){re.escape(suffix)}")
    files = [(int(match[1]), path) for path in folder.glob("*") if (match := pattern.fullmatch(path.name))]
    return sorted(files, reverse=True)


def save_torch(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values so that `torch.load(path, weights_only=True)` can read them.

    Raises:
        TypeError: a value that safe loading would reject; the message names its place in `content`.
        OSError: the folder cannot be written.
    """
    import torch

    storable = _storable({**content, "schema": SCHEMA}, path.name)
    storable["digest"] = content_digest(storable)
    with replacing(path) as file:
        torch.save(storable, file)


def load_torch(path: Path) -> dict[str, Any]:
    """Read a file that `save_torch` wrote, with safe loading.

    Raises:
        DamagedError: its bytes or its content differ from what was written.
        CheckpointError: it is not a checkpoint, or has another schema version.
    """
    import torch

    try:
        # torch.load detects a truncated file but not a changed byte; the checksums of the zip format do.
        check_archive(path)
        with zipfile.ZipFile(path) as archive:
            damaged_entry = archive.testzip()
        if damaged_entry is not None:
            raise DamagedError(f"{path} is damaged (wrong checksum of {damaged_entry})")
        content = dict(torch.load(path, map_location="cpu", weights_only=True))
        # A crafted tensor can be a view that repeats a few bytes, and takes much memory as soon as it is copied. The
        # factor 2 allows for tensors that share storage in our own files.
        if tensor_bytes(content) > 2 * path.stat().st_size:
            raise DamagedError(f"{path} is damaged (its tensors are larger than the file)")
        stored, computed = content.pop("digest", None), content_digest(content)
    except (OSError, DamagedError):
        raise
    except Exception as error:  # a damaged file can make torch.load raise any type of error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedError(f"{path} is damaged ({reason})") from error
    if "schema" not in content:
        raise CheckpointError(f"{path} is not a checkpoint of this program")
    if content["schema"] != SCHEMA:
        raise CheckpointError(
            f"{path} has schema version {content['schema']}, this program reads {SCHEMA}; "
            "continue with the version that wrote it, or start again with resume=never"
        )
    # A file that was changed and packed again has the right checksums, but not the right digest.
    if stored != computed:
        raise DamagedError(f"{path} is damaged (its content differs from what was saved)")
    return content


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in a nested structure."""
    from torch import Tensor

    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, list | tuple) else 0


def content_digest(value: Any) -> str:
    """SHA-256 of a nested structure of tensors and plain values: their types, keys, order, shapes and bytes."""
    import torch

    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            digest.update(f"{{{len(value)}".encode())
            for key, item in value.items():
                add(key)
                add(item)
        elif isinstance(value, list | tuple):
            digest.update(f"{type(value).__name__}{len(value)}".encode())
            for item in value:
                add(item)
        else:
            digest.update(f"{type(value).__name__}{value!r}\n".encode("utf-8", "surrogatepass"))

    add(value)
    return digest.hexdigest()


def _storable(value: Any, where: str) -> Any:
    """A copy of `value` that safe loading can read: plain containers, plain values, and tensors on the CPU.

    Args:
        value: the value to be stored.
        where: its place in the file, for the message.

    Raises:
        TypeError: a value has another type; the message names its place.
    """
    from torch import Tensor

    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        # torch.save writes the whole storage of a view; a clone has only the view's own elements.
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
    if type(value) in (dict, OrderedDict) or (isinstance(value, Mapping) and not isinstance(value, dict)):
        return {_storable(key, where): _storable(item, f"{where}: {key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_storable(item, f"{where}[{index}]") for index, item in enumerate(value))
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    raise TypeError(
        f"{where}: a {type(value).__name__} cannot be stored for safe loading; use tensors and plain values"
    )
