"""Which content a file has, remembered by its size and times: 200,000 files are not read again to know them again."""

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
    """The contents of a data set's clips, as far as they were ever looked up.

    The file behind it is added to and never rewritten: lines [key, mtime_key, content], of which the last of a clip
    counts, and one that a kill cut short is passed over.

    Args:
        source: the data set.
        cache: folder of the cache.
    """

    def __init__(self, source: ClipSource, cache: Path) -> None:
        self.source = source
        place = repr([str(path.absolute()) for path in source.watched()[:1]])
        name = f"{type(source).__name__}{place}"
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
        """The content of a clip, if it is known and its file has not changed since, or if it is quick to look up."""
        mtime_key = self.source.mtime_key(key)
        if mtime_key is None:
            try:
                return self.source.content(key)
            except BadClipError:
                return None
        known = self._known.get(key)
        return known[1] if known is not None and known[0] == mtime_key else None

    def add(self, found: Sequence[tuple[str, str, str]]) -> None:
        """Remember (key, mtime_key, content) of some clips.

        Raises:
            DataError: the folder cannot be written.
        """
        new = [entry for entry in found if self._known.get(entry[0]) != entry[1:]]
        if not new:
            return
        self._known |= {key: (mtime_key, content) for key, mtime_key, content in new}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab") as file:
                # A line that was cut short ends here, whatever it was.
                file.write(b"\n" + b"".join(json.dumps(entry).encode() + b"\n" for entry in new))
        except OSError as error:
            raise DataError(
                f"{self.file} cannot be written: {error}; set cache_dir to a folder with room that can be written"
            ) from error
