"""Base classes and functions of the data sets that are folders of sound files: finding, hashing and reading clips."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Self, TextIO

from fed_a2v.config.sections.data import DatasetSettings
from fed_a2v.core.names import composed
from fed_a2v.data.audio import OTHER_SUFFIXES, SUFFIXES, read_clip
from fed_a2v.data.clips import FloatArray, Record
from fed_a2v.data.datasets.base import DataSet
from fed_a2v.data.datasets.folds import FOLDS, assign_folds
from fed_a2v.data.errors import BadClipError, DataError

logger = logging.getLogger("fed_a2v")

# Seconds: a file changed more recently may change again within one tick of the file system's clock.
RECENT = 2.0
# Folders that macOS, Windows, Linux and network storage create, besides those whose names start with a dot.
SYSTEM_FOLDERS = frozenset(
    ("__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found", "@eaDir", "#recycle", "#snapshot")
)


class SoundFiles(DataSet, ABC):
    """Base of the data sets of sound files. A clip's key is its path relative to the root, with forward slashes.

    Args:
        root: folder of the data set.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()

    @classmethod
    def open(cls, settings: DatasetSettings, seed: int) -> Self:
        """See `DataSet`."""
        del seed
        return cls(str(settings.root))

    @abstractmethod
    def watched(self) -> list[Path]:
        """See `ClipSource`."""

    @abstractmethod
    def records(self) -> list[Record]:
        """See `ClipSource`."""

    def path(self, key: str) -> Path:
        """The clip's file."""
        return self.root / key

    def mtime_key(self, key: str) -> str | None:
        """Size and times of the file.

        None if there is no file, or if it was changed so recently that another change could keep its times.
        """
        try:
            stat = self.path(key).stat()
        except OSError:
            return None
        if time.time() - max(stat.st_mtime, stat.st_ctime) < RECENT:
            return None
        return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}"

    def content(self, key: str) -> str:
        """SHA-256 of the file's bytes."""
        path = self.path(key)
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise BadClipError(f"{path} cannot be read: {error.strerror}{_similar_files(path)}") from error

    def waveform(self, key: str, sample_rate: int, seconds: float) -> FloatArray:
        """The clip as mono, resampled, and cropped or padded."""
        return read_clip(self.path(key), sample_rate, seconds)


class FoldedFiles(SoundFiles):
    """Base of the data sets of sound files without official folds: `records` calls `assign_folds`.

    Args:
        root: folder of the data set.
        split_seed: seed of the assignment of clips to folds.
    """

    folds: ClassVar = tuple(range(1, FOLDS + 1))

    def __init__(self, root: str | Path, split_seed: int = 0) -> None:
        super().__init__(root)
        self.split_seed = split_seed

    @classmethod
    def open(cls, settings: DatasetSettings, seed: int) -> Self:
        """See `DataSet`."""
        del seed
        return cls(str(settings.root), split_seed=settings.split_seed)

    def assign_folds(
        self, clips: Iterable[tuple[str, str, str]], official: Sequence[int] | None = None, folds: int = FOLDS
    ) -> list[Record]:
        """Clips as records with folds; clips of one source are in the same fold.

        Args:
            clips: N keys, classes and sources.
            official: N official folds, 0 for a clip without one; default: no clip has one.
            folds: number of folds to which the clips without an official fold are assigned.
        """
        records = [Record(key, composed(category), 0, source) for key, category, source in clips]
        official = official or [0] * len(records)
        free = [record for record, fold in zip(records, official, strict=True) if not fold]
        assigned = iter(
            assign_folds([clip.category for clip in free], [clip.source for clip in free], folds, self.split_seed)
        )
        return [record._replace(fold=fold or next(assigned)) for record, fold in zip(records, official, strict=True)]


@contextlib.contextmanager
def open_csv(table: Path) -> Iterator[TextIO]:
    """Open the CSV file of a data set in UTF-8; the block reads it.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or not a CSV file.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            yield file
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"{table} is not a readable CSV file: {error}; restore it from the data set") from error


def subfolders(root: Path) -> list[Path]:
    """The folders in `root`, including links to folders, without system folders; sorted by name.

    Raises:
        DataError: `root` does not exist or cannot be read, or the name of a folder in it is not UTF-8.
    """
    return [root / entry.name for entry in _entries(root) if entry.is_dir()]


def tree(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """`folder` and every folder below it, each with the names of its files; all sorted by name.

    Hidden files and files of the system are left out. Links to folders are followed; each folder is visited once, so
    that circular links end.

    Raises:
        DataError: a folder cannot be read, or the name of a folder or sound file is not UTF-8.
    """
    visited: set[tuple[int, int]] = set()

    def visit(place: Path) -> Iterator[tuple[Path, list[str]]]:
        entries = _entries(place)
        stat = place.stat()
        if (stat.st_dev, stat.st_ino) in visited:
            return
        visited.add((stat.st_dev, stat.st_ino))
        folders = [entry.name for entry in entries if entry.is_dir()]
        yield place, [entry.name for entry in entries if not entry.is_dir()]
        for name in folders:
            yield from visit(place / name)

    return visit(folder)


def sound_files(folder: Path, unreadable: list[str] | None = None) -> Iterator[str]:
    """Paths, relative to `folder`, of all sound files in it, in the order of `tree`; no file is opened.

    Args:
        folder: the folder to search.
        unreadable: list to which the paths of audio and video files in unsupported formats are added, except those
            next to a sound file of the same name.

    Raises:
        DataError: see `tree`.
    """
    for place, names in tree(folder):
        below = "" if place == folder else place.relative_to(folder).as_posix() + "/"
        sounds = [name for name in names if name.lower().endswith(SUFFIXES)]
        yield from (below + name for name in sounds)
        if unreadable is not None:
            stems = {stem(name) for name in sounds}
            others = (name for name in names if name.lower().endswith(OTHER_SUFFIXES))
            unreadable.extend(below + name for name in others if stem(name) not in stems)


def stem(key: str) -> str:
    """The name of a key's file without its suffix."""
    return key.rpartition("/")[2].rpartition(".")[0]


def advice(unreadable: Sequence[str]) -> str:
    """How to convert audio and video files in unsupported formats, for messages; "" if there are none."""
    if not unreadable:
        return ""
    kinds = sorted({Path(name).suffix.lower() for name in unreadable})
    name = unreadable[0].rpartition("/")[2]
    return (
        f"the {len(unreadable)} files of the kind {' or '.join(kinds)} cannot be read, e.g. {unreadable[0]}; convert "
        f"each to a sound file: ffmpeg -i '{name}' '{stem(name)}.wav'"
    )


def _similar_files(path: Path) -> str:
    """The files in the folder of a missing file that differ only in their suffix, for messages."""
    try:
        others = sorted(other.name for other in path.parent.iterdir() if other != path and other.stem == path.stem)
    except OSError:
        return ""
    return f"; there is {', '.join(others)}" if others else ""


def warn_of_unreadable(unreadable: Sequence[str], folder: Path) -> None:
    """Log one warning about all files in unsupported formats."""
    if unreadable:
        logger.warning("Left out of %s: %s", folder, advice(unreadable))


def warn_of_missing(missing: int, total: int, example: str, table: Path) -> None:
    """Log one warning about all clips of a table without a file; online videos disappear over time."""
    if missing:
        logger.warning(
            "%d of %d clips in %s have no sound file and are left out, e.g. %s", missing, total, table, example
        )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, without hidden, system, backup and lock files."""
    try:
        with os.scandir(folder) as scan:
            entries = sorted((entry for entry in scan if not _is_system_file(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read: {error.strerror}; set dataset.root to the folder of the data set"
        ) from error
    for entry in entries:
        if not _is_utf8(entry.name) and (entry.is_dir() or entry.name.lower().endswith(SUFFIXES)):
            raise DataError(f"{folder} has {entry.name!r}, whose name is not UTF-8; rename it, e.g. with convmv")
    return entries


def _is_system_file(name: str) -> bool:
    return name.startswith((".", "~$")) or name.endswith((".lock", "~")) or name in SYSTEM_FOLDERS


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
