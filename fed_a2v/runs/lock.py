"""Lock of a run's folder, so that only one process at a time writes to it."""

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

# File in the run's folder. It is never deleted: the lock is the operating system's, and ends with the process.
LOCK = ".lock"
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class FolderInUseError(UserError, RuntimeError):
    """Another process writes to the folder."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Lock a run's folder, which is created if needed, while the block runs.

    The operating system releases the lock of a killed process. On a file system without locks, a warning is logged and
    the folder is not protected.

    Raises:
        FolderInUseError: another process, or another run in this one, has the lock; names the folder and the process.
        OSError: the folder cannot be written; names it.
        UntrustedFileError: the lock is a link out of the folder.
    """
    file = inside(folder / LOCK, folder)
    lock = FileLock(file, timeout=0, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        file.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
    except Timeout:
        raise FolderInUseError(
            f"{folder} is in use by another run{_holder(file)}: wait for its end, or choose another folder with "
            "--out FOLDER"
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
    logger.warning("The file system of %s has no locks: do not start a second run in this folder", folder)


def _holder(file: Path) -> str:
    """The process in the lock file, if it names one."""
    with suppress(OSError, ValueError):
        with file.open(encoding="utf-8") as opened:
            content = opened.read(200)
        if content.startswith("process ") and content.isprintable():
            return f" ({content})"
    return ""
