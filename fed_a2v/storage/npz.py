"""Reading named arrays from `.npz` files that users or other programs wrote: embeddings, class prompts.

Nothing is unpickled, and a malformed file raises one type of error.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fed_a2v.errors import UserError
from fed_a2v.storage.untrusted import check_archive

Array = NDArray[Any]


class ArrayFileError(UserError, ValueError):
    """An array file is missing or malformed, or lacks a required array."""


def read_arrays(
    path: str | Path,
    required: Collection[str] = (),
    optional: Collection[str] = (),
    most: int | Literal["file"] | None = None,
) -> dict[str, Array]:
    """Read the arrays named in `required`, and those in `optional` that exist; other arrays are not read.

    Args:
        path: the file.
        required, optional: names of arrays.
        most: limit of the bytes of all arrays together, or "file": at most the size of the file, which holds for
            what numpy.savez writes; default: no limit.

    Raises:
        ArrayFileError: the file is missing or not an `.npz`, a required array is missing, an array contains Python
            objects, or the arrays are larger than `most`.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ArrayFileError(f"{path}: no such file")
    try:
        if most is not None:
            check_archive(path, None if most == "file" else most)
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ArrayFileError(f"{path} contains one array without a name; save it with numpy.savez")
        with file:
            missing = [name for name in required if name not in file]
            if missing:
                raise ArrayFileError(
                    f"{path} has no {' and no '.join(missing)}; it has {', '.join(sorted(file)) or 'nothing'}"
                )
            return {name: _array(file, name, path) for name in (*required, *optional) if name in file}
    except ArrayFileError:
        raise
    # What numpy, zipfile and zlib raise on malformed bytes.
    except (
        OSError, EOFError, ValueError, KeyError, TypeError, SyntaxError, OverflowError, MemoryError, RuntimeError,
        NotImplementedError, AttributeError, struct.error, zlib.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise ArrayFileError(f"{path} is not a readable .npz of plain arrays: {error}") from error


def _array(file: np.lib.npyio.NpzFile, name: str, path: Path) -> Array:
    try:
        return np.asarray(file[name])
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        raise ArrayFileError(
            f"{path}: {name} contains Python objects (pandas and ragged lists produce them), which are not unpickled; "
            f"save {name}.astype(str) for names, {name}.astype(int) for integers, numpy.stack({name}) for vectors"
        ) from error


def as_names(values: Array, what: str) -> list[str]:
    """The strings of a one-dimensional string array.

    Raises:
        ArrayFileError: `values`, called `what` in the message, has another type or shape, or an empty name.
    """
    if values.ndim != 1 or values.dtype.kind != "U":
        raise ArrayFileError(
            f"{what} is {values.dtype} of shape {values.shape}; it must have one string per row: save its .astype(str)"
        )
    names = [str(value) for value in values]
    if not all(name.strip() for name in names):
        raise ArrayFileError(f"{what} has an empty name in row {[bool(n.strip()) for n in names].index(False)}")
    return names


def as_floats(values: Array, what: str, dimensions: Collection[int]) -> NDArray[np.float32]:
    """Convert `values` to float32.

    Args:
        values: the array.
        what: its name in the message.
        dimensions: allowed numbers of dimensions.

    Raises:
        ArrayFileError: `values` is not numeric, is empty, or has another number of dimensions.
    """
    if values.dtype.kind not in "fiu" or values.ndim not in dimensions or 0 in values.shape:
        allowed = " or ".join(str(number) for number in dimensions)
        raise ArrayFileError(
            f"{what} is {values.dtype} of shape {values.shape}; it must have real numbers in {allowed} dimensions"
        )
    with np.errstate(over="ignore"):  # a value too large for float32 becomes infinite, which the caller rejects
        return values.astype(np.float32)
