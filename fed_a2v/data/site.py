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

from fed_a2v.config.schema import DatasetSettings, EncoderSettings, PartitionSettings, Settings
from fed_a2v.core.names import listed
from fed_a2v.data.aliases import ClassNames
from fed_a2v.data.cache.embed import embed_contents
from fed_a2v.data.cache.workers import make_embedder
from fed_a2v.data.clips import (
    SPLITS,
    ClipIndex,
    EmbeddedClips,
    FloatArray,
    IntArray,
    Split,
    leaking,
    square_roots,
    unseen_classes,
)
from fed_a2v.data.datasets.embeddings_file import read_embeddings
from fed_a2v.data.errors import DataError, PartitionError
from fed_a2v.data.index import class_names, index_clips, list_clips, located, mtime_key, parts
from fed_a2v.data.partition import SiteClips, partition, site_name

__all__ = ["LabelledClips", "SiteData", "class_names", "labelled_rows", "load_clips", "site_clips"]

logger = logging.getLogger("fed_a2v")


@dataclass(frozen=True)
class LabelledClips:
    """n clips: embeddings (n, S, Da) float32, labels (n,) int64, positions in a list of class names, and their keys."""

    embeddings: Tensor
    labels: Tensor
    keys: tuple[str, ...]

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


def labelled_rows(clips: EmbeddedClips | LabelledClips, rows: Tensor) -> LabelledClips:
    """The clips in these rows, (n,) int64."""
    return LabelledClips(clips.embeddings[rows], clips.labels[rows], tuple(clips.keys[row] for row in rows.tolist()))


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
        mtime_key(dataset),
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
        data_dir: this machine's place of the data: the root of the data set, or for embeddings the file or its folder.
            Where the settings name a mix, its layout says which of the data sets it is.
        cache: folder of the cache.
        classes: see `load_clips`.

    Raises:
        DataError: the data set cannot be used, or there is no such site.
    """
    own = settings.partition.kind == "own"
    if own and data_dir is None and site > 0:
        raise PartitionError(f"partition=own: {site_name(site)} has no folder of its own; give each node its data-dir")
    dataset = located(settings.dataset, data_dir)
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
        return labelled_rows(clips, torch.from_numpy(part.rows(split)))

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
    changed: tuple[int, ...],  # noqa: ARG001 - a part of the memory's key
) -> EmbeddedClips:
    dataset = DatasetSettings.model_validate_json(dataset_json)
    settings = EncoderSettings.model_validate_json(encoder_json)
    if classes is not None:
        _warn_of_others(dataset, classes)
    index = index_clips(dataset, classes)
    embedded = [
        _embed(part, settings, index.rows[index.sets == number], seed, cache_dir)
        for number, part in enumerate(parts(dataset))
    ]
    widths = {values.shape[1:] for values, *_ in embedded}
    if len(widths) > 1:
        raise DataError(
            f"the data sets of the mix have embeddings of different shapes, {sorted(widths)}; use one encoder"
        )
    embeddings = np.concatenate([values for values, *_ in embedded]) if len(embedded) > 1 else embedded[0][0]
    good = np.concatenate([np.flatnonzero(index.sets == number)[rows] for number, (_, rows, _) in enumerate(embedded)])
    if skipped := len(index) - len(good):
        logger.warning("Skipped %d of %d clips that cannot be read", skipped, len(index))
    contents = [content for *_, contents in embedded for content in contents]
    rows = [hashlib.sha256(row.tobytes()).hexdigest() for row in embeddings]
    copies = _copies(index.take(good), rows, contents)
    if copies:
        kept = np.array([row for row in range(len(good)) if row not in copies], dtype=np.int64)
        embeddings, good = embeddings[kept], good[kept]
        rows, contents = [rows[row] for row in kept], [contents[row] for row in kept]
    values = torch.from_numpy(embeddings)
    square_root = _takes_square_root(index.take(good), embeddings, dataset)
    return EmbeddedClips(
        embeddings=square_roots(values) if square_root else values,
        labels=torch.from_numpy(index.labels[good]),
        splits=tuple(index.splits[row] for row in good),
        classes=index.classes,
        keys=tuple(index.records[row].key for row in good),
        square_root=square_root,
        skipped=skipped,
        unseen=unseen_classes(dataset, index.classes),
        sets=index.sets[good],
        contents=tuple(
            (hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest() if content else row)[:16]
            for content, row in zip(contents, rows, strict=True)
        ),
    )


def _embed(
    part: DatasetSettings, encoder: EncoderSettings, rows: IntArray, seed: int, cache: Path
) -> tuple[FloatArray, IntArray, list[str]]:
    """The embeddings of the good ones among these clips of one data set, which of the `rows` they are, their contents.

    Of a file of embeddings the contents are unknown, "".
    """
    records = list_clips(part)
    if part.name == "embeddings":
        embeddings, good = read_embeddings(str(part.path), records, rows, part.skip_bad)
        return embeddings, good, [""] * len(good)
    return embed_contents(make_embedder(part, encoder, seed, cache), [records[row].key for row in rows])


def _copies(index: ClipIndex, rows: Sequence[str], contents: Sequence[str]) -> set[int]:
    """Clips for training that are copies of clips for the test: with the same content, or the same embedding.

    Both are known by their hashes; `rows` are those of the embeddings.

    The log names them. The first finds copies that data sets of a mix crop to other lengths, the second those in
    files of embeddings, and of one sound in two formats.

    Raises:
        DataError: nothing else is there to train on.
    """
    copies = leaking(rows, index.splits) | leaking(contents, index.splits)
    if not copies:
        return set()
    keys = [record.key for record in index.records]
    pairs = [f"{keys[row]} ({keys[other]})" for row, other in sorted(copies.items())]
    told = f"{len(copies)} clips for training or validation, which are copies of clips for the test: {listed(pairs, 5)}"
    if all(row in copies for row, split in enumerate(index.splits) if split == "train"):
        raise DataError(f"no clip for training is left without the {told}")
    logger.warning("Left out %s", told)
    return set(copies)


@lru_cache(maxsize=4)
def _parts(clips: EmbeddedClips, partition_json: str, seed: int) -> list[SiteClips]:
    return partition(clips, PartitionSettings.model_validate_json(partition_json), seed)


def _takes_square_root(index: ClipIndex, embeddings: FloatArray, dataset: DatasetSettings) -> bool:
    """Whether to take square roots, by the clips for training alone."""
    if dataset.square_root == "never":
        return False
    least = embeddings.min(axis=(1, 2))
    negative = {split: [row for row in np.flatnonzero(least < 0) if index.splits[row] == split] for split in SPLITS}
    if negative["train"]:
        if dataset.square_root == "always":
            worst = min(negative["train"], key=lambda row: least[row])
            raise DataError(
                f"dataset.square_root=always, but the embedding of {index.records[worst].key} has the value "
                f"{least[worst]:.4g}; use auto or never"
            )
        return False
    if others := [*negative["validation"], *negative["test"]]:
        logger.warning(
            "%d clips for validation or the test have negative values, which no clip for training has; their square "
            "roots keep the sign (dataset.square_root=never takes none): %s",
            len(others),
            listed([f"{index.records[row].key} ({least[row]:.4g})" for row in others], 5),
        )
    return True


def _warn_of_others(dataset: DatasetSettings, classes: Sequence[str]) -> None:
    names = {record.category for part in parts(dataset) for record in list_clips(part)}
    if others := sorted(names - set(ClassNames(dataset.aliases).labels(names, classes))):
        logger.warning("Left out the clips of classes that the federation has not: %s", ", ".join(others))
