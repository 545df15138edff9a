"""Writing files so that a reader, or a run that was killed, never meets half of one."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fed_a2v.errors import interrupted
from fed_a2v.storage.untrusted import LARGEST_JSON, UntrustedFileError, check_values, parse_json, read_bytes


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to be written whole: `path` is replaced when the block ends well, else left as it was.

    The bytes go to a temporary file in the same folder (made if need be), reach the disk, and take the
    name `path` in one step.

    Raises:
        OSError: the folder cannot be written (full, read-only, ...); the message names it.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if interrupted(error):  # torch.save ends in an error of its own
            raise KeyboardInterrupt from error
        # torch.save reports a full disk as a RuntimeError of its own, with the OSError behind it.
        reason = error if isinstance(error, OSError) else error.__context__
        if isinstance(error, OSError | RuntimeError) and isinstance(reason, OSError):
            raise _unwritable(path, reason) from error
        raise
    _sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that `replacing` left in a folder when it was killed."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Check that a folder's disk has room before hours of work depend on it.

    Args:
        folder: that exists.
        needed: bytes.
        what: needs them, in words.

    Raises:
        OSError: there is less; names the folder, both sizes, and the remedy.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{what} may need {needed / 1e6:.1f} MB, and the disk of {folder.absolute()} has {free / 1e6:.1f} MB free; "
            "free space, or choose another folder",
        )


def free_folder(path: Path) -> Path:
    """Make the first folder of `path`, `path-2`, `path-3`, ... that is not there: no two callers get the same one.

    Raises:
        OSError: the folder that it is to be in cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        free = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with contextlib.suppress(FileExistsError):
            free.mkdir()
            break
    return free


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and is removed when it does not.

    Raises:
        FileExistsError: `path` exists already, and is no empty folder.
        OSError: the folder that it is to be in cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists already; choose another folder, or remove it")
    growing = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    growing.mkdir(parents=True)
    try:
        yield growing
        growing.rename(path)
    except BaseException:
        shutil.rmtree(growing, ignore_errors=True)
        raise


def write_bytes(path: Path, content: bytes) -> Path:
    """Write or replace a file in one step; see `replacing`."""
    with replacing(path) as file:
        file.write(content)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write or replace a UTF-8 text file in one step; see `replacing`."""
    return write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> Path:
    """Write or replace a JSON file in one step; see `plain` for what becomes of numbers and arrays."""
    return write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line to a JSON-lines file and bring it to the disk.

    Raises:
        OSError: the folder cannot be written; the message names it.
    """
    line = json.dumps(plain(row), allow_nan=False) + "\n"
    try:
        with path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _unwritable(path, error) from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, [] where there is none; a last line that a kill cut short is left out.

    Raises:
        UntrustedFileError: another line is no JSON object, or the file is too large; the message names file and line.
    """
    rows: list[dict[str, Any]] = []
    for number, line in read_lines(path):
        row = parse_row(line, path)
        if row is not None:
            rows.append(row)
        # A whole line ends in a newline, so only a cut one can be without.
        elif line.endswith(b"\n"):
            raise UntrustedFileError(f"{path}, line {number}: not a JSON object: {line[:80].strip()!r}")
    return rows


def read_lines(path: Path) -> list[tuple[int, bytes]]:
    """The lines of a JSON-lines file with their numbers, from 1; none where there is no file. Empty ones are left out.

    Raises:
        UntrustedFileError: the file is no regular file, or too large.
    """
    if not path.exists():
        return []
    text = read_bytes(path, LARGEST_JSON)
    check_values(text, path)
    return [(number, line) for number, line in enumerate(io.BytesIO(text), start=1) if line.strip()]


def parse_row(line: bytes, path: Path) -> dict[str, Any] | None:
    """The JSON object in a line of a JSON-lines file; None where it is none."""
    try:
        row = parse_json(line, path)
    except UntrustedFileError:
        return None
    return row if isinstance(row, dict) else None


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: NaN and infinity become null, arrays lists, keys and paths strings.

    Raises:
        TypeError: a value has no JSON form; the message names its type.
    """
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # of numpy or torch, which takes a second to import
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} has no JSON form; hand over plain values")


def numbers(values: Mapping[str, Any]) -> dict[str, int | float]:
    """The entries that are finite numbers; only they make curves."""
    plain_values = {key: plain(value) for key, value in values.items()}
    return {key: value for key, value in plain_values.items() if isinstance(value, int | float)}


def _unwritable(path: Path, error: OSError) -> OSError:
    reason = error.strerror or str(error)
    message = (
        f"cannot write {path.name} in folder {path.parent.absolute()}: {reason}; free space or choose another folder"
    )
    return OSError(error.errno or 0, message)


def _sync_folder(folder: Path) -> None:
    """Bring the folder's new entry to the disk, where the file system can."""
    with contextlib.suppress(OSError):  # some network file systems refuse; the file itself is whole by now
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
