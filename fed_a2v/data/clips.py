"""What a data set is to the rest of the program: first an index of clips, then their embeddings.

The index is made without decoding any sound. Labels are positions in `classes`; classes are known by name.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fed_a2v.core.seeding import numpy_generator
from fed_a2v.data.errors import DataError
from fed_a2v.encoders.text import clean_name
from fed_a2v.settings import DatasetSettings

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Record(NamedTuple):
    """A clip as its data set lists it: a unique key, a class name, an official fold."""

    key: str
    category: str
    fold: int


class ClipSource(Protocol):
    """A data set of sounds."""

    def records(self) -> list[Record]:
        """All clips, in the data set's order, without decoding any."""
        ...

    def content(self, key: str) -> str:
        """What identifies the clip's sound: changes whenever `waveform` would.

        Raises:
            BadClipError: the clip cannot be read.
        """
        ...

    def waveform(self, key: str, sample_rate: int, seconds: float) -> FloatArray:
        """The clip as (round(seconds * sample_rate),) float32.

        Raises:
            BadClipError: the clip cannot be read.
        """
        ...


@dataclass(frozen=True)
class ClipIndex:
    """The N clips that the settings' classes and folds select.

    Attributes:
        records: of the clips.
        rows: (N,) int64, their positions in the data set's list.
        labels: (N,) int64, positions in `classes`.
        splits: N of "train", "validation", "test".
        classes: the class names.
    """

    records: tuple[Record, ...]
    rows: IntArray
    labels: IntArray
    splits: tuple[Split, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)  # compared and hashed as an object: tensors have no truth value
class EmbeddedClips:
    """The embeddings of N clips, S tokens of width Da each.

    Attributes:
        embeddings: (N, S, Da) float32.
        labels: (N,) int64, positions in `classes`.
        splits: N of "train", "validation", "test".
        classes: the class names.
        keys: N unique keys.
        square_root: whether the embeddings are the square roots of what the encoder gave.
        skipped: clips left out because they could not be read.
        unseen: the classes that no site trains on; they have test clips only.
    """

    embeddings: Tensor
    labels: Tensor
    splits: tuple[Split, ...]
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    square_root: bool = False
    skipped: int = 0
    unseen: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, split: Split) -> IntArray:
        """Positions of the clips of one split."""
        return np.flatnonzero(np.array(self.splits) == split).astype(np.int64)


def build_index(records: Sequence[Record], dataset: DatasetSettings, classes: Sequence[str]) -> ClipIndex:
    """Select the clips of `classes` and of the named folds; of `dataset.unseen` classes those for the test only.

    Raises:
        DataError: two clips have the same key, or no clip is left for training.
    """
    seen: set[str] = set()
    for record in records:
        if record.key in seen:
            raise DataError(f"the data set lists {record.key!r} twice; keep one of the two")
        seen.add(record.key)
    split_of: dict[int, Split] = {
        **dict.fromkeys(dataset.train_folds, SPLITS[0]),
        **dict.fromkeys(dataset.validation_folds, SPLITS[1]),
        **dict.fromkeys(dataset.test_folds, SPLITS[2]),
    }
    label_of = {clean_name(name): label for label, name in enumerate(classes)}
    unseen = {clean_name(name) for name in unseen_classes(dataset, classes)}
    rows = [
        row
        for row, record in enumerate(records)
        if record.fold in split_of
        and clean_name(record.category) in label_of
        and (split_of[record.fold] == "test" or clean_name(record.category) not in unseen)
    ]
    if not any(split_of[records[row].fold] == "train" for row in rows):
        folds = sorted({record.fold for record in records})
        raise DataError(
            f"no clip for training: dataset.train_folds is {dataset.train_folds}, the data has the folds {folds}"
        )
    return ClipIndex(
        records=tuple(records[row] for row in rows),
        rows=np.array(rows, dtype=np.int64),
        labels=np.array([label_of[clean_name(records[row].category)] for row in rows], dtype=np.int64),
        splits=tuple(split_of[records[row].fold] for row in rows),
        classes=tuple(classes),
    )


def unseen_classes(dataset: DatasetSettings, classes: Sequence[str]) -> tuple[str, ...]:
    """The classes that no site trains on, in the order of `classes`.

    Raises:
        DataError: a name is no class, or fewer than two classes are left to train on.
    """
    wanted = dataset.unseen
    if isinstance(wanted, int):
        order = numpy_generator(dataset.unseen_seed, "unseen").permutation(len(classes))
        names = {classes[place] for place in order[:wanted]}
    else:
        by_clean_name = {clean_name(name): name for name in classes}
        for name in wanted:
            if clean_name(name) not in by_clean_name:
                near = difflib.get_close_matches(clean_name(name), by_clean_name, n=1)
                hint = f"; did you mean {by_clean_name[near[0]]!r}?" if near else ""
                raise DataError(f"dataset.unseen names {name!r}, which is no class of the data{hint}")
        names = {by_clean_name[clean_name(name)] for name in wanted}
    if names and len(classes) - len(names) < 2:
        raise DataError(f"dataset.unseen leaves {len(classes) - len(names)} of {len(classes)} classes to train on")
    return tuple(name for name in classes if name in names)


def check_complete(records: Sequence[Record], dataset: DatasetSettings) -> None:
    """Check that every class and fold of the settings has a clip: a data set of one site only need not.

    Raises:
        DataError: names what is missing, and the nearest there is.
    """
    folds = sorted({record.fold for record in records})
    for split, wanted in (
        ("train", dataset.train_folds),
        ("validation", dataset.validation_folds),
        ("test", dataset.test_folds),
    ):
        if unknown := sorted(set(wanted) - set(folds)):
            raise DataError(f"dataset.{split}_folds names fold {unknown[0]}, but the data has the folds {folds}")
    present = {clean_name(record.category): record.category for record in records}
    for name in dataset.classes or ():
        if clean_name(name) not in present:
            near = difflib.get_close_matches(clean_name(name), present, n=1)
            hint = f"did you mean {present[near[0]]}?" if near else f"it has {', '.join(sorted(present.values()))}"
            raise DataError(f"dataset.classes names {name!r}, of which the data has no clip; {hint}")


def classes_of(records: Sequence[Record], dataset: DatasetSettings) -> tuple[str, ...]:
    """The class names: `dataset.classes` as given, else all of the records in sorted order.

    Names that differ in case, spaces, hyphens and underscores only are one class.

    Raises:
        DataError: `dataset.classes` is empty or names a class twice.
    """
    if dataset.classes is None:
        names: dict[str, str] = {}
        for name in sorted({record.category for record in records}):
            names.setdefault(clean_name(name), name)
        return tuple(sorted(names.values()))
    if not dataset.classes:
        raise DataError("dataset.classes is empty; name the classes to keep, or set it to null for all")
    cleaned = [clean_name(name) for name in dataset.classes]
    for i, name in enumerate(cleaned):
        if name in cleaned[:i]:
            raise DataError(f"dataset.classes names {dataset.classes[i]!r} twice; keep one of the two")
    return tuple(dataset.classes)
