"""Files of torch, written whole or not at all, and read without unpickling anything.

Each carries a digest of its content and the version of its layout.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fed_a2v.errors import UserError
from fed_a2v.storage.files import replacing
from fed_a2v.storage.untrusted import check_archive

# Of the layout of saved states and generators.
SCHEMA = 4


class CheckpointError(UserError, ValueError):
    """A checkpoint is damaged, or does not fit what is to be done with it."""


class DamagedError(CheckpointError):
    """A checkpoint is not what was written: cut short, or changed since."""


def numbered_files(folder: Path, stem: str, suffix: str) -> list[tuple[int, Path]]:
    """The files `STEM_round_N.SUFFIX` in a folder, highest N first."""
    pattern = re.compile(rf"{re.escape(stem)}_round_(\d+){re.escape(suffix)}")
    found = [(int(match[1]), path) for path in folder.glob("*") if (match := pattern.fullmatch(path.name))]
    return sorted(found, reverse=True)


def save_torch(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values so that `torch.load(path)`, safe loading and all, reads them.

    Raises:
        TypeError: a value that safe loading would refuse; the message names where it stands.
        OSError: the folder cannot be written.
    """
    storable = _storable({**content, "schema": SCHEMA}, path.name)
    storable["digest"] = content_digest(storable)
    with replacing(path) as file:
        torch.save(storable, file)


def load_torch(path: Path) -> dict[str, Any]:
    """Read a file that `save_torch` wrote, with safe loading.

    Raises:
        DamagedError: its bytes or its content are not what was written.
        CheckpointError: it is no checkpoint, or one of another schema version.
    """
    try:
        # torch.load notices a file cut short but not a changed byte: the zip format's checksums do.
        check_archive(path)
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise DamagedError(f"{path} is damaged (wrong checksum of {broken})")
        content = dict(torch.load(path, map_location="cpu", weights_only=True))
        # A view may repeat a few bytes without end, and takes memory as soon as anybody copies it. Ours share some.
        if tensor_bytes(content) > 2 * path.stat().st_size:
            raise DamagedError(f"{path} is damaged (its tensors are larger than the file)")
        digest, found = content.pop("digest", None), content_digest(content)
    except (OSError, DamagedError):
        raise
    except Exception as error:  # a damaged file may break the reader at any step
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedError(f"{path} is damaged ({reason})") from error
    if "schema" not in content:
        raise CheckpointError(f"{path} is no checkpoint of this program")
    if content["schema"] != SCHEMA:
        raise CheckpointError(
            f"{path} has schema version {content['schema']}, this program reads {SCHEMA}; "
            "go on with the version that wrote it, or start anew with resume=never"
        )
    # A file that was changed and packed anew has the right checksums, but not the right digest.
    if digest != found:
        raise DamagedError(f"{path} is damaged (its content is not what was saved)")
    return content


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in a nested structure."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, list | tuple) else 0


def content_digest(value: Any) -> str:
    """SHA-256 of a nested structure of tensors and plain values: of types, keys, order, shapes and all bytes."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
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
    """A copy of `value` that safe loading reads back: plain containers, values and tensors on the CPU.

    Raises:
        TypeError: names the place of a value of another type.
    """
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        # A view would drag the whole storage it looks into onto the disk.
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
