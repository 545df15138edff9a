"""Whether the data of a run is still what it was, as its `partition.json` tells: by clips, not by where they lie."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from fed_a2v.core.names import listed
from fed_a2v.storage.torch_files import CheckpointError

logger = logging.getLogger("fed_a2v")

MOST = 5  # names of each kind of change in a message


def check_same_data(before: Mapping[str, Any], now: Mapping[str, Any], accept: bool) -> None:
    """Check that sites, classes and clips are those that the run to resume has had.

    Args:
        before: what `partition.json` held; empty where there was none, which tells nothing.
        now: what `describe` gives.
        accept: changes become a warning.

    Raises:
        CheckpointError: names what came, went, or is otherwise than it was, and the remedy.
    """
    if not before or before == now or not (found := list(changes(before, now))):
        return
    told = "the data of the run to resume has changed: " + "; ".join(found)
    if not accept:
        raise CheckpointError(
            f"{told}. Bring the data back; or go on with it as it is now, accept_new_data=true, or start anew with "
            "resume=never or in another folder"
        )
    logger.warning("%s", told)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two descriptions of a partition, each kind of change in a few words.

    Args:
        before: see `fed_a2v.data.partition.describe`.
        now: the other.

    Raises:
        CheckpointError: one is no such description.
    """
    (had_classes, had), (has_classes, has) = _by_clip(before), _by_clip(now)
    yield from _came_and_went("classes", had_classes, has_classes)
    yield from _came_and_went("clips", had, has)
    both = [key for key in had if key in has]
    # Where one of the contents is not known, the name has to do.
    if other := [key for key in both if "" not in (had[key][0], has[key][0]) and had[key][0] != has[key][0]]:
        yield f"{len(other)} clips have another content: {listed(other, MOST)}"
    if had.keys() != has.keys():
        return  # then others are dealt otherwise, too
    if moved := [key for key in both if had[key][1:] != has[key][1:]]:
        yield f"{len(moved)} clips are at another site or in another split: {listed(moved, MOST)}"
    elif counts := [name for name in had_classes if name in has_classes and had_classes[name] != has_classes[name]]:
        yield f"classes have other clips: {listed(counts, MOST)}"


def _by_clip(partition: Mapping[str, Any]) -> tuple[dict[str, list[Any]], dict[str, tuple[str, str, str]]]:
    """The sites' numbers of clips by class; and content, site and split by clip."""
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
            "partition.json of the run to resume is damaged, so nobody knows which clips it has had; bring it back, or "
            "start anew with resume=never or in another folder"
        ) from error
    return classes, clips


def _came_and_went(what: str, had: Mapping[str, Any], has: Mapping[str, Any]) -> Iterator[str]:
    for words, names in (("are gone", had.keys() - has.keys()), ("are new", has.keys() - had.keys())):
        if names:
            yield f"{len(names)} {what} {words}: {listed(sorted(names), MOST)}"
