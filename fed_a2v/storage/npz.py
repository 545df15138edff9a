"""Reading named arrays from `.npz` files that others wrote: nothing is unpickled, no malformed file crashes."""

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
    """A file of arrays is missing, broken, or lacks what is needed."""


def read_arrays(
    path: str | Path,
    required: Collection[str] = (),
    optional: Collection[str] = (),
    most: int | Literal["file"] | None = None,
) -> dict[str, Array]:
    """Read the arrays named `required`, and those of `optional` that are there; others stay unread.

    Args:
        path: of the file.
        required, optional: names of arrays.
        most: bytes of all arrays together, or "file": no more than the file has, as numpy.savez writes it; default:
            no limit.

    Raises:
        ArrayFileError: the file is missing or no `.npz`, a required array is missing, one holds objects, or all are
            larger than `most`.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ArrayFileError(f"{path}: no such file")
    try:
        if most is not None:
            check_archive(path, None if most == "file" else most)
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ArrayFileError(f"{path} holds one array without a name; save it with numpy.savez")
        with file:
            missing = [name for name in required if name not in file]
            if missing:
                raise ArrayFileError(
                    f"{path} has no {' and no '.join(missing)}; it has {', '.join(sorted(file)) or 'nothing'}"
                )
            return {name: _array(file, name, path) for name in (*required, *optional) if name in file}
    except ArrayFileError:
        raise
    # What numpy, zipfile and zlib raise on bytes that are not what they claim to be.
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
            f"{path}: {name} holds Python objects, as pandas and ragged lists make them, and none is unpickled; save "
            f"{name}.astype(str) for names, {name}.astype(int) for whole numbers, numpy.stack({name}) for vectors"
        ) from error


def as_names(values: Array, what: str) -> list[str]:
    """The texts of a one-dimensional text array.

    Raises:
        ArrayFileError: `values`, called `what` in the message, has another type or shape, or an empty name.
    """
    if values.ndim != 1 or values.dtype.kind != "U":
        raise ArrayFileError(
            f"{what} is {values.dtype} of shape {values.shape}; one text a row is needed: save its .astype(str)"
        )
    names = [str(value) for value in values]
    if not all(name.strip() for name in names):
        raise ArrayFileError(f"{what} has an empty name in row {[bool(n.strip()) for n in names].index(False)}")
    return names


def as_floats(values: Array, what: str, dimensions: Collection[int]) -> NDArray[np.float32]:
    """`values` as float32.

    Raises:
        ArrayFileError: `values`, called `what` in the message, is not numeric or has other dimensions.
    """
    if values.dtype.kind not in "fiu" or values.ndim not in dimensions or 0 in values.shape:
        allowed = " or ".join(str(number) for number in dimensions)
        raise ArrayFileError(
            f"{what} is {values.dtype} of shape {values.shape}; real numbers in {allowed} dimensions are needed"
        )
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
