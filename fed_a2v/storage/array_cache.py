"""A folder that caches arrays which are costly to compute, such as class prompts; shared by processes.

The files are safetensors with a checksum: nothing is unpickled, and a damaged file is computed again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import BaseFileLock, FileLock, Timeout
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fed_a2v.storage.files import write_bytes

logger = logging.getLogger("fed_a2v")

Arrays = dict[str, NDArray[Any]]


def cache_key(*parts: object) -> str:
    """A cache key from everything that the arrays depend on; equal parts need equal `repr`, unequal parts unequal."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def cached(folder: Path, key: str, compute: Callable[[], Mapping[str, NDArray[Any]]]) -> Arrays:
    """Return the arrays stored under `key`; compute and store them first if they are missing.

    If several processes need the same key, one computes and the others wait. The lock is the operating system's, so
    a process that is killed releases it. A truncated or altered file is computed again, with a warning.

    Raises:
        OSError: the folder cannot be written; the message names it.
    """
    path = folder / f"{key}.safetensors"
    if (arrays := _load(path)) is not None:
        return arrays
    lock = acquire_lock(folder / f"{key}.lock", path.name)
    try:
        if (arrays := _load(path)) is None:  # another process may have stored them while this one waited
            arrays = {name: np.ascontiguousarray(array) for name, array in compute().items()}
            try:
                write_bytes(path, save(arrays, metadata={"sha256": _checksum(arrays)}))
            except OSError as error:
                raise OSError(f"{error}; set cache_dir to a folder with free space") from error
        return arrays
    finally:
        lock.release()


def acquire_lock(file: Path, result: str) -> BaseFileLock:
    """Acquire a lock file in a cache folder, which is created if missing; wait for as long as another process has it.

    Args:
        file: the lock file.
        result: what the process with the lock computes, for the log line while waiting.

    Raises:
        OSError: the folder cannot be written; the message names it.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            logger.info("Waiting for another process that computes %s", result)
            lock.acquire()
    except OSError as error:
        raise OSError(
            f"the cache folder {file.parent} cannot be used: {error}; set cache_dir to a writable folder"
        ) from error
    return lock


def _load(path: Path) -> Arrays | None:
    """The arrays of a file; None if it is missing or damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            intact = (file.metadata() or {}).get("sha256") == _checksum(arrays)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("The cache file %s is damaged (%s); computing it again", path, error)
        return None
    if not intact:
        logger.warning("The cache file %s is damaged (wrong checksum); computing it again", path)
        return None
    return arrays


def _checksum(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(repr((name, str(array.dtype), array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
