"""Federated training of adapters from audio embeddings to the prompt embeddings of image models."""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fed_a2v.storage.plain_text import PlainLines
from fed_a2v.version import __version__

if TYPE_CHECKING:
    from fed_a2v.adapter import A2VAdapter
    from fed_a2v.load import compare_runs, load_run, train

__all__ = ["A2VAdapter", "__version__", "compare_runs", "load_run", "train"]

# Imported on use, from these modules: they need torch, but the commands' help does not.
_MODULES = {"A2VAdapter": "fed_a2v.adapter"} | dict.fromkeys(("compare_runs", "load_run", "train"), "fed_a2v.load")

# At the logger itself, since a process without handlers, such as a site's, also prints warnings.
logging.getLogger("fed_a2v").addFilter(PlainLines())


def __getattr__(name: str) -> Any:
    """One of the names in `_MODULES`."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """The names for users, imported or not, as notebooks complete them."""
    return __all__
