"""VEGAS (Zhou et al., 2018, "Visual to Sound: Generating Natural Sound for Videos in the Wild").

    ROOT/CLASS/audios/video_00001.wav     any kind of sound file that libsndfile reads, of any rate, mono or stereo
    ROOT/CLASS/video_info.csv             YTID,start_second,end_second: a line a video, in the videos' order

Images and videos beside them are not read. VEGAS has no official split: the clips are dealt to five folds, those
of one YouTube video to the same.
"""

from __future__ import annotations

import csv
import logging
import re
from pathlib import Path

from fed_a2v.data.clips import Record
from fed_a2v.data.datasets.sound_files import (
    FoldedFiles,
    advice,
    sound_files,
    subfolders,
    warn_of_missing,
    warn_of_silent,
)
from fed_a2v.data.errors import DataError

logger = logging.getLogger("fed_a2v")


class VegasFolder(FoldedFiles):
    """The clips under a folder in VEGAS's layout. A clip's key is CLASS/audios/NAME.

    Args:
        root: folder of the data set.
        split_seed: of the folds.
    """

    def watched(self) -> list[Path]:
        """The files and folders that change when the list of clips does."""
        return [self.root, *(part for folder in subfolders(self.root) for part in (folder / "audios", _table(folder)))]

    def records(self) -> list[Record]:
        """All sound files, class by class.

        Raises:
            DataError: no class has a sound file, or a csv cannot be read.
        """
        clips: list[tuple[str, str, str]] = []
        silent: list[str] = []
        without_row: set[str] = set()
        first: dict[str, str] = {}  # of the files with one name, which may be one sound in two formats
        listed, missing, example = 0, 0, ""
        folders = [folder for folder in subfolders(self.root) if (folder / "audios").is_dir()]
        for folder in folders:
            mute: list[str] = []
            names = list(sound_files(folder / "audios", mute))
            silent += (f"{folder.name}/audios/{name}" for name in mute)
            if not names:
                logger.warning("%s has no sound file: the class %s is left out", folder / "audios", folder.name)
            videos = _videos(_table(folder))
            numbers = [_number(name) for name in names]
            # Row 1 of the csv is video_00001, unless the files are counted from 0.
            start = 0 if 0 in numbers else 1
            listed += len(videos)
            if absent := sorted(set(range(start, start + len(videos))) - set(numbers)):
                missing += len(absent)
                example = example or f"{folder.name}/audios/video_{absent[0]:05d}"
            for name, number in zip(names, numbers, strict=True):
                key = f"{folder.name}/audios/{name}"
                row = None if number is None else number - start
                known = row is not None and row < len(videos) and videos[row]
                if not known:
                    without_row.add(folder.name)
                one = f"youtube:{known}" if known else first.setdefault(key.rpartition(".")[0], key)
                clips.append((key, folder.name, one))
        if not clips:
            raise DataError(
                f"{self.root} has no sound file in CLASS/audios/; "
                + (advice(silent) or "dataset.root is the folder that holds baby_cry/, dog/, ... of VEGAS")
            )
        warn_of_silent(silent, self.root)
        warn_of_missing(missing, listed, example, self.root / "*" / "video_info.csv")
        if without_row:
            logger.warning(
                "video_info.csv says nothing of some clips of %s: clips of one video may be in training and in the "
                "test; restore the file",
                ", ".join(sorted(without_row)),
            )
        return self.dealt(clips)


def _table(folder: Path) -> Path:
    return folder / "video_info.csv"


def _videos(table: Path) -> list[str]:
    """The YouTube ids, in the videos' order; [] without a table."""
    if not table.is_file():
        return []
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"{table} is not a readable csv: {error}; restore or remove it") from error
    if rows and rows[0][0].strip().casefold() == "ytid":
        rows = rows[1:]
    return [row[0].strip() for row in rows]


def _number(name: str) -> int | None:
    """42 for video_00042.wav."""
    found = re.search(r"([0-9]{1,9})\.[^.]*$", name)
    return int(found[1]) if found else None
