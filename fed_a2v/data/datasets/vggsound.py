"""dataset=vggsound: VGGSound (Chen et al., 2020, "VGGSound: A Large-Scale Audio-Visual Dataset", arXiv:2004.14368).

    ROOT/vggsound.csv             YouTube ID, start second, label, train or test; no header
    ROOT/ID_000030.wav            the clip that starts at second 30, in any format that libsndfile reads; here or in any
                                  subfolder

The official test clips are fold 5; the training clips are assigned to the folds 1 to 4, so that a fold can be used for
validation. Videos disappear from YouTube: clips without a file are left out, with one warning for all.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from fed_a2v.core.names import clean_name
from fed_a2v.data.clips import Record
from fed_a2v.data.datasets.folds import FOLDS
from fed_a2v.data.datasets.sound_files import (
    FoldedFiles,
    advice,
    open_csv,
    sound_files,
    stem,
    tree,
    warn_of_missing,
    warn_of_unreadable,
)
from fed_a2v.data.errors import DataError


class _Row(NamedTuple):
    stem: str
    video: str
    label: str
    split: str


class VggSoundFolder(FoldedFiles):
    """The clips in a folder with VGGSound's layout. A clip's key is its path relative to the folder.

    Args:
        root: folder of the data set.
        split_seed: seed of the assignment of training clips to the folds 1 to 4.
    """

    layout = "vggsound.csv"

    def __init__(self, root: str | Path, split_seed: int = 0) -> None:
        super().__init__(root, split_seed)
        self.table = self.root / "vggsound.csv"

    def watched(self) -> list[Path]:
        """The files and folders whose times change when the list of clips does."""
        return [self.table, *(folder for folder, _ in tree(self.root))]

    def records(self) -> list[Record]:
        """The rows of the CSV file that have a sound file.

        Raises:
            DataError: the CSV file is missing or malformed (the message names the line), or no clip has a file.
        """
        rows = self._rows()
        unreadable: list[str] = []
        files: dict[str, str] = {}  # keys by file name without suffix
        for key in sound_files(self.root, unreadable):
            files.setdefault(stem(key), key)
        present = [row for row in rows if row.stem in files]
        if not present:
            raise DataError(
                f"none of the {len(rows)} clips in {self.table} has a sound file, e.g. {rows[0].stem}.wav; "
                + (advice(unreadable) or "put the clips into dataset.root or a subfolder of it")
            )
        absent = [row.stem for row in rows if row.stem not in files]
        example = f"{absent[0]}.wav" if absent else ""
        warn_of_missing(len(rows) - len(present), len(rows), example, self.table)
        absent_stems = set(absent)
        warn_of_unreadable([key for key in unreadable if stem(key) in absent_stems], self.root)
        clips = ((files[row.stem], row.label, f"youtube:{row.video}") for row in present)
        return self.assign_folds(clips, [0 if row.split == "train" else FOLDS for row in present], FOLDS - 1)

    def _rows(self) -> list[_Row]:
        if not self.table.is_file():
            raise DataError(f"{self.table}: no such file; set dataset.root to the folder with vggsound.csv")
        rows: list[_Row] = []
        # Labels and splits recur: sharing one string object among all rows saves most of the memory.
        shared: dict[str, str] = {}
        with open_csv(self.table) as file:
            reader = csv.reader(file)
            rows.extend(self._row(values, reader.line_num, shared) for values in reader if values)
        if not rows:
            raise DataError(f"{self.table} lists no clip; download it again from the data set's page")
        return rows

    def _row(self, values: list[str], line: int, shared: dict[str, str]) -> _Row:
        if len(values) < 4:
            raise self._error(line, f"{len(values)} columns instead of YouTube ID, start second, label, train or test")
        # A label may contain commas, and some copies of the table do not quote it.
        video, start, *words, split = map(str.strip, values)
        label = ", ".join(words)
        if not (start.isascii() and start.isdigit() and len(start) <= 6):
            raise self._error(line, f"start second {start!r} is not an integer; the table must have no header line")
        if split not in ("train", "test"):
            raise self._error(line, f"split {split!r} is neither train nor test")
        if label not in shared and not clean_name(label):
            raise self._error(line, f"label {label!r} contains no word")
        if not video or "/" in video or "\0" in video:
            raise self._error(line, f"{video!r} is not a YouTube ID")
        name = f"{video}_{int(start):06d}"
        return _Row(name, video, shared.setdefault(label, label), shared.setdefault(split, split))

    def _error(self, line: int, reason: str) -> DataError:
        return DataError(f"{self.table}, line {line}: {reason}")


Source = VggSoundFolder
