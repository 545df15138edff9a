"""A custom data set: a table with the class of each file and the recording that it was cut from.

PYTHONPATH=examples fed-a2v train dataset=custom dataset._target_=table_of_sounds.TableOfSounds dataset.root=FOLDER
"""

import csv
from pathlib import Path

from fed_a2v.data.clips import Record
from fed_a2v.data.datasets.sound_files import FoldedFiles
from fed_a2v.data.errors import DataError


class TableOfSounds(FoldedFiles):
    """ROOT/sounds.csv with the columns file, label and recording; file names are relative to ROOT.

    `FoldedFiles` identifies and reads the files, and assigns the clips to folds. This class only lists them.

    Args:
        root: folder of the data set, from `dataset.root`.
        table: name of the table in this folder.
        split_seed: seed of the folds.
    """

    def __init__(self, root: str | Path, table: str = "sounds.csv", split_seed: int = 0) -> None:
        super().__init__(root, split_seed)
        self.table = self.root / table

    def watched(self) -> list[Path]:
        """The files and folders that change when the list of clips does."""
        return [self.table]

    def records(self) -> list[Record]:
        """All clips, in a fixed order; no sound is opened. Clips of one recording are in one fold."""
        try:
            with self.table.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            files, labels, recordings = ([row[name] for row in rows] for name in ("file", "label", "recording"))
        except (OSError, KeyError) as error:
            raise DataError(f"{self.table} needs the columns file, label and recording: {error}") from error
        return self.assign_folds(zip(files, labels, recordings, strict=True))
