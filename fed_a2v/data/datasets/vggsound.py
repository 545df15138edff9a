"""VGGSound (Chen et al., 2020, "VGGSound: A Large-Scale Audio-Visual Dataset", arXiv:2004.14368).

    ROOT/vggsound.csv             YouTube id, start second, label, train or test: without a header
    ROOT/ID_000030.wav            the clip that starts at second 30, of any kind that libsndfile reads; here or in any
                                  subfolder

The official test clips are fold 5; those of training are dealt to the folds 1 to 4, so that some can be kept for
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
    sound_files,
    stem,
    tree,
    warn_of_missing,
    warn_of_silent,
)
from fed_a2v.data.errors import DataError


class _Row(NamedTuple):
    stem: str
    video: str
    label: str
    split: str


class VggSoundFolder(FoldedFiles):
    """The clips under a folder in VGGSound's layout. A clip's key is its path below the folder.

    Args:
        root: folder of the data set.
        split_seed: of the dealing of training clips to the folds 1 to 4.
    """

    def __init__(self, root: str | Path, split_seed: int = 0) -> None:
        super().__init__(root, split_seed)
        self.table = self.root / "vggsound.csv"

    def watched(self) -> list[Path]:
        """The files and folders that change when the list of clips does."""
        return [self.table, *(place for place, _ in tree(self.root))]

    def records(self) -> list[Record]:
        """The rows of the csv that have a file.

        Raises:
            DataError: the csv is missing or malformed, or none of its clips has a file; names the line.
        """
        rows = self._rows()
        silent: list[str] = []
        files = self._files(silent)
        present = [row for row in rows if row.stem in files]
        if not present:
            raise DataError(
                f"none of the {len(rows)} clips in {self.table} has a sound file, e.g. {rows[0].stem}.wav; "
                + (advice(silent) or "put the clips into dataset.root or a subfolder of it")
            )
        absent = next((row.stem for row in rows if row.stem not in files), "")
        warn_of_missing(len(rows) - len(present), len(rows), f"{absent}.wav", self.table)
        absent_stems = {row.stem for row in rows} - files.keys()
        warn_of_silent([key for key in silent if stem(key) in absent_stems], self.root)
        clips = ((files[row.stem], row.label, f"youtube:{row.video}") for row in present)
        return self.dealt(clips, [0 if row.split == "train" else FOLDS for row in present], FOLDS - 1)

    def _files(self, silent: list[str]) -> dict[str, str]:
        """Keys by file name without suffix; what cannot be read is added to `silent`."""
        found: dict[str, str] = {}
        for key in sound_files(self.root, silent):
            found.setdefault(stem(key), key)
        return found

    def _rows(self) -> list[_Row]:
        if not self.table.is_file():
            raise DataError(f"{self.table}: no such file; dataset.root is the folder that holds vggsound.csv")
        rows: list[_Row] = []
        # Labels and splits recur: one text for all rows saves most of the memory.
        same: dict[str, str] = {}
        try:
            with self.table.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file)
                rows.extend(self._row(values, reader.line_num, same) for values in reader if values)
        except (UnicodeDecodeError, csv.Error, OSError) as error:
            raise DataError(f"{self.table} is not a readable csv: {error}") from error
        if not rows:
            raise DataError(f"{self.table} lists no clip; get it anew from the data set's page")
        return rows

    def _row(self, values: list[str], line: int, same: dict[str, str]) -> _Row:
        if len(values) < 4:
            raise self._error(line, f"{len(values)} columns instead of YouTube id, start second, label, train or test")
        # A label may hold commas, and not every copy of the table quotes it.
        video, start, *words, split = map(str.strip, values)
        label = ", ".join(words)
        if not (start.isascii() and start.isdigit() and len(start) <= 6):
            raise self._error(line, f"start second {start!r} is not a whole number; the table has no header line")
        if split not in ("train", "test"):
            raise self._error(line, f"split {split!r} is neither train nor test")
        if label not in same and not clean_name(label):
            raise self._error(line, f"label {label!r} holds no word")
        if not video or "/" in video or "\0" in video:
            raise self._error(line, f"{video!r} is no YouTube id")
        return _Row(f"{video}_{int(start):06d}", video, same.setdefault(label, label), same.setdefault(split, split))

    def _error(self, line: int, reason: str) -> DataError:
        return DataError(f"{self.table}, line {line}: {reason}")
