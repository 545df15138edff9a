"""Embedding a whole data set at once, for `fed-a2v embed`, and handing the embeddings on as a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fed_a2v.config.schema import DatasetSettings, Settings
from fed_a2v.data.cache.embed import Embedder, Progress, embed_clips
from fed_a2v.data.cache.workers import WorkerPool, make_embedder
from fed_a2v.data.clips import FloatArray, IntArray, Record
from fed_a2v.data.errors import DataError
from fed_a2v.data.index import index_clips, list_clips, parts
from fed_a2v.storage.files import replacing


@dataclass(frozen=True)
class EmbeddedDataset:
    """What `embed_dataset` made or found.

    Attributes:
        embeddings: of each data set of a mix, (M, S, Da) float32.
        records: of each data set, its M clips.
        new: clips that had no embedding before.
        skipped: clips that cannot be read.
    """

    embeddings: tuple[FloatArray, ...]
    records: tuple[tuple[Record, ...], ...]
    new: int
    skipped: int

    def __len__(self) -> int:
        return sum(len(records) for records in self.records)


def embed_dataset(settings: Settings, cache: Path, workers: int, progress: Progress | None = None) -> EmbeddedDataset:
    """Embed the clips that the settings select, with several processes.

    Args:
        settings: of an experiment; its partition does not matter.
        cache: folder of the cache.
        workers: processes; 1 is this one.
        progress: is told how many of how many clips are done.

    Raises:
        DataError: the data set cannot be used, or has no sounds.
    """
    dataset = settings.dataset
    if any(part.name == "embeddings" for part in parts(dataset)):
        raise DataError("dataset=embeddings is embedded already; choose a data set of sounds")
    index = index_clips(dataset)
    made = EmbeddedDataset((), (), 0, 0)
    for number, part in enumerate(parts(dataset)):
        records = [list_clips(part)[row] for row in index.rows[index.sets == number]]
        embeddings, good, new = _embed_part(
            settings, part, [record.key for record in records], cache, workers, progress
        )
        made = replace(
            made,
            embeddings=(*made.embeddings, embeddings),
            records=(*made.records, tuple(records[row] for row in good)),
            new=made.new + new,
            skipped=made.skipped + len(records) - len(good),
        )
    return made


def _embed_part(
    settings: Settings, part: DatasetSettings, keys: list[str], cache: Path, workers: int, progress: Progress | None
) -> tuple[FloatArray, IntArray, int]:
    embedder: Embedder = make_embedder(part, settings.encoder, settings.seed, cache)
    pool = None
    if workers > 1:
        pool = WorkerPool(workers, part, settings.encoder, settings.seed, cache, settings.threads)
    before = len(embedder.store.known())
    embeddings, good = embed_clips(embedder, keys, pool, progress)
    return embeddings, good, len(embedder.store.known()) - before


def write_embeddings(embedded: EmbeddedDataset, path: Path) -> None:
    """Write a file that `dataset=embeddings` reads: embeddings, category, fold, filename, source.

    Raises:
        DataError: the data sets of a mix have embeddings of different shapes.
        OSError: the file cannot be written.
    """
    if len({values.shape[1:] for values in embedded.embeddings}) > 1:
        raise DataError("the data sets of the mix have embeddings of different shapes; use one encoder for all")
    several = len(embedded.records) > 1
    named = [
        (record, f"{number}/{record.key}" if several else record.key)
        for number, records in enumerate(embedded.records)
        for record in records
    ]
    with replacing(path) as file:
        np.savez(
            file,
            embeddings=np.concatenate(embedded.embeddings),
            category=np.array([record.category for record, _ in named]),
            fold=np.array([record.fold for record, _ in named], dtype=np.int64),
            filename=np.array([name for _, name in named]),
            source=np.array([record.source for record, _ in named]),
        )
