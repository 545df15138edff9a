"""The ledger of a site: a file that records which clips each average that the site has sent was taken over.

The difference between an average over nine clips and one over eight of them reveals the ninth, so limiting single
averages to `min-clips` clips is not enough. Clips that are in exactly the same averages cannot be separated by any sum
or difference of averages. If every such group has at least `min-clips` clips, no combination of all averages that were
ever sent reveals anything about fewer clips. The message handler asks the ledger before a reply is computed, and the
ledger refuses averages that would make a group smaller.
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
# Hexadecimal digits of the hash that identifies a clip in the file.
DIGITS = 16


class LedgerError(PolicyViolationError):
    """The ledger cannot be read or written, so nothing may leave the site. The message contains no path."""


class Ledger:
    """The sets of clips that averages were taken over.

    Args:
        path: path of the file; it is created if missing.
        min_clips: smallest number of clips that are in exactly the same averages.
    """

    def __init__(self, path: Path, min_clips: int) -> None:
        self.path = path.expanduser()
        self.min_clips = min_clips

    def admit(self, averaged: Iterable[frozenset[str]]) -> None:
        """Record new averages, given as sets of clips' keys, if they separate no small group of clips from the rest.

        All or none of them are recorded. Several processes may call this at once.

        Raises:
            PolicyViolationError: a group of fewer than `min_clips` clips would result; the message gives its size, but
                no clips.
            LedgerError: the file is damaged or cannot be written.
        """
        requested = {frozenset(map(_clip_hash, keys)) for keys in averaged}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):
                recorded = self._read()
                if not requested <= recorded:
                    self._check(requested | recorded)
                    averages = sorted(sorted(clips) for clips in requested | recorded)
                    write_bytes(self.path, json.dumps({"version": VERSION, "averages": averages}).encode())
        except OSError as error:
            raise LedgerError(f"this site's ledger cannot be used: {error.strerror or type(error).__name__}") from error

    def _check(self, averages: set[frozenset[str]]) -> None:
        averages_of: dict[str, list[int]] = {}
        for number, clips in enumerate(averages):
            for clip in clips:
                averages_of.setdefault(clip, []).append(number)
        # Clips with the same list of averages form a group.
        smallest = min(Counter(map(tuple, averages_of.values())).values(), default=self.min_clips)
        if smallest < self.min_clips:
            raise PolicyViolationError(
                f"together with the averages that this site has sent before, the averages of this run would separate "
                f"{smallest} of its clips from the rest, fewer than min-clips={self.min_clips} in its node "
                "configuration: use the same data, folds, limits and share.* as before, or let the site's owner start "
                "a new ledger"
            )

    def _read(self) -> set[frozenset[str]]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return set()
        try:
            ledger = json.loads(content)
            if ledger["version"] != VERSION:
                raise ValueError(f"version {ledger['version']}")
            return {frozenset(str(clip) for clip in clips) for clips in ledger["averages"]}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise LedgerError("this site's ledger is damaged: its owner must repair it or start a new one") from error


def _clip_hash(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:DIGITS]
