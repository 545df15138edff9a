"""Saved states of a run, and the settings that may differ when it is resumed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fed_a2v.config.schema import affects_result
from fed_a2v.config.tree import dotted_items
from fed_a2v.core.names import listed
from fed_a2v.storage.files import plain, replacing
from fed_a2v.storage.torch_files import CheckpointError, DamagedError, load_torch, numbered_files, save_torch
from fed_a2v.storage.untrusted import inside

logger = logging.getLogger("fed_a2v")

# Paths of a data set.
PLACES = ("root", "path")


def save_state(folder: Path, state: Mapping[str, Any], *, keep: int = 2, best: bool = False) -> Path:
    """Save the complete state of a run after a round, and delete old states except the newest few and the best.

    Args:
        folder: folder of the run; the file is `checkpoints/state_round_000003.pt` in it.
        state: tensors and plain values (numbers, strings, None, lists, tuples, dictionaries) at any depth,
            including `round` (int) and `config` (the settings as a dictionary).
        keep: number of states to keep, including this one.
        best: whether this round is the best so far; it is then also kept as `checkpoints/best_round_000003.pt`, in
            place of the previous best.

    Returns:
        The file.

    Raises:
        TypeError: a value that safe loading would refuse; the message names its key.
        OSError: the folder cannot be written.
    """
    path = folder / "checkpoints" / f"state_round_{state['round']:06d}.pt"
    save_torch(path, {**state, "fingerprint": fingerprint(state["config"])})
    if best:
        _keep_as_best(path)
    for _, old in numbered_files(path.parent, "state", ".pt")[keep:]:
        old.unlink(missing_ok=True)
    return path


def _keep_as_best(path: Path) -> None:
    """Keep a saved state under a second name: a hard link where possible, which takes no space, else a copy."""
    best = path.with_name(path.name.replace("state", "best", 1))
    temporary = path.with_name(f".{best.name}.{uuid.uuid4().hex}.tmp")
    try:
        os.link(path, temporary)
        os.replace(temporary, best)  # noqa: PTH105
    except OSError:
        with path.open("rb") as source, replacing(best) as target:
            shutil.copyfileobj(source, target)
    for _, old in numbered_files(path.parent, "best", ".pt"):
        if old != best:
            old.unlink(missing_ok=True)


def load_state(folder: Path, most: int | None = None) -> dict[str, Any] | None:
    """The newest intact state in a run's folder, up to round `most`, with tensors on the CPU; None without states.

    A damaged file is skipped with a warning.

    Raises:
        CheckpointError: every state is damaged, or the newest intact one is of another schema version.
    """
    states = numbered_files(folder / "checkpoints", "state", ".pt")
    states = [(number, path) for number, path in states if most is None or number <= most]
    for _, path in states:
        try:
            return read_state(path)
        except DamagedError as error:
            logger.warning("%s; using the state before it", error)
    if states:
        raise CheckpointError(
            f"every saved state in {folder / 'checkpoints'} is damaged; start again with resume=never"
        )
    return None


def read_state(path: Path) -> dict[str, Any]:
    """The state in one file, e.g. of an earlier round than the newest; tensors on the CPU.

    Raises:
        CheckpointError: the file is damaged, contains only a generator, or is of another schema version.
    """
    state = load_torch(inside(path, path.parent.parent))
    if {"round", "config", "fingerprint"} - state.keys():
        raise CheckpointError(
            f"{path} is not the state of a run; choose its folder or a state_round_N.pt in checkpoints/"
        )
    try:
        json.dumps(state["config"], ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} contains no valid settings: {str(error).splitlines()[0]}") from error
    return state


def drop_states_after(folder: Path, round_number: int) -> None:
    """Delete the states of later rounds, so that a run that starts again or goes back does not resume from them."""
    for kind in ("state", "best"):
        for number, path in numbered_files(folder / "checkpoints", kind, ".pt"):
            if number > round_number:
                path.unlink(missing_ok=True)


def fingerprint(config: Mapping[str, Any]) -> str:
    """Hash of the settings that affect results; equal if a run may be resumed with the other settings."""
    relevant = {key: plain(value) for key, value in _items(config).items() if affects_result(key) and key != "rounds"}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Difference:
    """A setting that differs from the run to resume; `harmless` if it may be resumed all the same."""

    key: str
    was: Any
    now: Any
    harmless: bool

    def __str__(self) -> str:
        note = " (may only grow)" if self.key == "rounds" and not self.harmless else ""
        return f"{self.key}: {self.was} -> {self.now}{note}"


def check_same_experiment(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Check that a run may be resumed with the settings `new`; both are nested dictionaries.

    `rounds` may grow, and settings that do not affect the results (`affects_result`) may change.

    Returns:
        The harmless differences, by dotted key.

    Raises:
        CheckpointError: lists the other keys that differ, with both values.
    """
    before, after = _items(old), _items(new)
    absent = "(absent)"
    differences = []
    for key in sorted(before.keys() | after.keys()):
        was, now = plain(before.get(key, absent)), plain(after.get(key, absent))
        grows = key == "rounds" and isinstance(was, int) and isinstance(now, int) and now > was
        if was != now:
            differences.append(Difference(key, was, now, grows or not affects_result(key)))
    if harmful := [difference for difference in differences if not difference.harmless]:
        raise CheckpointError(
            f"the run to resume was started with other settings: {listed(map(str, harmful), 5)}; resume it with its "
            "own, or start again with resume=never or in another folder"
        )
    return differences


def _items(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by dotted key.

    The paths of a mix's data sets are moved to the key dataset.root, so that they may change like that of a single one.
    """
    items = dict(dotted_items(config))
    sets = items.get("dataset.sets") or []
    if all(isinstance(part, Mapping) for part in sets):
        items["dataset.sets"] = [{k: v for k, v in part.items() if k not in PLACES} for part in sets]
        items["dataset.root"] = [items.get("dataset.root"), *(part.get(key) for part in sets for key in PLACES)]
    return items


def same_results(one: Mapping[str, Any], other: Mapping[str, Any], but: Sequence[str] = ()) -> bool:
    """Whether two nested settings give the same results, ignoring the sections or keys `but`."""
    before, after = _items(one), _items(other)
    return all(
        before.get(key) == after.get(key)
        for key in before.keys() | after.keys()
        if affects_result(key) and not any(key == name or key.startswith(f"{name}.") for name in but)
    )
