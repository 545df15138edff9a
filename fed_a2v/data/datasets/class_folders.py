"""A folder of one's own recordings, a subfolder a class.

    ROOT/CLASS/NAME.wav                   any kind of sound file that libsndfile reads, of any rate, mono or stereo
    ROOT/CLASS/RECORDING/NAME.wav         clips cut from one recording lie in a folder of their own
    ROOT/train/CLASS/..., ROOT/test/CLASS/...                 a split that is there already,
    ROOT/CLASS/train/..., ROOT/CLASS/test/...                 or so; a part for validation can be beside them

The clips are dealt to five folds; those of one recording to the same. Where there is a split, its test is fold 5, its
validation fold 4, and its training is dealt to the folds before.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from fed_a2v.core.names import clean_name
from fed_a2v.data.clips import SPLITS, Record, Split
from fed_a2v.data.datasets.folds import FOLDS
from fed_a2v.data.datasets.sound_files import FoldedFiles, advice, sound_files, subfolders, tree, warn_of_silent
from fed_a2v.data.errors import DataError

logger = logging.getLogger("fed_a2v")

PARTS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), SPLITS[0]),
    **dict.fromkeys(("val", "valid", "validation"), SPLITS[1]),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), SPLITS[2]),
}


class ClassFolders(FoldedFiles):
    """The clips under a folder with a subfolder a class. A clip's key is its path below the folder.

    Args:
        root: folder of the data set.
        split_seed: of the folds.
    """

    def watched(self) -> list[Path]:
        """The folders that change when clips come or go."""
        return [self.root, *(place for folder in subfolders(self.root) for place, _ in tree(folder))]

    def records(self) -> list[Record]:
        """All sound files, class by class.

        Raises:
            DataError: there is no subfolder with a sound file, or one whose name is no class name.
        """
        keys: list[str] = []
        silent: list[str] = []
        empty: list[str] = []
        for folder in subfolders(self.root):
            mute: list[str] = []
            names = [f"{folder.name}/{name}" for name in sound_files(folder, mute)]
            silent += (f"{folder.name}/{name}" for name in mute)
            keys += names
            if not names:
                empty.append(folder.name)
        if not keys:
            raise DataError(
                f"{self.root} has no subfolder with a sound file (.wav, .flac, .ogg, .mp3, ...); "
                + (advice(silent) or "dataset.root is the folder that holds a subfolder for each class")
            )
        if empty:
            logger.warning("Classes without a sound file are left out: %s", ", ".join(empty))
        warn_of_silent(silent, self.root)
        place = _place_of_split(keys, self.root)
        return self._dealt(keys) if place is None else self._split(keys, place)

    def _dealt(self, keys: Sequence[str]) -> list[Record]:
        categories = [key.partition("/")[0] for key in keys]
        self._check_names(categories)
        return self.dealt(zip(keys, categories, _recordings(keys, 1), strict=True))

    def _split(self, keys: Sequence[str], place: int) -> list[Record]:
        """The clips of a split that is there already; its names are the folders at `place` in each key."""
        paths = [key.split("/") for key in keys]
        categories = [path[1 - place] for path in paths]
        self._check_names(categories)
        splits = [PARTS[clean_name(path[place])] for path in paths]
        # The last folds, in the order of the splits: what there is of validation and test.
        later = [split for split in SPLITS[1:] if split in splits]
        fold_of = {split: FOLDS - len(later) + 1 + number for number, split in enumerate(later)}
        told = {path[place]: fold_of.get(split) for path, split in zip(paths, splits, strict=True)}
        logger.info(
            "%s holds a split: %s",
            self.root,
            ", ".join(f"{name}/ is {f'fold {fold}' if fold else 'dealt to the others'}" for name, fold in told.items()),
        )
        official = [fold_of.get(split, 0) for split in splits]
        return self.dealt(zip(keys, categories, _recordings(keys, 2), strict=True), official, FOLDS - len(later))

    def _check_names(self, categories: Sequence[str]) -> None:
        if wrong := next((name for name in dict.fromkeys(categories) if not clean_name(name)), None):
            raise DataError(f"{self.root}: the folder {wrong!r} holds no word; rename it to the class of its sounds")


def _place_of_split(keys: Sequence[str], root: Path) -> int | None:
    """Where in each key the part of a split stands: 0 above the class, 1 below it; None: there is no split.

    Raises:
        DataError: what stands in the place of the classes is a split or folds, and there are no classes.
    """
    paths = [key.split("/") for key in keys]
    tops = list(dict.fromkeys(path[0] for path in paths))
    deep = all(len(path) > 2 for path in paths)
    named = all(clean_name(top) in PARTS for top in tops)
    if named and deep:
        return 0
    if len(tops) > 1 and (named or all(re.fullmatch(r"fold ?\d+", clean_name(top)) for top in tops)):
        raise DataError(
            f"{root}: the folders {', '.join(tops[:4])} look like the parts of a split and not like classes; put the "
            "clips into a folder for each class, or write a table of them (dataset=esc50: meta/esc50.csv with "
            "filename, fold, category)"
        )
    parts = {PARTS.get(clean_name(path[1])) for path in paths} if deep else {None}
    return 1 if len(parts) > 1 and None not in parts else None


def _recordings(keys: Sequence[str], depth: int) -> list[str]:
    """The recording of each clip: the folder below those of class and split, else the file with others of its name."""
    first: dict[str, str] = {}
    recordings = []
    for key in keys:
        path = key.split("/")
        one = "/".join(path[: depth + 1])
        recordings.append(one if len(path) > depth + 1 else first.setdefault(key.rpartition(".")[0], key))
    return recordings
