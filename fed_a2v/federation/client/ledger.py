"""A site's own ledger: over which clips it has let averages be taken.

An average over nine clips and one over eight of them tell the ninth: whoever asks may ask twice. So a site whose owner
wants `min-clips` behind everything that leaves it notes which clips each average was of, over all runs. Clips that were
always averaged together, or not at all, cannot be told apart by any sum or difference of the averages. As long as there
are `min-clips` of them or more, no combination of all that has been given says anything of fewer; an average that would
change that is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

from fed_a2v.federation.client.privacy_policy import PolicyViolationError
from fed_a2v.storage.files import write_bytes

VERSION = 1
# Hexadecimal digits by which a clip is known there.
DIGITS = 16


class LedgerError(PolicyViolationError):
    """The ledger cannot be read or written; without it nothing leaves the site. The message names no path."""


class Ledger:
    """The sets of clips that averages were taken over.

    Args:
        path: of its file, which is made where there is none.
        least: clips that must be averaged together wherever one of them is.
    """

    def __init__(self, path: Path, least: int) -> None:
        self.path = path.expanduser()
        self.least = least

    def admit(self, averaged: Iterable[frozenset[str]]) -> None:
        """Note these sets of clips' keys, if with all before they tell no few clips from the rest.

        All are noted, or none. Several processes may ask at once.

        Raises:
            PolicyViolationError: they tell fewer than `least`: says how many, and names none.
            LedgerError: the file is damaged, or cannot be written.
        """
        asked = {frozenset(map(_digest, keys)) for keys in averaged}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):
                noted = self._read()
                if not asked <= noted:
                    self._check(asked | noted)
                    self._write(asked | noted)
        except OSError as error:
            raise LedgerError(f"this site's ledger cannot be used: {error.strerror or type(error).__name__}") from error

    def _check(self, averages: set[frozenset[str]]) -> None:
        seen: dict[str, list[int]] = {}
        for number, clips in enumerate(averages):
            for clip in clips:
                seen.setdefault(clip, []).append(number)
        fewest = min(Counter(map(tuple, seen.values())).values(), default=self.least)
        if fewest < self.least:
            raise PolicyViolationError(
                f"with the averages that this site has given before, those that this run asks for would tell "
                f"{fewest} of its clips from the rest, fewer than min-clips={self.least} in its node configuration: "
                "use the data, folds, limits and share.* of before, or its owner begins a new ledger"
            )

    def _read(self) -> set[frozenset[str]]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return set()
        try:
            entry = json.loads(content)
            if entry["version"] != VERSION:
                raise ValueError(f"version {entry['version']}")
            return {frozenset(str(clip) for clip in clips) for clips in entry["averages"]}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise LedgerError("this site's ledger is damaged: its owner mends it, or begins a new one") from error

    def _write(self, noted: set[frozenset[str]]) -> None:
        averages = sorted(sorted(clips) for clips in noted)
        write_bytes(self.path, json.dumps({"version": VERSION, "averages": averages}).encode())


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:DIGITS]
