"""Clips that are sound files under a folder: finding, identifying and reading them."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fed_a2v.core.names import composed
from fed_a2v.data.audio import OTHER_SUFFIXES, SUFFIXES, read_clip
from fed_a2v.data.clips import FloatArray, Record
from fed_a2v.data.datasets.folds import FOLDS, assign_folds
from fed_a2v.data.errors import BadClipError, DataError

logger = logging.getLogger("fed_a2v")

YOUNG = 2.0
# Beside whatever begins with a dot: what macOS, Windows, Linux and network storage leave in folders.
SYSTEM_FOLDERS = frozenset(
    ("__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found", "@eaDir", "#recycle", "#snapshot")
)


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

    def mtime_key(self, key: str) -> str | None:
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
            raise BadClipError(
                f"{self.path(key)} cannot be read: {error.strerror}{_instead(self.path(key))}"
            ) from error

    def waveform(self, key: str, sample_rate: int, seconds: float) -> FloatArray:
        """The clip, mono, resampled, cropped or padded."""
        return read_clip(self.path(key), sample_rate, seconds)


class FoldedFiles(SoundFiles):
    """A data set of files without official folds: its clips are dealt to some.

    Args:
        root: folder of the data set.
        split_seed: of the dealing.
    """

    def __init__(self, root: str | Path, split_seed: int = 0) -> None:
        super().__init__(root)
        self.split_seed = split_seed

    def dealt(
        self, clips: Iterable[tuple[str, str, str]], official: Sequence[int] | None = None, folds: int = FOLDS
    ) -> list[Record]:
        """Clips as records; those of one source are in one fold.

        Args:
            clips: N keys, classes and sources.
            official: N folds, 0 for a clip that is dealt to one; default: all are dealt.
            folds: to how many they are dealt.
        """
        records = [Record(key, composed(category), 0, source) for key, category, source in clips]
        given = official or [0] * len(records)
        free = [record for record, fold in zip(records, given, strict=True) if not fold]
        dealt = iter(
            assign_folds([clip.category for clip in free], [clip.source for clip in free], folds, self.split_seed)
        )
        return [record._replace(fold=fold or next(dealt)) for record, fold in zip(records, given, strict=True)]


def subfolders(root: Path) -> list[Path]:
    """The folders in `root`, links to folders included, those of the system not; sorted by name.

    Raises:
        DataError: there is no such folder, or it cannot be read, or the name of one in it is not UTF-8.
    """
    return [root / entry.name for entry in _entries(root) if entry.is_dir()]


def tree(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """`folder` and every folder below it, each with the names of its files; all in the order of their names.

    What is hidden, and what systems and programs leave in folders, is passed over. Links to folders are followed;
    each folder is visited once, so that links in a circle end.

    Raises:
        DataError: a folder cannot be read, or the name of one, or of a sound, is not UTF-8.
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


def sound_files(folder: Path, silent: list[str] | None = None) -> Iterator[str]:
    """Paths below `folder` of all sound files in it, in the order of `tree`; none is opened.

    Args:
        folder: where to look.
        silent: gets the paths of what sounds elsewhere and cannot be read here, such as videos, without what lies
            beside a sound file of the same name.

    Raises:
        DataError: see `tree`.
    """
    for place, names in tree(folder):
        below = "" if place == folder else place.relative_to(folder).as_posix() + "/"
        sounds = [name for name in names if name.lower().endswith(SUFFIXES)]
        yield from (below + name for name in sounds)
        if silent is not None:
            stems = {stem(name) for name in sounds}
            others = (name for name in names if name.lower().endswith(OTHER_SUFFIXES))
            silent.extend(below + name for name in others if stem(name) not in stems)


def stem(key: str) -> str:
    """The name of a key's file without its suffix."""
    return key.rpartition("/")[2].rpartition(".")[0]


def advice(silent: Sequence[str]) -> str:
    """What can be done about videos and sounds of other kinds: how to make sound files of them; "" without any."""
    if not silent:
        return ""
    kinds = sorted({Path(name).suffix.lower() for name in silent})
    name = silent[0].rpartition("/")[2]
    return (
        f"no sound can be read from the {len(silent)} files of the kind {' or '.join(kinds)}, e.g. {silent[0]}; make "
        f"a sound file of each: ffmpeg -i '{name}' '{stem(name)}.wav'"
    )


def _instead(path: Path) -> str:
    """Which other files have the name of one that is missing."""
    try:
        others = sorted(other.name for other in path.parent.iterdir() if other != path and other.stem == path.stem)
    except OSError:
        return ""
    return f"; there is {', '.join(others)}" if others else ""


def warn_of_silent(silent: Sequence[str], folder: Path) -> None:
    """One warning for all files that cannot be read as sounds."""
    if silent:
        logger.warning("Left out of %s: %s", folder, advice(silent))


def warn_of_missing(missing: int, total: int, example: str, table: Path) -> None:
    """One warning for all clips of a table that have no file: of videos, some are always gone."""
    if missing:
        logger.warning(
            "%d of %d clips in %s have no sound file and are left out, e.g. %s", missing, total, table, example
        )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What people put into a folder, by name: nothing hidden, nothing of the system's, nothing that locks or waits."""
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not _of_the_system(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read: {error.strerror}; dataset.root is the folder of the data set"
        ) from error
    for entry in entries:
        if not _is_utf8(entry.name) and (entry.is_dir() or entry.name.lower().endswith(SUFFIXES)):
            raise DataError(f"{folder} holds {entry.name!r}, whose name is not UTF-8; rename it, e.g. with convmv")
    return entries


def _of_the_system(name: str) -> bool:
    return name.startswith((".", "~$")) or name.endswith((".lock", "~")) or name in SYSTEM_FOLDERS


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
