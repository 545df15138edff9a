"""Aliases of class names: a class "dog" of one data set is "dog barking" in another; used when clips are indexed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from fed_a2v.core.names import clean_name
from fed_a2v.storage.untrusted import read_names


class ClassNames:
    """Compares class names by a table of aliases.

    Args:
        extra: {name in a data set: common name}; extends and overrides `aliases.yaml`.
    """

    def __init__(self, extra: Mapping[str, str] | None) -> None:
        self._common = _built_in() | {clean_name(name): common for name, common in (extra or {}).items()}

    def common(self, name: str) -> str:
        """The common name of a class; the name itself if it has no alias."""
        return self._common.get(clean_name(name), name)

    def labels(self, names: Iterable[str], classes: Iterable[str]) -> dict[str, int]:
        """The position in `classes` of each of `names` that is a class, by the name itself or else by an alias."""
        classes = list(classes)
        # If two classes have the same common name, the first gets the aliases. A class's own name comes last, and so
        # takes precedence over an alias.
        by_name = {clean_name(self.common(name)): label for label, name in reversed(list(enumerate(classes)))}
        by_name |= {clean_name(name): label for label, name in enumerate(classes)}
        pairs = ((name, by_name.get(clean_name(name), by_name.get(clean_name(self.common(name))))) for name in names)
        return {name: label for name, label in pairs if label is not None}


@lru_cache(maxsize=1)
def _built_in() -> dict[str, str]:
    table = read_names(Path(__file__).with_name("aliases.yaml"))
    return {clean_name(name): common for name, common in table.items()}
