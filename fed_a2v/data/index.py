"""Building the index of clips from the settings: opening the data sets, listing their clips, and selecting from them.

`fed_a2v.data.site`, `fed_a2v.data.check` and the commands call it. No audio is decoded; 200,000 clips take seconds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from fed_a2v.config.sections.data import DatasetSettings, EncoderSettings, place_key
from fed_a2v.config.tree import options
from fed_a2v.core.names import clean_name, composed
from fed_a2v.data.aliases import ClassNames
from fed_a2v.data.clips import ClipIndex, ClipSource, Record
from fed_a2v.data.datasets.base import data_set
from fed_a2v.data.datasets.embeddings import EmbeddingsFile
from fed_a2v.data.errors import DataError
from fed_a2v.data.selection import (
    build_index,
    check_classes,
    check_complete,
    check_trainable,
    classes_of,
    folds_of,
    merged,
    select_clips,
    warn_of_missing_classes,
    without_leaks,
)
from fed_a2v.encoders.audio import known_shape

logger = logging.getLogger("fed_a2v")


def parts(dataset: DatasetSettings) -> tuple[DatasetSettings, ...]:
    """The data sets of a mix, each with the mix's common settings; for a single data set, the data set itself."""
    if dataset.name != "mixed":
        return (dataset,)
    common = {"unseen": dataset.unseen, "unseen_seed": dataset.unseen_seed, "aliases": dataset.aliases}
    return tuple(part.model_copy(update=common) for part in dataset.sets)


def open_source(dataset: DatasetSettings, seed: int) -> ClipSource:
    """Open one data set of audio clips; `seed` is the seed of synthesised clips.

    Raises:
        ValueError: it is a file of embeddings, which has no audio.
        ConfigError: a custom class cannot be used.
    """
    source = data_set(dataset.name).open(dataset, seed)
    if isinstance(source, EmbeddingsFile):
        raise ValueError(f"dataset={dataset.name} has no audio clips")
    return source


def list_clips(dataset: DatasetSettings) -> tuple[Record, ...]:
    """All clips of one data set.

    The list is cached in memory until the data set's table or folders change.

    Raises:
        DataError: the data set cannot be read.
    """
    return _listed(dataset.model_dump_json(), mtime_key(dataset))[0]


@contextmanager
def captured_warnings() -> Iterator[list[str]]:
    """Collect the warnings that this package logs in the block and in this thread, instead of logging them."""
    warnings: list[str] = []
    thread = threading.get_ident()

    def capture(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        if record.levelno >= logging.WARNING:
            warnings.append(record.getMessage())
        return False

    logger.filters.insert(0, capture)  # first, so that the innermost of nested blocks captures the warning
    try:
        yield warnings
    finally:
        logger.removeFilter(capture)


def folds(dataset: DatasetSettings) -> list[int]:
    """The folds of the data, in order; for a mix, the folds that all its data sets have.

    Raises:
        DataError: the data set cannot be read.
    """
    return sorted(set.intersection(*({*folds_of(list_clips(part), part)} for part in parts(dataset))))


def class_names(dataset: DatasetSettings) -> tuple[str, ...]:
    """The names of the classes: `dataset.classes` if it is set, else those of the data, sorted.

    No audio is decoded; if `dataset.classes` is set, the data set is not read at all.

    Raises:
        DataError: the data set cannot be read.
    """
    if dataset.classes is not None:
        return classes_of([], dataset)
    return classes_of({name for part in parts(dataset) for name in _own_categories(part)}, dataset)


def index_clips(dataset: DatasetSettings, classes: Sequence[str] | None = None) -> ClipIndex:
    """The clips that the settings select.

    Args:
        dataset: one data set, or a mix.
        classes: class names of the federation, if they are already fixed; the data set may lack some of them.

    Raises:
        DataError: the data set cannot be read, a class or fold of the settings has no clip, none is left for
            training, or a clip is listed twice.
    """
    # Each list is looked up only once, because `mtime_key` walks through all folders of the data set.
    lists = [_listed(part.model_dump_json(), mtime_key(part)) for part in parts(dataset)]
    for warning in (warning for _, warnings in lists for warning in warnings):
        logger.warning("%s", warning)
    names = class_names(dataset) if classes is None else tuple(classes)
    everything = [record for records, _ in lists for record in records]
    if dataset.name != "mixed":
        if classes is None:
            check_complete(everything, dataset)
        index = build_index(everything, dataset, names)
    else:
        if classes is None:
            check_classes(everything, dataset)
        indexes = [_part_index(part, names) for part in parts(dataset)]
        index = without_leaks(merged(indexes, [part.name for part in dataset.sets]))
        check_trainable(index, everything, dataset)
    if classes is None:
        warn_of_missing_classes(index, dataset)
    return index


def mtime_key(dataset: DatasetSettings) -> tuple[int, ...]:
    """Sizes and modification times of the data set's tables, embeddings files and folders; empty if there are none."""
    paths = [path for part in parts(dataset) for path in data_set(part.name).open(part, seed=0).watched()]
    stats = [path.stat() for path in paths if path.exists()]
    return tuple(number for stat in stats for number in (stat.st_size, stat.st_mtime_ns))


def located(dataset: DatasetSettings, data_dir: str | None) -> DatasetSettings:
    """The settings with the location of the data on this machine.

    For a mix, `data_dir` is the folder of one of its data sets, which is detected by the folder's layout.

    Raises:
        DataError: the data set reads no files, or the folder is not one of the mix.
    """
    if data_dir is None:
        return dataset
    if not data_dir.strip():  # Path("") would be the working directory
        raise DataError("data-dir is empty; set it to the folder or file of this machine's data")
    place = Path(data_dir).expanduser()
    if dataset.name == "mixed":
        kind = layout(place)
        own = next((part for part in parts(dataset) if part.name == kind), None)
        if own is None:
            raise DataError(
                f"{place} has the layout of dataset={kind}, which is not in dataset.sets: "
                f"{', '.join(part.name for part in dataset.sets)}"
            )
        return located(own, data_dir)
    return data_set(dataset.name).located(dataset, place)


def known_audio_shape(dataset: DatasetSettings, encoder: EncoderSettings) -> tuple[int, int] | None:
    """(S, Da) of the embeddings, as far as it is known without a model: from the file, or from the encoder's name.

    Raises:
        DataError: the file cannot be read.
    """
    first = parts(dataset)[0]  # the data sets of a mix have embeddings of one shape
    if data_set(first.name).has_audio:
        return known_shape(encoder)
    source = data_set(first.name).open(first, seed=0)
    assert isinstance(source, EmbeddingsFile)
    return source.shape() if Path(source.path).expanduser().is_file() else None


def layout(place: Path) -> str:
    """The name of the data set whose layout a folder or file has."""
    names = [name for name in options("dataset") if place_key(name)]
    names.sort(key=lambda name: data_set(name).layout.count("*"))
    return next((name for name in names if data_set(name).fits(place)), names[-1])


@lru_cache(maxsize=8)
def _listed(dataset_json: str, mtime_key: tuple[int, ...]) -> tuple[tuple[Record, ...], tuple[str, ...]]:  # noqa: ARG001
    """The clips, and the warnings of listing them; `mtime_key` is only a part of the cache key."""
    dataset = DatasetSettings.model_validate_json(dataset_json)
    # The warnings are returned, because a later call gets the cached list, and should log them again.
    with captured_warnings() as warnings:
        records = data_set(dataset.name).open(dataset, seed=0).records()  # the list does not depend on the seed
    names: dict[str, str] = {}
    return tuple(_as_record(record, dataset, names) for record in records), tuple(warnings)


def _as_record(record: Record, dataset: DatasetSettings, names: dict[str, str]) -> Record:
    """The record with its class name in Unicode's composed form; `names` caches the names.

    Raises:
        DataError: a custom class lists something other than valid records.
    """
    match record:
        case (str(), str(category), int(fold), str()) if fold >= 1:
            if category not in names:
                names[category] = composed(category) if clean_name(category) else ""
            if names[category]:
                return record if names[category] == category else Record(*record)._replace(category=names[category])
    raise DataError(
        f"dataset={dataset.target or dataset.name} lists {record!r}: each clip must be a Record of key, category (with "
        "a word), fold (an integer from 1) and source, all strings except the fold"
    )


def _part_index(part: DatasetSettings, names: Sequence[str]) -> ClipIndex:
    """The index of a data set of a mix: clips of its own `classes` that are also classes of the federation."""
    records = list_clips(part)
    check_complete(records, part)
    index = select_clips(records, part, names)
    own = _own_categories(part)
    return index.index_select(row for row, record in enumerate(index.records) if record.category in own)


def _own_categories(part: DatasetSettings) -> set[str]:
    categories = {record.category for record in list_clips(part)}
    return categories if part.classes is None else set(ClassNames(part.aliases).labels(categories, part.classes))
