"""ESC-50 (Piczak, 2015, "ESC: Dataset for Environmental Sound Classification") in its official layout.

    ROOT/meta/esc50.csv     filename, fold, category, optionally src_file, and further columns that are not read
    ROOT/audio/FILENAME     any kind of sound file that libsndfile reads, of any rate, mono or stereo

Any collection of clips in this layout can be read, e.g. a site's own recordings. The folds are never divided; four
recordings of the official set lie in two folds each, and then count as one with their test clip.
"""

from __future__ import annotations

import csv
from pathlib import Path

from fed_a2v.core.names import clean_name
from fed_a2v.data.clips import Record
from fed_a2v.data.datasets.sound_files import SoundFiles
from fed_a2v.data.errors import DataError

COLUMNS = ("filename", "fold", "category")


class Esc50Folder(SoundFiles):
    """The clips under a folder in ESC-50's layout. A clip's key is its file name."""

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self.table = self.root / "meta" / "esc50.csv"

    def watched(self) -> list[Path]:
        """The files and folders that change when the list of clips does."""
        return [self.table, self.root / "audio"]

    def path(self, key: str) -> Path:
        """The clip's file."""
        return self.root / "audio" / key

    def records(self) -> list[Record]:
        """The rows of the csv; whether the files exist is found out when they are read.

        Raises:
            DataError: the csv is missing or malformed; names the line.
        """
        if not self.table.is_file():
            raise DataError(
                f"{self.table}: no such file; dataset.root is the folder that holds meta/esc50.csv and audio/"
            )
        try:
            with self.table.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                columns = reader.fieldnames or []
                if missing := [name for name in COLUMNS if name not in columns]:
                    raise DataError(
                        f"{self.table} has no column {' and no '.join(missing)}; it has {', '.join(columns)}"
                    )
                records = [self._record(row, reader.line_num) for row in reader]
        except (UnicodeDecodeError, csv.Error, OSError) as error:
            raise DataError(f"{self.table} is not a readable csv: {error}") from error
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
            raise DataError(f"{where}: fold {fold!r} is not a number from 1")
        if not clean_name(category):
            raise DataError(f"{where}: category {category!r} holds no word")
        source = (row.get("src_file") or "").strip()
        return Record(filename, category, int(fold), f"freesound:{source}" if source else "")
