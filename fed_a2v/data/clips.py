"""What a data set is to the rest of the program: first an index of clips, then their embeddings.

The index is made without decoding any sound. Labels are positions in `classes`; classes are known by name.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from fed_a2v.config.schema import DatasetSettings
from fed_a2v.core.names import clean_name, listed, nearest
from fed_a2v.core.seeding import numpy_generator
from fed_a2v.data.aliases import ClassNames
from fed_a2v.data.datasets.folds import FOLDS, drawn
from fed_a2v.data.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("fed_a2v")

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


# Data sets whose clips are dealt to folds, for want of official ones.
FOLDS_DEALT = ("vegas", "vggsound", "folder")
# A source that begins so is the same in every data set; any other is known within its own only.
WORLDWIDE = ("youtube:", "freesound:")


class Record(NamedTuple):
    """A clip as its data set lists it.

    Attributes:
        key: unique in the data set.
        category: the class's name there.
        fold: from 1; official, or drawn where the data set has none.
        source: the video or recording that it was cut from, "youtube:ID" or "freesound:ID" where it has such a
            number; "" where nothing is known.
    """

    key: str
    category: str
    fold: int
    source: str = ""


class ClipSource(Protocol):
    """A data set of sounds."""

    def watched(self) -> list[Path]:
        """The files and folders that change when `records` would."""
        ...

    def records(self) -> list[Record]:
        """All clips, in the data set's order, without decoding any.

        Raises:
            DataError: the data set cannot be read.
        """
        ...

    def mtime_key(self, key: str) -> str | None:
        """Changes whenever `content` does, and is quicker to look up; None where there is no such thing."""
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
        sets: (N,) int64, which data set of a mix each clip is from.
    """

    records: tuple[Record, ...]
    rows: IntArray
    labels: IntArray
    splits: tuple[Split, ...]
    classes: tuple[str, ...]
    sets: IntArray

    def __len__(self) -> int:
        return len(self.records)

    def take(self, positions: Iterable[int]) -> ClipIndex:
        """The index of the clips at these positions."""
        chosen = np.fromiter(positions, dtype=np.int64)
        return ClipIndex(
            records=tuple(self.records[position] for position in chosen),
            rows=self.rows[chosen],
            labels=self.labels[chosen],
            splits=tuple(self.splits[position] for position in chosen),
            classes=self.classes,
            sets=self.sets[chosen],
        )


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
        sets: (N,) int64, which data set of a mix each clip is from; None: there is one.
        contents: N hashes of what was embedded: of a file's bytes, or of the embedding itself; empty: not known.
    """

    embeddings: Tensor
    labels: Tensor
    splits: tuple[Split, ...]
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    square_root: bool = False
    skipped: int = 0
    unseen: tuple[str, ...] = ()
    sets: IntArray | None = None
    contents: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, split: Split) -> IntArray:
        """Positions of the clips of one split."""
        return self._rows[split]

    @cached_property
    def _rows(self) -> dict[Split, IntArray]:
        splits = np.array(self.splits)
        return {split: np.flatnonzero(splits == split).astype(np.int64) for split in SPLITS}


def build_index(records: Sequence[Record], dataset: DatasetSettings, classes: Sequence[str]) -> ClipIndex:
    """Select the clips of one data set: those of `classes` and of the named folds, `max_clips_per_class` at most.

    Of `dataset.unseen` classes those for the test only. Clips for training that come from the same recording as a
    clip for the test are left out.

    Raises:
        DataError: two clips have the same key, or no clip is left for training.
    """
    index = without_leaks(select_clips(records, dataset, classes))
    check_trainable(index, records, dataset)
    return index


def select_clips(records: Sequence[Record], dataset: DatasetSettings, classes: Sequence[str]) -> ClipIndex:
    """`build_index` without its last two steps, which look at all data sets of a mix together."""
    seen: set[str] = set()
    for record in records:
        if record.key in seen:
            raise DataError(f"the data set lists {record.key!r} twice; keep one of the two")
        seen.add(record.key)
    split_of = split_by_fold(records, dataset)
    label_of = ClassNames(dataset.aliases).labels({record.category for record in records}, classes)
    _tell_folds(Counter(record.fold for record in records if record.category in label_of), split_of, dataset)
    unseen = unseen_classes(dataset, classes)
    tested_only = {name for name, label in label_of.items() if classes[label] in unseen}
    rows = [
        row
        for row, record in enumerate(records)
        if record.fold in split_of
        and record.category in label_of
        and (split_of[record.fold] == "test" or record.category not in tested_only)
    ]
    if dataset.max_clips_per_class is not None:
        rows = _limited(rows, records, label_of, dataset.max_clips_per_class, dataset.split_seed)
    return ClipIndex(
        records=tuple(records[row] for row in rows),
        rows=np.array(rows, dtype=np.int64),
        labels=np.array([label_of[records[row].category] for row in rows], dtype=np.int64),
        splits=tuple(split_of[records[row].fold] for row in rows),
        classes=tuple(classes),
        sets=np.zeros(len(rows), dtype=np.int64),
    )


def folds_of(records: Iterable[Record], dataset: DatasetSettings) -> list[int]:
    """The folds that the data set has, in order."""
    if dataset.name in FOLDS_DEALT:  # so few clips that a fold got none are no other division
        return list(range(1, FOLDS + 1))
    return sorted({record.fold for record in records})


def split_by_fold(records: Iterable[Record], dataset: DatasetSettings) -> dict[int, Split]:
    """What each fold is for. What the settings leave open: the last fold that there is tests, all others train.

    A fold that is all there is trains, and nothing tests.
    """
    named: dict[str, Collection[int]] = dict(dataset.named_folds)
    validation = named["validation_folds"]
    free = [fold for fold in folds_of(records, dataset) if fold not in {*validation, *named.get("train_folds", ())}]
    test = named.get("test_fold") or named.get("test_folds")
    if test is None:
        test = free[-1:] if len(free) > 1 or "train_folds" in named else ()
    train = named.get("train_folds") or [fold for fold in free if fold not in test]
    return {
        **dict.fromkeys(train, SPLITS[0]),
        **dict.fromkeys(validation, SPLITS[1]),
        **dict.fromkeys(test, SPLITS[2]),
    }


def _tell_folds(clips: Mapping[int, int], split_of: Mapping[int, Split], dataset: DatasetSettings) -> None:
    """Say in the log what is not as with the official five folds: others that there are, and clips without a use."""
    numbers = {split: [fold for fold, its in split_of.items() if its == split] for split in SPLITS}
    chosen = dataset.test_fold is None and dataset.test_folds is None
    if chosen and sorted(split_of) != list(range(1, FOLDS + 1)):
        uses = (f"{split} {', '.join(map(str, folds))}" for split, folds in numbers.items() if folds)
        logger.info("Folds of dataset=%s: %s; dataset.test_fold=N tests on another", dataset.name, "; ".join(uses))
    if unused := {fold: count for fold, count in sorted(clips.items()) if fold not in split_of}:
        logger.warning(
            "%d clips of dataset=%s are used for nothing: %s",
            sum(unused.values()),
            dataset.name,
            ", ".join(f"{count} of fold {fold}" for fold, count in unused.items()),
        )


def _limited(
    rows: Sequence[int], records: Sequence[Record], label_of: dict[str, int], limit: int, seed: int
) -> list[int]:
    """At most `limit` clips a class, drawn; of every fold as many as of the others while it has them."""
    folds: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row in rows:
        folds[label_of[records[row].category], records[row].fold].append(row)
    places: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for (label, fold), members in folds.items():
        members.sort(key=lambda row: (drawn(seed, records[row].key), records[row].key))
        places[label].extend((place, fold, row) for place, row in enumerate(members))
    return sorted(row for members in places.values() for _, _, row in sorted(members)[:limit])


def without_leaks(index: ClipIndex) -> ClipIndex:
    """The index without the training clips of recordings that the test or the validation has clips of.

    Nor does the validation keep clips of recordings that the test has.
    """
    leaks = leaking([record.source for record in index.records], index.splits)
    if not leaks:
        return index
    logger.warning(
        "Left out %d clips for training or validation, which come from the same recordings as clips for the test: %s",
        len(leaks),
        listed([index.records[position].key for position in leaks], 5),
    )
    return index.take(position for position in range(len(index)) if position not in leaks)


def leaking(origins: Sequence[str | bytes], splits: Sequence[Split]) -> dict[int, int]:
    """Clips that have one origin with a clip of another split, and give way to it.

    The test keeps its clips, so that it is the same whatever the sites train on; and validation keeps them against
    training.

    Args:
        origins: of the N clips; "" where it is unknown.
        splits: of the clips.

    Returns:
        Positions of the clips that give way, in order, each with that of the first clip for which it does.
    """
    order = {split: place for place, split in enumerate(SPLITS)}
    kept: dict[str | bytes, int] = {}
    for position, origin in enumerate(origins):
        if origin and order[splits[position]] > order[splits[kept.setdefault(origin, position)]]:
            kept[origin] = position
    return {
        position: kept[origin]
        for position, origin in enumerate(origins)
        if origin and splits[position] != splits[kept[origin]]
    }


def square_roots(embeddings: Tensor) -> Tensor:
    """Square roots, with the sign kept: never NaN, whatever a clip has that was not there when they were chosen."""
    return embeddings.abs().sqrt_().copysign_(embeddings)


def check_trainable(index: ClipIndex, records: Sequence[Record], dataset: DatasetSettings) -> None:
    """Check that there is a clip for training.

    Raises:
        DataError: names the folds asked for and those of the data.
    """
    if "train" not in index.splits:
        folds = sorted({record.fold for record in records})
        raise DataError(
            f"no clip for training: {_named(dataset)}, the data has the folds {folds}; "
            "dataset.test_fold=N trains on all but one"
        )


def check_splits(index: ClipIndex, records: Sequence[Record], dataset: DatasetSettings) -> None:
    """Check that there is a clip for the test, and for validation where folds are kept for it.

    Raises:
        DataError: names the split, and the folds that have clips.
    """
    ours = ClassNames(dataset.aliases).labels({record.category for record in records}, index.classes)
    folds = sorted({record.fold for record in records if record.category in ours})
    for split in SPLITS[1:]:
        if split not in index.splits and (split == "test" or dataset.validates):
            remedy = f"name one of these in dataset.{split}_folds=[N]"
            if len(folds) == 1:
                remedy = "more clips are needed, or clips of other recordings"
            raise DataError(
                f"no clip for the {split}: {_named(dataset)}, and the clips of these classes are in the folds {folds}; "
                f"{remedy}"
            )


def tell_lacking(index: ClipIndex, dataset: DatasetSettings) -> None:
    """Name in the log the classes that cannot be learned, and those about which the test says nothing."""
    splits = np.array(index.splits)
    for split, unlike in ((SPLITS[0], "cannot be learned"), (SPLITS[2], "are not tested")):
        there = set(index.labels[splits == split].tolist())
        unseen = unseen_classes(dataset, index.classes) if split == "train" else ()
        lacking = [name for label, name in enumerate(index.classes) if label not in there and name not in unseen]
        if lacking and there:
            logger.warning("No clip for %s, so that they %s: %s", split, unlike, listed(lacking, 10))


def _named(dataset: DatasetSettings) -> str:
    """The folds that the settings name."""
    return ", ".join(f"dataset.{key} is {folds}" for key, folds in dataset.named_folds.items() if folds) or (
        "dataset.test_fold is null"
    )


def merged(indexes: Sequence[ClipIndex], names: Sequence[str]) -> ClipIndex:
    """One index of the clips of several data sets.

    Args:
        indexes: of the data sets, all for the same classes.
        names: of the data sets; with their position they keep keys and sources of different sets apart.
    """
    records: list[Record] = []
    for position, (index, name) in enumerate(zip(indexes, names, strict=True)):
        for record in index.records:
            source = record.source
            if source and not source.startswith(WORLDWIDE):
                source = f"{position}-{name}/{source}"
            records.append(record._replace(key=f"{position}-{name}/{record.key}", source=source))
    return replace(
        indexes[0],
        records=tuple(records),
        rows=np.concatenate([index.rows for index in indexes]),
        labels=np.concatenate([index.labels for index in indexes]),
        splits=tuple(split for index in indexes for split in index.splits),
        sets=np.concatenate([np.full(len(index), position) for position, index in enumerate(indexes)]),
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
                near = nearest(clean_name(name), by_clean_name, cutoff=0.6)
                hint = f"; did you mean {by_clean_name[near]!r}?" if near else ""
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
    folds = folds_of(records, dataset)
    for key, wanted in dataset.named_folds.items():
        if unknown := sorted(set(wanted) - set(folds)):
            raise DataError(f"dataset.{key} names fold {unknown[0]}, but the data has the folds {folds}")
    if "test" not in split_by_fold(records, dataset).values():
        raise DataError(
            f"no fold for the test: {_named(dataset)}, the data has the folds {folds}; deal the clips to two folds at "
            "least, or leave one over with dataset.train_folds"
        )
    check_classes(records, dataset)


def check_classes(records: Iterable[Record], dataset: DatasetSettings) -> None:
    """Check that every class of `dataset.classes` has a clip.

    Raises:
        DataError: names the class that has none, and the nearest there is.
    """
    wanted = dataset.classes or []
    categories = sorted({record.category for record in records})
    labels = set(ClassNames(dataset.aliases).labels(categories, wanted).values())
    for label, name in enumerate(wanted):
        if label not in labels:
            present = {clean_name(category): category for category in categories}
            near = nearest(clean_name(name), present, cutoff=0.6)
            hint = f"did you mean {present[near]}?" if near else f"it has {', '.join(sorted(present.values()))}"
            raise DataError(f"dataset.classes names {name!r}, of which the data has no clip; {hint}")


def classes_of(categories: Iterable[str], dataset: DatasetSettings) -> tuple[str, ...]:
    """The class names: `dataset.classes` as given, else those of the clips in sorted order.

    Names that differ in case, spaces, hyphens and underscores only are one class. In a mix of data sets classes go
    by their common name (`dataset.aliases`), in a single one by its own.

    Raises:
        DataError: `dataset.classes` is empty or names a class twice.
    """
    if dataset.classes is None:
        if dataset.name == "mixed":
            categories = {ClassNames(dataset.aliases).common(category) for category in categories}
        names: dict[str, str] = {}
        for name in sorted(categories):
            names.setdefault(clean_name(name), name)
        return tuple(sorted(names.values()))
    if not dataset.classes:
        raise DataError("dataset.classes is empty; name the classes to keep, or set it to null for all")
    cleaned = [clean_name(name) for name in dataset.classes]
    for i, name in enumerate(cleaned):
        if name in cleaned[:i]:
            raise DataError(f"dataset.classes names {dataset.classes[i]!r} twice; keep one of the two")
    return tuple(dataset.classes)
