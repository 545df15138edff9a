"""dataset=vegas: VEGAS (Zhou et al., 2018, "Visual to Sound: Generating Natural Sound for Videos in the Wild").

    ROOT/CLASS/audios/video_00001.wav     any format that libsndfile reads, any sample rate, mono or stereo
    ROOT/CLASS/video_info.csv             YTID,start_second,end_second: one line per video, in the videos' order

Images and videos are not read. VEGAS has no official split: the clips are assigned to five folds, those of one YouTube
video to the same fold.
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
    open_csv,
    sound_files,
    subfolders,
    warn_of_missing,
    warn_of_unreadable,
)
from fed_a2v.data.errors import DataError

logger = logging.getLogger("fed_a2v")


class VegasFolder(FoldedFiles):
    """The clips in a folder with VEGAS's layout. A clip's key is CLASS/audios/NAME.

    Args:
        root: folder of the data set.
        split_seed: seed of the folds.
    """

    layout = "*/audios"

    def watched(self) -> list[Path]:
        """The files and folders whose times change when the list of clips does."""
        return [self.root, *(part for folder in subfolders(self.root) for part in (folder / "audios", _table(folder)))]

    def records(self) -> list[Record]:
        """All sound files, class by class.

        Raises:
            DataError: no class has a sound file, or a CSV file cannot be read.
        """
        clips: list[tuple[str, str, str]] = []
        unreadable: list[str] = []
        without_row: set[str] = set()
        # The first file of each name: files that differ only in their suffix may be one recording in two formats.
        first: dict[str, str] = {}
        listed, missing, example = 0, 0, ""
        folders = [folder for folder in subfolders(self.root) if (folder / "audios").is_dir()]
        for folder in folders:
            others: list[str] = []
            names = list(sound_files(folder / "audios", others))
            unreadable += (f"{folder.name}/audios/{name}" for name in others)
            if not names:
                logger.warning("%s has no sound file; left out the class %s", folder / "audios", folder.name)
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
                video = row is not None and row < len(videos) and videos[row]
                if not video:
                    without_row.add(folder.name)
                source = f"youtube:{video}" if video else first.setdefault(key.rpartition(".")[0], key)
                clips.append((key, folder.name, source))
        if not clips:
            raise DataError(
                f"{self.root} has no sound file in CLASS/audios/; "
                + (advice(unreadable) or "set dataset.root to the folder with baby_cry/, dog/, ... of VEGAS")
            )
        warn_of_unreadable(unreadable, self.root)
        warn_of_missing(missing, listed, example, self.root / "*" / "video_info.csv")
        if without_row:
            logger.warning(
                "video_info.csv has no row for some clips of %s, so that clips of one video may be in both training "
                "and test; restore the file",
                ", ".join(sorted(without_row)),
            )
        return self.assign_folds(clips)


Source = VegasFolder


def _table(folder: Path) -> Path:
    return folder / "video_info.csv"


def _videos(table: Path) -> list[str]:
    """The YouTube IDs, in the videos' order; [] if there is no table."""
    if not table.is_file():
        return []
    with open_csv(table) as file:
        rows = [row for row in csv.reader(file) if row]
    if rows and rows[0][0].strip().casefold() == "ytid":
        rows = rows[1:]
    return [row[0].strip() for row in rows]


def _number(name: str) -> int | None:
    """The number at the end of a file name: 42 for video_00042.wav; None if there is none."""
    match = re.search(r"([0-9]{1,9})\.[^.]*$", name)
    return int(match[1]) if match else None
