"""Whether the data can be used: what a run looks at before it decodes a sound, and what `fed-a2v doctor` adds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from fed_a2v.config.schema import Settings
from fed_a2v.core.names import listed
from fed_a2v.data.cache.embed import waveform_of
from fed_a2v.data.clips import ClipIndex, EmbeddedClips, IntArray, check_splits, unseen_classes
from fed_a2v.data.datasets.embeddings_file import read_embeddings
from fed_a2v.data.datasets.sound_files import SoundFiles
from fed_a2v.data.errors import BadClipError, DataError
from fed_a2v.data.index import class_names, index_clips, list_clips, open_source, overheard, parts
from fed_a2v.data.partition import SiteClips, partition


def check_data(settings: Settings) -> tuple[ClipIndex, list[str]]:
    """Check the tables, folders, classes, folds, sites and their least clips; no sound is decoded.

    Returns:
        The clips, and what the run will warn of.

    Raises:
        DataError: the data set cannot be read, or not divided as the settings say.
    """
    dataset, own = settings.dataset, settings.partition.kind == "own"
    with overheard() as remarks:
        index = index_clips(dataset, class_names(dataset) if own else None)
        if not own:  # other sites have clips of their own
            check_splits(index, [record for part in parts(dataset) for record in list_clips(part)], dataset)
        # Labels are all that a partition looks at.
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
    return index, [*remarks, *_unshared(settings, index, sites)]


def _unshared(settings: Settings, index: ClipIndex, sites: list[SiteClips]) -> list[str]:
    """The classes that the server step will miss, because no site has clips enough to send a mean of them.

    Raises:
        DataError: that goes for all of them, and nobody could learn.
    """
    least = settings.share.min_clips
    if settings.share.kind == "samples" or settings.partition.kind == "own":  # other sites have clips of their own
        return []
    counts = np.stack([np.bincount(index.labels[site.train], minlength=len(index.classes)) for site in sites])
    if counts.sum(axis=1).max() < least:
        raise DataError(
            f"no site has share.min_clips={least} training clips; lower it, or partition.sites={len(sites)}"
        )
    taught = counts.any(axis=0)
    few = [index.classes[label] for label in np.flatnonzero(taught & (counts.max(axis=0) < least))]
    if not few or not (settings.finetune.enabled or settings.aggregation.distils):
        return []
    if len(few) == taught.sum() and (settings.adapters.closed_form or not settings.aggregation.averages):
        key = "adapters.closed_form=true" if settings.adapters.closed_form else "aggregation.mode=none"
        raise DataError(
            f"{key}: only the server step teaches the adapters, and no site has share.min_clips={least} training clips "
            "of a class; lower it"
        )
    return [f"no site has share.min_clips={least} training clips of {len(few)} classes: {listed(few, 10)}"]


def unusable(settings: Settings, index: ClipIndex, sample_rate: int, each: int = 3) -> Iterator[str]:
    """What is wrong with clips: with any file that is missing or empty, and with what a few of every class sound like.

    Args:
        settings: of the experiment.
        index: of the clips.
        sample_rate: the encoder's, in Hz.
        each: how many clips of a class in one data set are decoded, from all over its list.
    """
    for number, part in enumerate(parts(settings.dataset)):
        here = index.sets == number
        rows, labels, records = index.rows[here], index.labels[here], list_clips(part)
        if part.name == "embeddings":
            try:
                read_embeddings(str(part.path), records, rows, skip_bad=False)
            except BadClipError as error:
                yield str(error)
            continue
        source = open_source(part, settings.seed)
        if isinstance(source, SoundFiles):
            there = np.array([_has_content(source.path(records[row].key)) for row in rows], dtype=bool)
            if gone := [str(source.path(records[row].key)) for row in rows[~there]]:
                yield f"{len(gone)} of {len(rows)} files are missing or empty: {listed(gone)}"
            rows, labels = rows[there], labels[there]
        for row in _some(rows, labels, each):
            try:
                waveform_of(source, records[row].key, sample_rate, part.clip_seconds)
            except BadClipError as error:
                yield str(error)


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _some(rows: IntArray, labels: IntArray, each: int) -> list[int]:
    """`each` rows of every label, or all that it has: the first, the last, and those between at even distances."""
    of_label = (rows[labels == label] for label in np.unique(labels))
    return [int(row) for its in of_label for row in its[np.unique(np.linspace(0, len(its) - 1, each).astype(int))]]
