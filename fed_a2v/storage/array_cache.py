"""A folder of arrays that are costly to compute: each is computed once, whoever asks, and is never unpickled."""

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
    """A key from everything that the arrays depend on; the parts need a faithful `repr`."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def cached(folder: Path, key: str, compute: Callable[[], Mapping[str, NDArray[Any]]]) -> Arrays:
    """The arrays stored under `key`; they are computed and stored first where they are not there yet.

    Of several processes that want the same key one computes, the others wait. The lock is the operating
    system's, so a holder that is killed releases it. A torn or altered file is computed anew, with a warning.

    Raises:
        OSError: the folder cannot be written; the message names it.
    """
    path = folder / f"{key}.safetensors"
    if (arrays := _load(path)) is not None:
        return arrays
    lock = _lock(folder, key)
    try:
        if (arrays := _load(path)) is None:
            arrays = {name: np.ascontiguousarray(array) for name, array in compute().items()}
            _store(path, arrays)
        return arrays
    finally:
        lock.release()


def _lock(folder: Path, key: str) -> BaseFileLock:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{key}.lock")
        try:
            lock.acquire(timeout=1)
        except Timeout:
            logger.info("Waiting for another process that computes %s.safetensors", key)
            lock.acquire()
    except OSError as error:
        raise OSError(
            f"the cache folder {folder} cannot be used: {error}; set cache_dir to one that can be written"
        ) from error
    return lock


def _load(path: Path) -> Arrays | None:
    """The arrays of a file; None where it is missing or damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            intact = (file.metadata() or {}).get("sha256") == _checksum(arrays)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("The cache file %s is damaged (%s): computing it anew", path, error)
        return None
    if not intact:
        logger.warning("The cache file %s is damaged (wrong checksum): computing it anew", path)
        return None
    return arrays


def _store(path: Path, arrays: Arrays) -> None:
    try:
        write_bytes(path, save(arrays, metadata={"sha256": _checksum(arrays)}))
    except OSError as error:
        raise OSError(f"{error}; set cache_dir to one with room") from error


def _checksum(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(repr((name, str(array.dtype), array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
