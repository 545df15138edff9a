"""Check, by `partition.json`, that the data of a run to resume are unchanged; compares clips, not their paths."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from fed_a2v.core.names import listed
from fed_a2v.storage.torch_files import CheckpointError

logger = logging.getLogger("fed_a2v")

MOST = 5  # maximum number of names per kind of change in a message


def check_same_data(before: Mapping[str, Any], now: Mapping[str, Any], accept: bool) -> None:
    """Check that sites, classes and clips are those of the run to resume.

    Args:
        before: content of `partition.json`; empty without such a file, which skips the check.
        now: result of `fed_a2v.data.partition.describe`.
        accept: whether changes only give a warning.

    Raises:
        CheckpointError: names what was added, removed or changed, and the remedy.
    """
    if not before or before == now or not (differences := list(changes(before, now))):
        return
    message = "the data of the run to resume has changed: " + "; ".join(differences)
    if not accept:
        raise CheckpointError(
            f"{message}. Restore the data, or resume with the changed data by accept_new_data=true, or start again "
            "with resume=never or in another folder"
        )
    logger.warning("%s", message)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Differences between two descriptions of a partition, one phrase for each kind of change.

    Args:
        before: see `fed_a2v.data.partition.describe`.
        now: the other description.

    Raises:
        CheckpointError: a description is damaged.
    """
    (had_classes, had), (has_classes, has) = _by_clip(before), _by_clip(now)
    yield from _added_and_removed("classes", had_classes, has_classes)
    yield from _added_and_removed("clips", had, has)
    both = [key for key in had if key in has]
    # A clip whose content hash is unknown counts as the same by its name.
    if other := [key for key in both if "" not in (had[key][0], has[key][0]) and had[key][0] != has[key][0]]:
        yield f"{len(other)} clips have another content: {listed(other, MOST)}"
    if had.keys() != has.keys():
        return  # added or removed clips also change the assignment of the others
    if moved := [key for key in both if had[key][1:] != has[key][1:]]:
        yield f"{len(moved)} clips are at another site or in another split: {listed(moved, MOST)}"
    elif counts := [name for name in had_classes if name in has_classes and had_classes[name] != has_classes[name]]:
        yield f"classes have other clips: {listed(counts, MOST)}"


def _by_clip(partition: Mapping[str, Any]) -> tuple[dict[str, list[Any]], dict[str, tuple[str, str, str]]]:
    """The numbers of clips of each site by class; and content hash, site and split by clip."""
    classes: dict[str, list[Any]] = {}
    clips: dict[str, tuple[str, str, str]] = {}
    try:
        for name, site in partition["sites"].items():
            for label, counts in site["classes"].items():
                classes.setdefault(label, []).append((name, counts))
            for split, keys in site["clips"].items():
                contents = site.get("contents", {}).get(split) or [""] * len(keys)
                clips |= {key: (what, name, split) for key, what in zip(keys, contents, strict=True)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            "partition.json of the run to resume is damaged, so its clips are unknown; restore it, or start again with "
            "resume=never or in another folder"
        ) from error
    return classes, clips


def _added_and_removed(what: str, had: Mapping[str, Any], has: Mapping[str, Any]) -> Iterator[str]:
    for words, names in (("are missing", had.keys() - has.keys()), ("are new", has.keys() - had.keys())):
        if names:
            yield f"{len(names)} {what} {words}: {listed(sorted(names), MOST)}"
