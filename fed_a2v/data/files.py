"""Clips that are sound files under a folder: finding, identifying and reading them."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fed_a2v.data.audio import read_clip
from fed_a2v.data.clips import FloatArray, Record
from fed_a2v.data.errors import BadClipError, DataError
from fed_a2v.data.folds import FOLDS, deal_folds

logger = logging.getLogger("fed_a2v")

YOUNG = 2.0
SUFFIXES = (".wav", ".flac", ".ogg")


class SoundFiles:
    """What every data set of files has. A clip's key is its path below the root, with forward slashes.

    Args:
        root: folder of the data set.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()

    def path(self, key: str) -> Path:
        """The clip's file."""
        return self.root / key

    def stamp(self, key: str) -> str | None:
        """Size and times of the file: quick to look up, and changed whenever the file is.

        None without a file, and of one so young that it may yet change within one tick of the disk's clock.
        """
        try:
            stat = self.path(key).stat()
        except OSError:
            return None
        if time.time() - max(stat.st_mtime, stat.st_ctime) < YOUNG:
            return None
        return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}"

    def content(self, key: str) -> str:
        """Hash of the file's bytes."""
        try:
            with self.path(key).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise BadClipError(f"{self.path(key)} cannot be read: {error.strerror}") from error

    def waveform(self, key: str, sample_rate: int, seconds: float) -> FloatArray:
        """The clip, mono, resampled, cropped or padded."""
        return read_clip(self.path(key), sample_rate, seconds)


class DealtFiles(SoundFiles):
    """A data set of files without official folds: its clips are dealt to some.

    Args:
        root: folder of the data set.
        split_seed: of the dealing.
    """

    def __init__(self, root: str | Path, split_seed: int = 0) -> None:
        super().__init__(root)
        self.split_seed = split_seed

    def dealt(self, keys: Sequence[str], categories: Sequence[str], sources: Sequence[str]) -> list[Record]:
        """The N clips with these keys, classes and sources, dealt to five folds; those of one source to the same."""
        folds = deal_folds(categories, sources, FOLDS, self.split_seed)
        return [Record(*values) for values in zip(keys, categories, folds, sources, strict=True)]


def subfolders(root: Path) -> list[Path]:
    """The folders in `root`, links to folders included, hidden ones not; sorted by name.

    Raises:
        DataError: there is no such folder.
    """
    try:
        with os.scandir(root) as entries:
            return sorted(Path(entry.path) for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise DataError(
            f"{root} cannot be read: {error.strerror}; dataset.root is the folder of the data set"
        ) from error


def sound_files(folder: Path) -> Iterator[str]:
    """Paths below `folder` of all sound files in it, sorted within each subfolder; none is opened.

    Links to folders are followed; each folder is visited once, so that links in a circle end.

    Raises:
        DataError: a name is not UTF-8.
    """
    visited: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        stat = Path(place).stat()
        if (stat.st_dev, stat.st_ino) in visited:
            folders.clear()
            continue
        visited.add((stat.st_dev, stat.st_ino))
        folders.sort()
        below = "" if Path(place) == folder else Path(place).relative_to(folder).as_posix() + "/"
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield _checked(below + name, folder)


def warn_of_missing(missing: int, total: int, example: str, table: Path) -> None:
    """One warning for all clips of a table that have no file: of videos, some are always gone."""
    if missing:
        logger.warning(
            "%d of %d clips in %s have no sound file and are left out, e.g. %s", missing, total, table, example
        )


def _checked(name: str, folder: Path) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{folder} has a file whose name is not UTF-8: {name!r}; rename it") from error
    return name
