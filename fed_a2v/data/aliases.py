"""One class by several names: what one data set calls "dog", another calls "dog barking"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from fed_a2v.core.names import clean_name
from fed_a2v.storage.untrusted import read_names


class ClassNames:
    """Class names that are compared by a table of aliases.

    Args:
        extra: aliases beyond those of `aliases.yaml`, which they override: {name in a data set: common name}.
    """

    def __init__(self, extra: Mapping[str, str] | None) -> None:
        self._common = _built_in() | {clean_name(name): common for name, common in (extra or {}).items()}

    def common(self, name: str) -> str:
        """The common name of a class; without an alias the name as it is."""
        return self._common.get(clean_name(name), name)

    def labels(self, names: Iterable[str], classes: Iterable[str]) -> dict[str, int]:
        """For each of `names` that is one of `classes`, the position there: by the name itself, else by an alias."""
        classes = list(classes)
        # The first of two classes with the same common name takes the names that are neither's own.
        by_name = {clean_name(self.common(name)): label for label, name in reversed(list(enumerate(classes)))}
        by_name |= {clean_name(name): label for label, name in enumerate(classes)}
        found = ((name, by_name.get(clean_name(name), by_name.get(clean_name(self.common(name))))) for name in names)
        return {name: label for name, label in found if label is not None}


@lru_cache(maxsize=1)
def _built_in() -> dict[str, str]:
    table = read_names(Path(__file__).with_name("aliases.yaml"))
    return {clean_name(name): common for name, common in table.items()}
