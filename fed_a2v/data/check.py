"""Checks of the data: those that a run makes before it decodes any audio, and those that `fed-a2v doctor` adds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from fed_a2v.config.schema import Settings
from fed_a2v.config.sections.data import DatasetSettings
from fed_a2v.core.names import listed
from fed_a2v.data.cache.embed import waveform_of
from fed_a2v.data.clips import ClipIndex, EmbeddedClips, IntArray
from fed_a2v.data.datasets.base import data_set
from fed_a2v.data.datasets.embeddings import EmbeddingsFile
from fed_a2v.data.datasets.sound_files import SoundFiles
from fed_a2v.data.errors import BadClipError, DataError
from fed_a2v.data.index import captured_warnings, class_names, index_clips, list_clips, parts
from fed_a2v.data.partition import SiteClips, partition
from fed_a2v.data.selection import check_splits, unseen_classes


def check_data(settings: Settings) -> tuple[ClipIndex, list[str]]:
    """Check the tables, folders, classes, folds, and the sites' numbers of clips; no audio is decoded.

    Returns:
        The clips, and the warnings that the run will log.

    Raises:
        DataError: the data set cannot be read, or cannot be divided as the settings require.
    """
    dataset, own = settings.dataset, settings.partition.kind == "own"
    with captured_warnings() as warnings:
        index = index_clips(dataset, class_names(dataset) if own else None)
        if not own:  # with partition=own, other sites may have the clips that are missing here
            check_splits(index, [record for part in parts(dataset) for record in list_clips(part)], dataset)
        # A partition needs labels only, not embeddings.
        clips = EmbeddedClips(
            embeddings=torch.empty(len(index), 0, 0),
            labels=torch.from_numpy(index.labels),
            splits=index.splits,
            classes=index.classes,
            keys=tuple(record.key for record in index.records),
            unseen=unseen_classes(dataset, index.classes),
            sets=index.sets,
        )
        sites = partition(clips, settings.partition, settings.seed)
    return index, [*warnings, *_warn_of_unshared(settings, index, sites)]


def _warn_of_unshared(settings: Settings, index: ClipIndex, sites: list[SiteClips]) -> list[str]:
    """A warning about the classes of which no site has enough clips to send statistics to the server step.

    Raises:
        DataError: no class has enough clips, and only the server step would train the adapters.
    """
    least = settings.share.min_clips
    # With partition=own, other sites may have the clips that are missing here.
    if settings.share.kind == "samples" or settings.partition.kind == "own":
        return []
    counts = np.stack([np.bincount(index.labels[site.train], minlength=len(index.classes)) for site in sites])
    if counts.sum(axis=1).max() < least:
        raise DataError(
            f"no site has share.min_clips={least} training clips; lower it, or partition.sites={len(sites)}"
        )
    trained = counts.any(axis=0)
    few = [index.classes[label] for label in np.flatnonzero(trained & (counts.max(axis=0) < least))]
    if not few or not settings.has_server_step:
        return []
    if len(few) == trained.sum() and settings.only_server_trains:
        raise DataError(
            f"{settings.only_server_trains}: only the server step trains the adapters, and no site has "
            f"share.min_clips={least} training clips of a class; lower it"
        )
    return [f"no site has share.min_clips={least} training clips of {len(few)} classes: {listed(few, 10)}"]


def unusable(dataset: DatasetSettings, seed: int, index: ClipIndex, sample_rate: int, each: int = 3) -> Iterator[str]:
    """Messages about bad clips: missing or empty files among all clips, and unreadable ones in a sample of each class.

    Args:
        dataset: settings of the data set.
        seed: seed of synthesised clips.
        index: the clips.
        sample_rate: sample rate of the encoder, in Hz.
        each: number of clips to decode of each class of each data set, evenly spaced in its list.
    """
    for number, part in enumerate(parts(dataset)):
        in_part = index.sets == number
        rows, labels, records = index.rows[in_part], index.labels[in_part], list_clips(part)
        source = data_set(part.name).open(part, seed)
        if isinstance(source, EmbeddingsFile):
            try:
                source.read(records, rows, skip_bad=False)
            except BadClipError as error:
                yield str(error)
            continue
        if isinstance(source, SoundFiles):
            present = np.array([_has_content(source.path(records[row].key)) for row in rows], dtype=bool)
            if absent := [str(source.path(records[row].key)) for row in rows[~present]]:
                yield f"{len(absent)} of {len(rows)} files are missing or empty: {listed(absent)}"
            rows, labels = rows[present], labels[present]
        for row in _spread(rows, labels, each):
            try:
                waveform_of(source, records[row].key, sample_rate, part.clip_seconds)
            except BadClipError as error:
                yield str(error)


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _spread(rows: IntArray, labels: IntArray, each: int) -> list[int]:
    """At most `each` rows of every label, evenly spaced from its first to its last."""
    spread: list[int] = []
    for label in np.unique(labels):
        candidates = rows[labels == label]
        spread += candidates[np.unique(np.linspace(0, len(candidates) - 1, each).astype(int))].tolist()
    return spread
