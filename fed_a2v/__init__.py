"""Federated training of adapters from sound to the prompt embeddings of image models."""

import logging
from typing import TYPE_CHECKING, Any

from fed_a2v.storage.plain_text import PlainLines
from fed_a2v.version import __version__

if TYPE_CHECKING:
    from fed_a2v.load import compare_runs, load_run

__all__ = ["__version__", "compare_runs", "load_run"]

# At the logger itself: in a process that has set up no handlers, such as a site's, its warnings are shown, too.
logging.getLogger("fed_a2v").addFilter(PlainLines())


def __getattr__(name: str) -> Any:
    """`load_run` and `compare_runs`, imported when they are asked for: they need torch, the commands' help does not."""
    if name in ("compare_runs", "load_run"):
        from fed_a2v import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
