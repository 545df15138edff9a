"""dataset=folder: your own recordings in a folder with one subfolder per class.

    ROOT/CLASS/NAME.wav                   any format that libsndfile reads, any sample rate, mono or stereo
    ROOT/CLASS/RECORDING/NAME.wav         clips cut from one recording are in a folder of their own
    ROOT/train/CLASS/..., ROOT/test/CLASS/...                 an existing split above the classes,
    ROOT/CLASS/train/..., ROOT/CLASS/test/...                 or below them; validation is optional

The clips are assigned to five folds, those of one recording to the same fold. With an existing split, the test is fold
5, validation is fold 4, and the training clips are assigned to the remaining folds.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from fed_a2v.core.names import clean_name
from fed_a2v.data.clips import SPLITS, Record, Split
from fed_a2v.data.datasets.folds import FOLDS
from fed_a2v.data.datasets.sound_files import FoldedFiles, advice, sound_files, subfolders, tree, warn_of_unreadable
from fed_a2v.data.errors import DataError

logger = logging.getLogger("fed_a2v")

SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), SPLITS[0]),
    **dict.fromkeys(("val", "valid", "validation"), SPLITS[1]),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), SPLITS[2]),
}


class ClassFolders(FoldedFiles):
    """The clips in a folder with one subfolder per class. A clip's key is its path relative to the folder.

    Args:
        root: folder of the data set.
        split_seed: seed of the folds.
    """

    layout = "**"  # any folder

    def watched(self) -> list[Path]:
        """The folders whose times change when clips are added or removed."""
        return [self.root, *(place for folder in subfolders(self.root) for place, _ in tree(folder))]

    def records(self) -> list[Record]:
        """All sound files, class by class.

        Raises:
            DataError: no subfolder has a sound file, or the name of one is not a class name.
        """
        keys: list[str] = []
        unreadable: list[str] = []
        empty: list[str] = []
        for folder in subfolders(self.root):
            others: list[str] = []
            names = [f"{folder.name}/{name}" for name in sound_files(folder, others)]
            unreadable += (f"{folder.name}/{name}" for name in others)
            keys += names
            if not names:
                empty.append(folder.name)
        if not keys:
            raise DataError(
                f"{self.root} has no subfolder with a sound file (.wav, .flac, .ogg, .mp3, ...); "
                + (advice(unreadable) or "set dataset.root to the folder with a subfolder for each class")
            )
        if empty:
            logger.warning("Left out the classes without a sound file: %s", ", ".join(empty))
        warn_of_unreadable(unreadable, self.root)
        depth = _depth_of_split(keys, self.root)
        if depth is not None:
            return self._with_split(keys, depth)
        categories = [key.partition("/")[0] for key in keys]
        self._check_names(categories)
        return self.assign_folds(zip(keys, categories, _recordings(keys, 1), strict=True))

    def _with_split(self, keys: Sequence[str], depth: int) -> list[Record]:
        """The clips of an existing split, whose names are the folders at `depth` in each key."""
        paths = [key.split("/") for key in keys]
        categories = [path[1 - depth] for path in paths]
        self._check_names(categories)
        splits = [SPLIT_NAMES[clean_name(path[depth])] for path in paths]
        # Validation and test, if they exist, are the last folds in this order.
        later = [split for split in SPLITS[1:] if split in splits]
        fold_of = {split: FOLDS - len(later) + 1 + number for number, split in enumerate(later)}
        folds = {path[depth]: fold_of.get(split) for path, split in zip(paths, splits, strict=True)}
        logger.info(
            "%s has a split: %s",
            self.root,
            ", ".join(f"{name}/ is {f'fold {fold}' if fold else 'the other folds'}" for name, fold in folds.items()),
        )
        official = [fold_of.get(split, 0) for split in splits]
        return self.assign_folds(zip(keys, categories, _recordings(keys, 2), strict=True), official, FOLDS - len(later))

    def _check_names(self, categories: Sequence[str]) -> None:
        if wrong := next((name for name in dict.fromkeys(categories) if not clean_name(name)), None):
            raise DataError(f"{self.root}: the folder name {wrong!r} contains no word; rename it to a class name")


Source = ClassFolders


def _depth_of_split(keys: Sequence[str], root: Path) -> int | None:
    """The position of the split's folder in each key: 0 above the class, 1 below it; None: there is no split.

    Raises:
        DataError: the top folders are a split or folds, and there are no classes below them.
    """
    paths = [key.split("/") for key in keys]
    tops = list(dict.fromkeys(path[0] for path in paths))
    deep = all(len(path) > 2 for path in paths)
    tops_are_splits = all(clean_name(top) in SPLIT_NAMES for top in tops)
    if tops_are_splits and deep:
        return 0
    if len(tops) > 1 and (tops_are_splits or all(re.fullmatch(r"fold ?\d+", clean_name(top)) for top in tops)):
        raise DataError(
            f"{root}: the folders {', '.join(tops[:4])} look like splits or folds, not like classes; move the clips to "
            "one folder per class, or write a table of them (dataset=esc50: meta/esc50.csv with filename, fold, "
            "category)"
        )
    splits = {SPLIT_NAMES.get(clean_name(path[1])) for path in paths} if deep else {None}
    return 1 if len(splits) > 1 and None not in splits else None


def _recordings(keys: Sequence[str], depth: int) -> list[str]:
    """The recording of each clip: the folder below those of class and split, or the file itself if there is none.

    Files that differ only in their suffix are one recording, possibly in two formats.
    """
    first: dict[str, str] = {}
    recordings = []
    for key in keys:
        path = key.split("/")
        folder = "/".join(path[: depth + 1])
        recordings.append(folder if len(path) > depth + 1 else first.setdefault(key.rpartition(".")[0], key))
    return recordings
