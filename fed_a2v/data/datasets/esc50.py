"""dataset=esc50: ESC-50 (Piczak, 2015, "ESC: Dataset for Environmental Sound Classification") in its official layout.

    ROOT/meta/esc50.csv     filename, fold, category, optionally src_file; other columns are ignored
    ROOT/audio/FILENAME     any format that libsndfile reads, any sample rate, mono or stereo

Other collections of clips in this layout can be read too, e.g. a site's own recordings. The folds are official. Four
recordings of ESC-50 have clips in two folds; `without_leaks` leaves their training clips out if the other is tested.
"""

from __future__ import annotations

import csv
from pathlib import Path

from fed_a2v.core.names import clean_name
from fed_a2v.data.clips import Record
from fed_a2v.data.datasets.sound_files import SoundFiles, open_csv
from fed_a2v.data.errors import DataError

COLUMNS = ("filename", "fold", "category")


class Esc50Folder(SoundFiles):
    """The clips in a folder with ESC-50's layout. A clip's key is its file name."""

    layout = "meta/esc50.csv"

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self.table = self.root / "meta" / "esc50.csv"

    def watched(self) -> list[Path]:
        """The files and folders whose times change when the list of clips does."""
        return [self.table, self.root / "audio"]

    def path(self, key: str) -> Path:
        """The clip's file."""
        return self.root / "audio" / key

    def records(self) -> list[Record]:
        """The rows of the CSV file; the sound files are not checked until they are read.

        Raises:
            DataError: the CSV file is missing or malformed; the message names the line.
        """
        if not self.table.is_file():
            raise DataError(
                f"{self.table}: no such file; set dataset.root to the folder with meta/esc50.csv and audio/"
            )
        with open_csv(self.table) as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if missing := [name for name in COLUMNS if name not in columns]:
                raise DataError(f"{self.table} has no column {' and no '.join(missing)}; it has {', '.join(columns)}")
            records = [self._record(row, reader.line_num) for row in reader]
        if not records:
            raise DataError(f"{self.table} lists no clip")
        return records

    def _record(self, row: dict[str, str | None], line: int) -> Record:
        where = f"{self.table}, line {line}"
        values = {name: (row[name] or "").strip() for name in COLUMNS}
        for name, value in values.items():
            if not value:
                raise DataError(f"{where}: {name} is empty")
        filename, fold, category = values["filename"], values["fold"], values["category"]
        if Path(filename).name != filename or "\0" in filename:
            raise DataError(f"{where}: filename {filename!r} is not the plain name of a file in audio/")
        if not (fold.isascii() and fold.isdigit() and len(fold) < 10 and int(fold) >= 1):
            raise DataError(f"{where}: fold {fold!r} is not an integer from 1")
        if not clean_name(category):
            raise DataError(f"{where}: category {category!r} contains no word")
        source = (row.get("src_file") or "").strip()
        return Record(filename, category, int(fold), f"freesound:{source}" if source else "")


Source = Esc50Folder
