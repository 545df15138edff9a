"""Handing freed memory back to the system, where the C library would keep it scattered."""

from __future__ import annotations

import ctypes
import sys

# GNU's library has it; elsewhere nothing is done.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def return_free_memory() -> None:
    """Give all freed memory back, whichever thread it belonged to.

    Replies that wait lie between what the work on the one before has used and freed: without this the library keeps
    that, and more of it with every site.
    """
    if _TRIM is not None:
        _TRIM(0)
