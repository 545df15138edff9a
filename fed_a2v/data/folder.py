"""A folder of one's own recordings, a subfolder a class.

    ROOT/CLASS/NAME.wav                   WAV, FLAC or OGG of any rate, mono or stereo
    ROOT/CLASS/RECORDING/NAME.wav         clips cut from one recording lie in a folder of their own

The clips are dealt to five folds; those of one recording to the same.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fed_a2v.core.names import clean_name
from fed_a2v.data.clips import Record
from fed_a2v.data.errors import DataError
from fed_a2v.data.files import DealtFiles, sound_files, subfolders

logger = logging.getLogger("fed_a2v")


class ClassFolders(DealtFiles):
    """The clips under a folder with a subfolder a class. A clip's key is its path below the folder.

    Args:
        root: folder of the data set.
        split_seed: of the folds.
    """

    def watched(self) -> list[Path]:
        """The folders that change when clips come or go, down to the recordings."""
        classes = subfolders(self.root)
        return [self.root, *classes, *(recording for folder in classes for recording in subfolders(folder))]

    def records(self) -> list[Record]:
        """All sound files, class by class.

        Raises:
            DataError: there is no subfolder with a sound file, or one whose name is no class name.
        """
        keys: list[str] = []
        categories: list[str] = []
        sources: list[str] = []
        empty: list[str] = []
        for folder in subfolders(self.root):
            names = list(sound_files(folder))
            if not names:
                empty.append(folder.name)
            elif not clean_name(folder.name):
                raise DataError(f"{folder}: the name holds no word; rename it to the class of its sounds")
            for name in names:
                keys.append(f"{folder.name}/{name}")
                categories.append(folder.name)
                sources.append(f"{folder.name}/{name.partition('/')[0]}")  # the recording's folder, or the clip
        if not keys:
            raise DataError(
                f"{self.root} has no subfolder with a .wav, .flac or .ogg file; "
                "dataset.root is the folder that holds a subfolder for each class"
            )
        if empty:
            logger.warning("Classes without a sound file are left out: %s", ", ".join(empty))
        return self.dealt(keys, categories, sources)
