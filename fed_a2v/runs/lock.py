"""One process at a time writes into a run's folder."""

from __future__ import annotations

import errno
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fed_a2v.errors import UserError
from fed_a2v.storage.untrusted import inside

logger = logging.getLogger("fed_a2v")

# In the run's folder. It stays there: what counts is the operating system's lock on it, which ends with its process.
LOCK = ".lock"
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class FolderInUseError(UserError, RuntimeError):
    """Another process writes into the folder."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep a run's folder, made if need be, to this process while the block runs.

    The lock is the operating system's: that of a process which was killed is gone. On a file system without such locks
    a warning says that nothing guards the folder.

    Raises:
        FolderInUseError: another process, or another run in this one, holds it; names the folder and that process.
        OSError: the folder cannot be written; names it.
        UntrustedFileError: the lock is a link that leads out of the folder.
    """
    file = inside(folder / LOCK, folder)
    lock = FileLock(file, timeout=0, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        file.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
    except Timeout:
        raise FolderInUseError(
            f"{folder} belongs to a run that is going on{_holder(file)}: wait for its end, or name another folder, "
            "hydra.run.dir=FOLDER"
        ) from None
    except NotImplementedError:
        _warn(folder)
    except OSError as error:
        lock.release()
        if error.errno not in WITHOUT_LOCKS:
            raise OSError(
                error.errno or 0,
                f"cannot write {LOCK} in folder {folder.absolute()}: {error.strerror or error}; free space or choose "
                "another folder",
            ) from error
        _warn(folder)
    try:
        yield
    finally:
        lock.release()


def _warn(folder: Path) -> None:
    logger.warning("The file system of %s has no locks: start no second run in this folder", folder)


def _holder(file: Path) -> str:
    """Which process holds the lock, if it has said so."""
    with suppress(OSError, ValueError):
        with file.open(encoding="utf-8") as opened:
            said = opened.read(200)
        if said.startswith("process ") and said.isprintable():
            return f" ({said})"
    return ""
