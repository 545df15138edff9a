"""The way in: the clips of this machine's data set, and those of one site."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fed_a2v.data.clips import (
    ClipSource,
    EmbeddedClips,
    Record,
    Split,
    build_index,
    check_complete,
    classes_of,
    unseen_classes,
)
from fed_a2v.data.embed import embed_clips
from fed_a2v.data.embeddings import read_embeddings, read_records
from fed_a2v.data.errors import DataError, PartitionError
from fed_a2v.data.esc50 import Esc50Folder
from fed_a2v.data.partition import SiteClips, partition, site_name
from fed_a2v.data.synth import SynthClips
from fed_a2v.encoders.audio import load_encoder
from fed_a2v.encoders.text import clean_name
from fed_a2v.settings import DatasetSettings, EncoderSettings, PartitionSettings, Settings

logger = logging.getLogger("fed_a2v")


@dataclass(frozen=True)
class LabelledClips:
    """n clips: embeddings (n, S, Da) float32, and labels (n,) int64, positions in a list of class names."""

    embeddings: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class SiteData:
    """What one site holds.

    Attributes:
        name: "site-000", ...
        classes: the class names that the labels point into; a site need not have clips of all.
        train: training clips, never empty.
        validation: validation clips.
        test: test clips.
        square_root: whether the embeddings are the square roots of what the encoder gave.
        skipped: unreadable clips left out of the data set that the site's clips come from.
    """

    name: str
    classes: tuple[str, ...]
    train: LabelledClips
    validation: LabelledClips
    test: LabelledClips
    square_root: bool
    skipped: int

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the training clips and the names of their classes: changes when the site's data does."""
        names = [self.classes[label] for label in self.train.labels.tolist()]
        digest = hashlib.sha256(repr((tuple(self.train.embeddings.shape), names)).encode())
        digest.update(self.train.embeddings.contiguous().numpy().tobytes())
        return digest.hexdigest()


def class_names(dataset: DatasetSettings) -> tuple[str, ...]:
    """The names of the classes: `dataset.classes` where it is set, else those of the data set, sorted.

    No sound is decoded; where `dataset.classes` is set, no data need be there at all.

    Raises:
        DataError: the data set cannot be read.
    """
    return classes_of([] if dataset.classes is not None else _records(dataset), dataset)


def load_clips(
    dataset: DatasetSettings,
    encoder: EncoderSettings,
    seed: int,
    cache_dir: Path,
    classes: Sequence[str] | None = None,
) -> EmbeddedClips:
    """Embed the clips of this machine's data set, or take them from the cache.

    The result is also kept in memory, for the sites that one process plays; it is shared, so nobody may change it.
    In memory a data set is known by its table (or file of embeddings) and its folder's list of files: a sound file
    that is overwritten in place while the process runs is noticed by the next process.

    Args:
        dataset: which data set, classes and folds.
        encoder: the frozen encoder; unused with dataset=embeddings.
        seed: of the synthesised sounds.
        cache_dir: folder of the cache.
        classes: class names that the labels point into, when the federation has agreed on them. The data set may
            then lack some of them; clips of other classes are left out, with a warning.

    Raises:
        DataError: the data set cannot be used; `BadClipError` where that is due to one clip.
    """
    return _load(
        dataset.model_dump_json(),
        encoder.model_dump_json(),
        seed,
        cache_dir,
        None if classes is None else tuple(classes),
        _stamp(dataset),
    )


def site_clips(
    settings: Settings, site: int, data_dir: str | None, cache: Path, classes: Sequence[str] | None = None
) -> SiteData:
    """The clips of one site.

    With `partition=own` they are all that is under `data_dir`. In every other kind each machine has a copy of the
    whole data set, under `data_dir` or where the settings say, and takes its part of it.

    Args:
        settings: of the experiment.
        site: the site's number, from 0.
        data_dir: this machine's place of the data: the root of esc50, or for embeddings the file or its folder.
        cache: folder of the cache.
        classes: see `load_clips`.

    Raises:
        DataError: the data set cannot be used, or there is no such site.
    """
    own = settings.partition.kind == "own"
    if own and data_dir is None and site > 0:
        raise PartitionError(f"partition=own: {site_name(site)} has no folder of its own; give each node its data-dir")
    dataset = _located(settings.dataset, data_dir)
    if own:
        # A site's own folder need not have every class; a copy of the whole data set must.
        agreed = class_names(dataset) if classes is None else classes
        clips = load_clips(dataset, settings.encoder, settings.seed, cache, agreed)
        part = partition(clips, settings.partition, settings.seed)[0]
    else:
        clips = load_clips(dataset, settings.encoder, settings.seed, cache)
        if classes is not None and tuple(classes) != clips.classes:
            raise DataError(
                f"this machine's data has the classes {clips.classes}, the federation {tuple(classes)}; "
                "name the same dataset.classes everywhere, or give each site its own folder (partition=own)"
            )
        parts = _parts(clips, settings.partition.model_dump_json(), settings.seed)
        if not 0 <= site < len(parts):
            raise PartitionError(f"there is no site {site}: partition.sites is {len(parts)}")
        part = parts[site]

    def labelled(split: Split) -> LabelledClips:
        rows = torch.from_numpy(part.rows(split))
        return LabelledClips(clips.embeddings[rows], clips.labels[rows])

    return SiteData(
        site_name(site),
        clips.classes,
        labelled("train"),
        labelled("validation"),
        labelled("test"),
        clips.square_root,
        clips.skipped,
    )


@lru_cache(maxsize=4)
def _load(
    dataset_json: str,
    encoder_json: str,
    seed: int,
    cache_dir: Path,
    classes: tuple[str, ...] | None,
    stamp: tuple[int, ...],  # noqa: ARG001 - a part of the memory's key
) -> EmbeddedClips:
    dataset = DatasetSettings.model_validate_json(dataset_json)
    records = _records(dataset)
    if classes is None:
        check_complete(records, dataset)
        names = classes_of(records, dataset)
    else:
        names = classes
        _warn_of_others(records, classes)
    index = build_index(records, dataset, names)
    if dataset.name == "embeddings":
        embeddings, good = read_embeddings(str(dataset.path), records, index.rows, dataset.skip_bad)
    else:
        encoder = load_encoder(EncoderSettings.model_validate_json(encoder_json))
        embeddings, good = embed_clips(
            _source(dataset, seed), index, encoder, dataset.clip_seconds, dataset.skip_bad, cache_dir
        )
    if skipped := len(index.rows) - len(good):
        logger.warning("Skipped %d of %d clips that cannot be read", skipped, len(index.rows))
    square_root = _takes_square_root(embeddings.min(initial=0), dataset)
    return EmbeddedClips(
        embeddings=torch.from_numpy(np.sqrt(embeddings) if square_root else embeddings),
        labels=torch.from_numpy(index.labels[good]),
        splits=tuple(index.splits[row] for row in good),
        classes=index.classes,
        keys=tuple(index.records[row].key for row in good),
        square_root=square_root,
        skipped=skipped,
        unseen=unseen_classes(dataset, index.classes),
    )


@lru_cache(maxsize=4)
def _parts(clips: EmbeddedClips, partition_json: str, seed: int) -> list[SiteClips]:
    return partition(clips, PartitionSettings.model_validate_json(partition_json), seed)


def _source(dataset: DatasetSettings, seed: int) -> ClipSource:
    if dataset.name == "synth":
        return SynthClips(seed, dataset.clips_per_class)
    return Esc50Folder(str(dataset.root))


def _records(dataset: DatasetSettings) -> list[Record]:
    if dataset.name == "embeddings":
        return read_records(str(dataset.path))
    return _source(dataset, seed=0).records()  # the list does not depend on the seed


def _located(dataset: DatasetSettings, data_dir: str | None) -> DatasetSettings:
    """The settings with this machine's place of the data."""
    if data_dir is None:
        return dataset
    place = Path(data_dir).expanduser()
    if dataset.name == "esc50":
        return dataset.model_copy(update={"root": str(place)})
    if dataset.name == "embeddings":
        file = place / Path(str(dataset.path)).name if place.is_dir() else place
        return dataset.model_copy(update={"path": str(file)})
    raise DataError(f"dataset=synth reads no files, but data-dir is {data_dir}; choose dataset=esc50 for a folder")


def _stamp(dataset: DatasetSettings) -> tuple[int, ...]:
    """What changes when the data set's table or list of files does; empty where there is none."""
    if dataset.name == "synth":
        return ()
    places = (
        [Path(str(dataset.path))]
        if dataset.name == "embeddings"
        else [Path(str(dataset.root)) / "meta" / "esc50.csv", Path(str(dataset.root)) / "audio"]
    )
    stats = [place.expanduser().stat() for place in places if place.expanduser().exists()]
    return tuple(number for stat in stats for number in (stat.st_size, stat.st_mtime_ns))


def _takes_square_root(least: float, dataset: DatasetSettings) -> bool:
    if dataset.square_root == "always" and least < 0:
        raise DataError(f"dataset.square_root=always, but an embedding has the value {least:.4g}; use auto or never")
    return dataset.square_root != "never" and bool(least >= 0)


def _warn_of_others(records: Sequence[Record], classes: Sequence[str]) -> None:
    agreed = {clean_name(name) for name in classes}
    others = sorted({record.category for record in records if clean_name(record.category) not in agreed})
    if others:
        logger.warning("Left out the clips of classes that the federation has not: %s", ", ".join(others))
