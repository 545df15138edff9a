"""Cache of content hashes by file size and times, so that a data set of 200,000 files is not read again to hash it.

`fed_a2v.data.cache.embed` looks up the contents of clips here.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from fed_a2v.data.clips import ClipSource
from fed_a2v.data.errors import BadClipError, DataError

logger = logging.getLogger("fed_a2v")


class ContentHashIndex:
    """The contents of a data set's clips that were computed before.

    The index file is append-only: lines [key, mtime_key, content], of which the last for a clip is valid. Incomplete
    lines of a killed process are ignored.

    Args:
        source: the data set.
        cache: folder of the cache.
    """

    def __init__(self, source: ClipSource, cache: Path) -> None:
        self.source = source
        root = repr([str(path.absolute()) for path in source.watched()[:1]])
        name = f"{type(source).__name__}{root}"
        self.file = cache / "contents" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.jsonl"
        self._known: dict[str, tuple[str, str]] = {}
        if self.file.is_file():
            for line in self.file.read_bytes().splitlines():
                try:
                    key, mtime_key, content = json.loads(line)
                    self._known[key] = (mtime_key, content)
                except (ValueError, TypeError):
                    continue

    def get(self, key: str) -> str | None:
        """The content of a clip if it is cached and the file is unchanged, or if it is quick to compute; else None."""
        mtime_key = self.source.mtime_key(key)
        if mtime_key is None:
            try:
                return self.source.content(key)
            except BadClipError:
                return None
        known = self._known.get(key)
        return known[1] if known is not None and known[0] == mtime_key else None

    def add(self, entries: Sequence[tuple[str, str, str]]) -> None:
        """Store (key, mtime_key, content) of clips.

        Raises:
            DataError: the folder cannot be written.
        """
        new = [entry for entry in entries if self._known.get(entry[0]) != entry[1:]]
        if not new:
            return
        self._known |= {key: (mtime_key, content) for key, mtime_key, content in new}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab") as file:
                # The newline at the start ends the incomplete line that a killed process may have left.
                file.write(b"\n" + b"".join(json.dumps(entry).encode() + b"\n" for entry in new))
        except OSError as error:
            raise DataError(
                f"{self.file} cannot be written: {error}; set cache_dir to a writable folder with free space"
            ) from error
