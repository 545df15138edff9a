"""Entry point of the data package: the embedded clips of this machine's data set, and those of one site.

The clients call `site_clips`; the server and the commands call `load_clips`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fed_a2v.config.schema import Settings
from fed_a2v.config.sections.data import DatasetSettings, EncoderSettings, PartitionSettings
from fed_a2v.core.names import listed
from fed_a2v.data.aliases import ClassNames
from fed_a2v.data.cache.embed import embed_contents
from fed_a2v.data.cache.workers import make_embedder
from fed_a2v.data.clips import SPLITS, ClipIndex, EmbeddedClips, FloatArray, IntArray, Split, square_roots
from fed_a2v.data.datasets.base import data_set
from fed_a2v.data.datasets.embeddings import EmbeddingsFile
from fed_a2v.data.errors import DataError, PartitionError
from fed_a2v.data.index import class_names, index_clips, list_clips, located, mtime_key, parts
from fed_a2v.data.partition import SiteClips, partition, site_name
from fed_a2v.data.selection import leaking, unseen_classes

__all__ = ["LabelledClips", "SiteData", "class_names", "labelled_rows", "load_clips", "site_clips"]

logger = logging.getLogger("fed_a2v")


@dataclass(frozen=True)
class LabelledClips:
    """n clips: embeddings (n, S, Da) float32, labels (n,) int64 (positions in a list of class names), and n keys."""

    embeddings: Tensor
    labels: Tensor
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class SiteData:
    """The clips of one site.

    Attributes:
        name: "site-000", ...
        classes: the class names that the labels refer to; a site may lack clips of some.
        train: training clips, never empty.
        validation: validation clips.
        test: test clips.
        square_root: whether the embeddings are square roots of the encoder's output.
        skipped: number of unreadable clips left out of the data set that the site's clips come from.
    """

    name: str
    classes: tuple[str, ...]
    train: LabelledClips
    validation: LabelledClips
    test: LabelledClips
    square_root: bool
    skipped: int


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
    """Embed the clips of this machine's data set, or load them from the cache.

    The result is also cached in memory, for the sites that one process simulates; it is shared and must not be
    modified. The memory cache checks the times of the data set's table (or embeddings file) and folders only: a sound
    file that is overwritten in place while the process runs is noticed by the next process.

    Args:
        dataset: settings of the data set.
        encoder: settings of the frozen encoder; unused with dataset=embeddings.
        seed: seed of synthesised clips.
        cache_dir: folder of the cache.
        classes: class names of the federation that the labels refer to, if they are already fixed. The data set may
            then lack some of them; clips of other classes are left out, with a warning.

    Raises:
        DataError: the data set cannot be used; `BadClipError` if the cause is one clip.
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

    With `partition=own` they are all clips in `data_dir`. With every other kind each machine has a copy of the whole
    data set, in `data_dir` or at the path of the settings, of which the site uses its part.

    Args:
        settings: settings of the experiment.
        site: the site's number, from 0.
        data_dir: location of the data on this machine: the root of the data set, or for embeddings the file or its
            folder; None: that of the settings. If the settings have a mix, the layout identifies the data set.
        cache: folder of the cache.
        classes: see `load_clips`.

    Raises:
        DataError: the data set cannot be used, or the site does not exist.
    """
    own = settings.partition.kind == "own"
    if own and data_dir is None and site > 0:
        raise PartitionError(f"partition=own: {site_name(site)} has no data folder; set data-dir for each node")
    dataset = located(settings.dataset, data_dir)
    if own:
        # A site's own data may lack some classes, but a copy of the whole data set may not. Passing the names makes
        # `index_clips` skip the check.
        names = class_names(dataset) if classes is None else classes
        clips = load_clips(dataset, settings.encoder, settings.seed, cache, names)
        part = partition(clips, settings.partition, settings.seed)[0]
    else:
        clips = load_clips(dataset, settings.encoder, settings.seed, cache)
        if classes is not None and tuple(classes) != clips.classes:
            raise DataError(
                f"this machine's data has the classes {clips.classes}, the federation has {tuple(classes)}; "
                "set the same dataset.classes everywhere, or give each site its own folder (partition=own)"
            )
        sites = _partition(clips, settings.partition.model_dump_json(), settings.seed)
        if not 0 <= site < len(sites):
            raise PartitionError(f"there is no site {site}: partition.sites={len(sites)} numbers them from 0")
        part = sites[site]

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
    mtimes: tuple[int, ...],  # noqa: ARG001 - only a part of the cache key
) -> EmbeddedClips:
    dataset = DatasetSettings.model_validate_json(dataset_json)
    settings = EncoderSettings.model_validate_json(encoder_json)
    if classes is not None:
        names = {record.category for part in parts(dataset) for record in list_clips(part)}
        if others := sorted(names - set(ClassNames(dataset.aliases).labels(names, classes))):
            logger.warning("Left out the clips of classes that the federation does not have: %s", ", ".join(others))
    index = index_clips(dataset, classes)
    embedded = [
        _embed(part, settings, index.rows[index.sets == number], seed, cache_dir)
        for number, part in enumerate(parts(dataset))
    ]
    widths = {values.shape[1:] for values, *_ in embedded}
    if len(widths) > 1:
        raise DataError(
            f"the data sets of the mix have embeddings of different shapes, {sorted(widths)}; use the same encoder"
        )
    embeddings = np.concatenate([values for values, *_ in embedded]) if len(embedded) > 1 else embedded[0][0]
    good = np.concatenate([np.flatnonzero(index.sets == number)[rows] for number, (_, rows, _) in enumerate(embedded)])
    if skipped := len(index) - len(good):
        logger.warning("Skipped %d of %d clips that cannot be read", skipped, len(index))
    contents = [content for *_, contents in embedded for content in contents]
    hashes = [hashlib.sha256(row.tobytes()).hexdigest() for row in embeddings]
    copies = _copies(index.index_select(good), hashes, contents)
    if copies:
        kept = np.array([row for row in range(len(good)) if row not in copies], dtype=np.int64)
        embeddings, good = embeddings[kept], good[kept]
        hashes, contents = [hashes[row] for row in kept], [contents[row] for row in kept]
    values = torch.from_numpy(embeddings)
    square_root = _takes_square_root(index.index_select(good), embeddings, dataset)
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
            (hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest() if content else embedding_hash)[:16]
            for content, embedding_hash in zip(contents, hashes, strict=True)
        ),
    )


def _embed(
    part: DatasetSettings, encoder: EncoderSettings, rows: IntArray, seed: int, cache: Path
) -> tuple[FloatArray, IntArray, list[str]]:
    """Embed clips of one data set.

    Returns:
        The embeddings of the clips that can be read, their positions in `rows`, and their contents; the contents of
        an embeddings file are unknown, "".
    """
    records = list_clips(part)
    kind = data_set(part.name)
    if issubclass(kind, EmbeddingsFile):
        embeddings, good = kind.open(part, seed).read(records, rows, part.skip_bad)
        return embeddings, good, [""] * len(good)
    return embed_contents(make_embedder(part, encoder, seed, cache), [records[row].key for row in rows])


def _copies(index: ClipIndex, hashes: Sequence[str], contents: Sequence[str]) -> set[int]:
    """Positions of training and validation clips that are copies of test clips, which are left out with a warning.

    Copies have the same content or the same embedding. Equal contents find copies that data sets of a mix crop to
    different lengths; equal embeddings find copies in embeddings files, and of one recording in two formats.

    Args:
        index: the N clips.
        hashes: N hashes of the embeddings.
        contents: N contents; "" if unknown.

    Raises:
        DataError: all training clips are copies.
    """
    copies = leaking(hashes, index.splits) | leaking(contents, index.splits)
    if not copies:
        return set()
    keys = [record.key for record in index.records]
    pairs = [f"{keys[row]} ({keys[other]})" for row, other in sorted(copies.items())]
    described = f"{len(copies)} training or validation clips that are copies of test clips: {listed(pairs, 5)}"
    if all(row in copies for row, split in enumerate(index.splits) if split == "train"):
        raise DataError(f"no training clip is left without the {described}; add other training clips")
    logger.warning("Left out %s", described)
    return set(copies)


@lru_cache(maxsize=4)
def _partition(clips: EmbeddedClips, partition_json: str, seed: int) -> list[SiteClips]:
    return partition(clips, PartitionSettings.model_validate_json(partition_json), seed)


def _takes_square_root(index: ClipIndex, embeddings: FloatArray, dataset: DatasetSettings) -> bool:
    """Whether to take square roots of the embeddings; "auto" depends on the training clips only.

    Raises:
        DataError: square_root=always, but a training clip has negative values.
    """
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
            "%d validation or test clips have negative values, but no training clip has; their square roots keep the "
            "sign (dataset.square_root=never disables square roots): %s",
            len(others),
            listed([f"{index.records[row].key} ({least[row]:.4g})" for row in others], 5),
        )
    return True
