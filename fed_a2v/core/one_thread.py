"""Linear algebra of numpy, scipy and scikit-learn in one thread: its bits depend on the number of threads.

`threads` in the settings is that of torch. These libraries would start one for each core of the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the block, or as a decorator the function, with one thread; the time it takes is small."""
    import sklearn.decomposition  # noqa: F401  # only loaded libraries can be limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield
