"""A process's memory: freed memory goes back to the system, and work may have a limit."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# GNU's library has it; elsewhere nothing is done.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def return_free_memory() -> None:
    """Give all freed memory back, whichever thread it belonged to.

    The C library would keep it scattered: replies that wait lie between what the work on the one before has used and
    freed, more of it with every site.
    """
    if _TRIM is not None:
        _TRIM(0)


@contextmanager
def limit_memory(gigabytes: float | None) -> Iterator[None]:
    """Let the block's work allocate so much beside what the process has now; beyond it, allocations fail.

    Linux counts what a process has allocated for itself (RLIMIT_DATA); other systems may not hold to it. A GPU's
    memory is not counted.

    Args:
        gigabytes: None: no limit.

    Raises:
        MemoryError, RuntimeError: numpy and Python, or torch, cannot allocate what they need.
    """
    if gigabytes is None:
        yield
        return
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _allocated() + int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _allocated() -> int:
    """Bytes of the process's private memory as RLIMIT_DATA counts it; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), 0)
