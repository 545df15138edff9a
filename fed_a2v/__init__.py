"""Federated training of adapters from audio embeddings to the prompt embeddings of image models."""

import logging
from typing import TYPE_CHECKING, Any

from fed_a2v.storage.plain_text import PlainLines
from fed_a2v.version import __version__

if TYPE_CHECKING:
    from fed_a2v.adapter import A2VAdapter
    from fed_a2v.load import compare_runs, load_run

__all__ = ["A2VAdapter", "__version__", "compare_runs", "load_run"]

# At the logger itself, since a process without handlers, such as a site's, also prints warnings.
logging.getLogger("fed_a2v").addFilter(PlainLines())


def __getattr__(name: str) -> Any:
    """`A2VAdapter`, `load_run` and `compare_runs`, imported on use: they need torch, the commands' help does not."""
    if name == "A2VAdapter":
        from fed_a2v.adapter import A2VAdapter

        return A2VAdapter
    if name in ("compare_runs", "load_run"):
        from fed_a2v import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
