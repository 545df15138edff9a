"""The selection of clips by the settings: classes, folds, numbers of clips, and the checks that enough is left.

`fed_a2v.data.index` selects from the lists of the data sets with it.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fed_a2v.config.sections.data import DatasetSettings
from fed_a2v.core.names import clean_name, listed, nearest
from fed_a2v.core.seeding import numpy_generator
from fed_a2v.data.aliases import ClassNames
from fed_a2v.data.clips import SPLITS, ClipIndex, Record, Split
from fed_a2v.data.datasets.base import data_set
from fed_a2v.data.datasets.folds import FOLDS, shuffle_key
from fed_a2v.data.errors import DataError

logger = logging.getLogger("fed_a2v")

# Sources with these prefixes identify the same recording in every data set; other sources are local to their data set.
GLOBAL_SOURCES = ("youtube:", "freesound:")


def build_index(records: Sequence[Record], dataset: DatasetSettings, classes: Sequence[str]) -> ClipIndex:
    """Select the clips of one data set: those of `classes` and the named folds, at most `max_clips_per_class`.

    Classes of `dataset.unseen` get test clips only. Training clips from the same recording as a test clip are left
    out.

    Raises:
        DataError: two clips have the same key, or no clip is left for training.
    """
    index = without_leaks(select_clips(records, dataset, classes))
    check_trainable(index, records, dataset)
    return index


def select_clips(records: Sequence[Record], dataset: DatasetSettings, classes: Sequence[str]) -> ClipIndex:
    """`build_index` without its last two steps, which a mix applies to all its data sets together."""
    seen: set[str] = set()
    for record in records:
        if record.key in seen:
            raise DataError(f"the data set lists {record.key!r} twice; keep one of the two")
        seen.add(record.key)
    split_of = split_by_fold(records, dataset)
    label_of = ClassNames(dataset.aliases).labels({record.category for record in records}, classes)
    _log_folds(Counter(record.fold for record in records if record.category in label_of), split_of, dataset)
    unseen = unseen_classes(dataset, classes)
    test_only = {name for name, label in label_of.items() if classes[label] in unseen}
    rows = [
        row
        for row, record in enumerate(records)
        if record.fold in split_of
        and record.category in label_of
        and (split_of[record.fold] == "test" or record.category not in test_only)
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
    """The folds of the data set, in order."""
    # A fold to which no clip of a small data set was assigned still exists.
    return sorted({*data_set(dataset.name).folds, *(record.fold for record in records)})


def split_by_fold(records: Iterable[Record], dataset: DatasetSettings) -> dict[int, Split]:
    """The split of each fold. By default the last fold is for the test, and all others are for training.

    If there is only one fold, it is for training, and there is no test.
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


def _log_folds(clips: Mapping[int, int], split_of: Mapping[int, Split], dataset: DatasetSettings) -> None:
    """Log the split of each fold if the folds are not 1 to 5, and warn of folds with clips that are not used.

    Args:
        clips: number of clips of each fold.
        split_of: the split of each fold that is used.
        dataset: settings of the data set.
    """
    folds_of_split = {split: [fold for fold, other in split_of.items() if other == split] for split in SPLITS}
    default = dataset.test_fold is None and dataset.test_folds is None
    if default and sorted(split_of) != list(range(1, FOLDS + 1)):
        uses = (f"{split} {', '.join(map(str, folds))}" for split, folds in folds_of_split.items() if folds)
        logger.info(
            "Folds of dataset=%s: %s; choose the test fold with dataset.test_fold=N", dataset.name, "; ".join(uses)
        )
    if unused := {fold: count for fold, count in sorted(clips.items()) if fold not in split_of}:
        logger.warning(
            "%d clips of dataset=%s are not used: %s",
            sum(unused.values()),
            dataset.name,
            ", ".join(f"{count} of fold {fold}" for fold, count in unused.items()),
        )


def _limited(
    rows: Sequence[int], records: Sequence[Record], label_of: dict[str, int], limit: int, seed: int
) -> list[int]:
    """A random sample of at most `limit` clips per class, as evenly divided among the folds as possible."""
    folds: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row in rows:
        folds[label_of[records[row].category], records[row].fold].append(row)
    ranked: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for (label, fold), members in folds.items():
        members.sort(key=lambda row: (shuffle_key(seed, records[row].key), records[row].key))
        ranked[label].extend((rank, fold, row) for rank, row in enumerate(members))
    # Sorted by rank first: the first clip of every fold, then the second of every fold, and so on.
    return sorted(row for members in ranked.values() for _, _, row in sorted(members)[:limit])


def without_leaks(index: ClipIndex) -> ClipIndex:
    """The index without training clips from recordings of validation or test clips.

    Validation clips from recordings of test clips are left out, too.
    """
    leaks = leaking([record.source for record in index.records], index.splits)
    if not leaks:
        return index
    logger.warning(
        "Left out %d training or validation clips that come from the same recordings as test or validation clips: %s",
        len(leaks),
        listed([index.records[position].key for position in leaks], 5),
    )
    return index.index_select(position for position in range(len(index)) if position not in leaks)


def leaking(origins: Sequence[str | bytes], splits: Sequence[Split]) -> dict[int, int]:
    """Clips with the same origin as a clip of another split that takes precedence.

    Test clips take precedence over validation clips, and these over training clips, so that the test does not depend
    on what the sites train on.

    Args:
        origins: N origins of the clips; "" if unknown.
        splits: N splits of the clips.

    Returns:
        {position of a clip to leave out: position of the first clip that takes precedence}, in order.
    """
    order = {split: rank for rank, split in enumerate(SPLITS)}
    kept: dict[str | bytes, int] = {}
    for position, origin in enumerate(origins):
        if origin and order[splits[position]] > order[splits[kept.setdefault(origin, position)]]:
            kept[origin] = position
    return {
        position: kept[origin]
        for position, origin in enumerate(origins)
        if origin and splits[position] != splits[kept[origin]]
    }


def check_trainable(index: ClipIndex, records: Sequence[Record], dataset: DatasetSettings) -> None:
    """Check that there is a training clip.

    Raises:
        DataError: there is none; the message names the folds of the settings and of the data.
    """
    if "train" not in index.splits:
        folds = sorted({record.fold for record in records})
        raise DataError(
            f"no training clips: {_fold_settings(dataset)}, the data has the folds {folds}; "
            "dataset.test_fold=N trains on all folds except N"
        )


def check_splits(index: ClipIndex, records: Sequence[Record], dataset: DatasetSettings) -> None:
    """Check that there is a test clip, and a validation clip if the settings have validation folds.

    Raises:
        DataError: there is none; the message names the split, and the folds that have clips.
    """
    label_of = ClassNames(dataset.aliases).labels({record.category for record in records}, index.classes)
    folds = sorted({record.fold for record in records if record.category in label_of})
    for split in SPLITS[1:]:
        if split not in index.splits and (split == "test" or dataset.validates):
            remedy = f"name one of these in dataset.{split}_folds=[N]"
            if len(folds) == 1:
                remedy = "add more clips, or clips of other recordings"
            raise DataError(
                f"no {split} clips: {_fold_settings(dataset)}, but the clips of these classes are in folds {folds}; "
                f"{remedy}"
            )


def warn_of_missing_classes(index: ClipIndex, dataset: DatasetSettings) -> None:
    """Warn of the classes without training clips, and of those without test clips."""
    splits = np.array(index.splits)
    for split, effect in ((SPLITS[0], "cannot be learned"), (SPLITS[2], "are not tested")):
        present = set(index.labels[splits == split].tolist())
        unseen = unseen_classes(dataset, index.classes) if split == "train" else ()
        missing = [name for label, name in enumerate(index.classes) if label not in present and name not in unseen]
        if missing and present:
            logger.warning("Classes without %s clips, which %s: %s", split, effect, listed(missing, 10))


def _fold_settings(dataset: DatasetSettings) -> str:
    """The folds that the settings name, for messages."""
    return ", ".join(f"dataset.{key} is {folds}" for key, folds in dataset.named_folds.items() if folds) or (
        "dataset.test_fold is null"
    )


def merged(indexes: Sequence[ClipIndex], names: Sequence[str]) -> ClipIndex:
    """One index of the clips of several data sets.

    Args:
        indexes: the data sets' indexes, all with the same classes.
        names: the data sets' names; name and position become a prefix that makes keys and local sources unique.
    """
    records: list[Record] = []
    for position, (index, name) in enumerate(zip(indexes, names, strict=True)):
        for record in index.records:
            source = record.source
            if source and not source.startswith(GLOBAL_SOURCES):
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
        DataError: a name is not a class, or fewer than two classes are left to train on.
    """
    requested = dataset.unseen
    if isinstance(requested, int):
        order = numpy_generator(dataset.unseen_seed, "unseen").permutation(len(classes))
        names = {classes[label] for label in order[:requested]}
    else:
        by_clean_name = {clean_name(name): name for name in classes}
        for name in requested:
            if clean_name(name) not in by_clean_name:
                near = nearest(clean_name(name), by_clean_name, cutoff=0.6)
                hint = f"; did you mean {by_clean_name[near]!r}?" if near else ""
                raise DataError(f"dataset.unseen names {name!r}, which is not a class of the data{hint}")
        names = {by_clean_name[clean_name(name)] for name in requested}
    if names and len(classes) - len(names) < 2:
        raise DataError(
            f"dataset.unseen leaves {len(classes) - len(names)} of {len(classes)} classes to train on; name fewer"
        )
    return tuple(name for name in classes if name in names)


def check_complete(records: Sequence[Record], dataset: DatasetSettings) -> None:
    """Check that every class and fold of the settings has a clip; not called for a site's own data (partition=own).

    Raises:
        DataError: the message names what is missing, and the nearest class.
    """
    folds = folds_of(records, dataset)
    for key, named in dataset.named_folds.items():
        if unknown := sorted(set(named) - set(folds)):
            raise DataError(
                f"dataset.{key} names fold {unknown[0]}, but the data has the folds {folds}; choose from these"
            )
    if "test" not in split_by_fold(records, dataset).values():
        raise DataError(
            f"no fold for the test: {_fold_settings(dataset)}, the data has the folds {folds}; assign the clips to at "
            "least two folds, or leave a fold out of dataset.train_folds"
        )
    check_classes(records, dataset)


def check_classes(records: Iterable[Record], dataset: DatasetSettings) -> None:
    """Check that every class of `dataset.classes` has a clip.

    Raises:
        DataError: a class has none; the message names it, and the nearest class.
    """
    classes = dataset.classes or []
    categories = sorted({record.category for record in records})
    labels = set(ClassNames(dataset.aliases).labels(categories, classes).values())
    for label, name in enumerate(classes):
        if label not in labels:
            present = {clean_name(category): category for category in categories}
            near = nearest(clean_name(name), present, cutoff=0.6)
            hint = f"did you mean {present[near]}?" if near else f"it has {', '.join(sorted(present.values()))}"
            raise DataError(f"dataset.classes names {name!r}, but the data has no clip of it; {hint}")


def classes_of(categories: Iterable[str], dataset: DatasetSettings) -> tuple[str, ...]:
    """The class names: `dataset.classes` if set, else those of the clips in sorted order.

    Names that differ only in case, spaces, hyphens and underscores are one class. A mix of data sets uses the common
    names of the classes (`dataset.aliases`), a single data set its own names.

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
        raise DataError("dataset.classes is empty; list the classes to use, or set it to null for all")
    cleaned = [clean_name(name) for name in dataset.classes]
    for i, name in enumerate(cleaned):
        if name in cleaned[:i]:
            raise DataError(f"dataset.classes names {dataset.classes[i]!r} twice; keep one of the two")
    return tuple(dataset.classes)
