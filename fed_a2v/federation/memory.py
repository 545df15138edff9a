"""Memory of this process: return freed memory to the operating system, limit the memory of a task, and its peak."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Only the GNU C library has it; on other systems nothing is done.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def return_free_memory() -> None:
    """Return all freed memory of all threads to the operating system.

    Otherwise the C library keeps it: stored replies are between the blocks that the processing of other replies has
    used and freed, so that fragmentation grows with every site.
    """
    if _TRIM is not None:
        _TRIM(0)


@contextmanager
def limit_memory(gigabytes: float | None) -> Iterator[None]:
    """Limit the memory that the block allocates in addition to the present memory of the process.

    The limit is on private memory (RLIMIT_DATA), which Linux enforces and other systems may not. Memory of a GPU is not
    limited.

    Args:
        gigabytes: the limit in GB; None: no limit.

    Raises:
        MemoryError: numpy or Python cannot allocate memory.
        RuntimeError: torch cannot allocate memory.
    """
    if gigabytes is None:
        yield
        return
    import resource  # does not exist on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _private_memory() + int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def peak_memory() -> int:
    """Largest resident size of this process so far in bytes; 0 on Windows."""
    if sys.platform == "win32":
        return 0
    if peak := _status("VmHWM"):  # Linux; getrusage would also count the program that started this one
        return peak
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _private_memory() -> int:
    """Private memory of the process in bytes, as RLIMIT_DATA counts it; 0 if the system does not report it."""
    return _status("VmData")


def _status(name: str) -> int:
    """A size of this process that Linux reports, in bytes; 0 on other systems."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
