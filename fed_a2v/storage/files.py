"""Atomic writing of files, and JSON: every file of a run folder is written through this module.

A reader never sees a partly written file, even if the writing process is killed.
"""

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
    """Open a file for atomic writing: `path` is replaced if the block succeeds, and unchanged if it raises.

    The bytes go to a temporary file in the same folder (created if missing), are synced to the disk, and the
    temporary file is renamed to `path`.

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
        if interrupted(error):  # torch.save turns Ctrl-C into an error of another type
            raise KeyboardInterrupt from error
        # torch.save reports a full disk as a RuntimeError whose context is the OSError.
        reason = error if isinstance(error, OSError) else error.__context__
        if isinstance(error, OSError | RuntimeError) and isinstance(reason, OSError):
            raise _unwritable(path, reason) from error
        raise
    _sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that `replacing` left in a folder when its process was killed."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Check that a folder's disk has enough free space, before a run spends hours on results that it cannot store.

    Args:
        folder: an existing folder.
        needed: bytes.
        what: what needs the space, for the message.

    Raises:
        OSError: there is less; the message names the folder, both sizes, and the remedy.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{what} may need {needed / 1e6:.1f} MB, and the disk of {folder.absolute()} has {free / 1e6:.1f} MB free; "
            "free space, or choose another folder",
        )


def free_folder(path: Path) -> Path:
    """Create the first of `path`, `path-2`, `path-3`, ... that does not exist; two callers never get the same folder.

    Raises:
        OSError: the parent folder cannot be written.
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
    """A temporary folder that is renamed to `path` if the block succeeds, and removed if it raises.

    Raises:
        FileExistsError: `path` exists, and is not an empty folder.
        OSError: the parent folder cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists already; choose another folder, or remove it")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_bytes(path: Path, content: bytes) -> Path:
    """Write or replace a file atomically; see `replacing`."""
    with replacing(path) as file:
        file.write(content)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write or replace a UTF-8 text file atomically; see `replacing`."""
    return write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> Path:
    """Write or replace a JSON file atomically; `plain` converts numbers and arrays."""
    return write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line to a JSON-lines file and sync it to the disk.

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
    """The rows of a JSON-lines file, [] if there is no file; a last line that is incomplete is left out.

    Raises:
        UntrustedFileError: another line is not a JSON object, or the file is too large; the message names file and
            line.
    """
    rows: list[dict[str, Any]] = []
    for number, line in read_lines(path):
        row = parse_row(line, path)
        if row is not None:
            rows.append(row)
        # Only the last line can lack its newline: the process was killed while it wrote it.
        elif line.endswith(b"\n"):
            raise UntrustedFileError(f"{path}, line {number}: not a JSON object: {line[:80].strip()!r}")
    return rows


def read_lines(path: Path) -> list[tuple[int, bytes]]:
    """The lines of a JSON-lines file with their numbers, from 1; [] if there is no file. Empty lines are left out.

    Raises:
        UntrustedFileError: the file is not a regular file, or too large.
    """
    if not path.exists():
        return []
    text = read_bytes(path, LARGEST_JSON)
    check_values(text, path)
    return [(number, line) for number, line in enumerate(io.BytesIO(text), start=1) if line.strip()]


def parse_row(line: bytes, path: Path) -> dict[str, Any] | None:
    """The JSON object in a line of a JSON-lines file; None if the line is not a JSON object."""
    try:
        row = parse_json(line, path)
    except UntrustedFileError:
        return None
    return row if isinstance(row, dict) else None


def plain(value: Any) -> Any:
    """Convert `value` to what JSON can store: NaN and infinity to null, arrays to lists, keys and paths to strings.

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
    if hasattr(value, "tolist"):  # an array or tensor; no isinstance, because torch takes a second to import
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} has no JSON form; pass plain values")


def numbers(values: Mapping[str, Any]) -> dict[str, int | float]:
    """The entries that are finite numbers: those that can be plotted as curves."""
    plain_values = {key: plain(value) for key, value in values.items()}
    return {key: value for key, value in plain_values.items() if isinstance(value, int | float)}


def _unwritable(path: Path, error: OSError) -> OSError:
    reason = error.strerror or str(error)
    message = (
        f"cannot write {path.name} in folder {path.parent.absolute()}: {reason}; free space or choose another folder"
    )
    return OSError(error.errno or 0, message)


def _sync_folder(folder: Path) -> None:
    """Sync the folder's new entry to the disk, if the file system supports it."""
    with contextlib.suppress(OSError):  # some network file systems refuse; the file itself is already synced
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
