"""Embedding a whole data set and exporting the embeddings to a file, for `fed-a2v embed`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fed_a2v.config.sections.data import DatasetSettings, EncoderSettings
from fed_a2v.data.cache.embed import Progress, embed_clips
from fed_a2v.data.cache.workers import WorkerPool, make_embedder
from fed_a2v.data.clips import FloatArray, Record
from fed_a2v.data.datasets.base import data_set
from fed_a2v.data.errors import DataError
from fed_a2v.data.index import index_clips, list_clips, parts
from fed_a2v.storage.files import replacing


@dataclass(frozen=True)
class EmbeddedDataset:
    """The embeddings of a data set or mix.

    Attributes:
        embeddings: for each data set of the mix, (M, S, Da) float32.
        records: for each data set of the mix, its M clips.
        new: number of clips that were not in the cache.
        skipped: number of clips that cannot be read.
    """

    embeddings: tuple[FloatArray, ...]
    records: tuple[tuple[Record, ...], ...]
    new: int
    skipped: int

    def __len__(self) -> int:
        return sum(len(records) for records in self.records)


def embed_dataset(
    dataset: DatasetSettings,
    encoder: EncoderSettings,
    seed: int,
    cache: Path,
    workers: int,
    threads: int = 1,
    progress: Progress | None = None,
) -> EmbeddedDataset:
    """Embed the clips that the settings select, with several processes.

    Args:
        dataset: settings of the data set.
        encoder: settings of the frozen encoder.
        seed: seed of synthesised clips.
        cache: folder of the cache.
        workers: number of processes; 1: embed in this process.
        threads: number of torch threads in each of several processes.
        progress: called with the number of finished clips and the total, for each data set of a mix.

    Raises:
        DataError: the data set cannot be used, or has no audio.
    """
    for part in parts(dataset):
        if not data_set(part.name).has_audio:
            raise DataError(f"dataset={part.name} has embeddings already; choose a data set of audio clips")
    index = index_clips(dataset)
    embedded = EmbeddedDataset((), (), 0, 0)
    for number, part in enumerate(parts(dataset)):
        records = [list_clips(part)[row] for row in index.rows[index.sets == number]]
        embedder = make_embedder(part, encoder, seed, cache)
        pool = WorkerPool(workers, part, encoder, seed, cache, threads) if workers > 1 else None
        before = len(embedder.store.known())
        embeddings, good = embed_clips(embedder, [record.key for record in records], pool, progress)
        embedded = replace(
            embedded,
            embeddings=(*embedded.embeddings, embeddings),
            records=(*embedded.records, tuple(records[row] for row in good)),
            new=embedded.new + len(embedder.store.known()) - before,
            skipped=embedded.skipped + len(records) - len(good),
        )
    return embedded


def write_embeddings(embedded: EmbeddedDataset, path: Path) -> None:
    """Write an `.npz` file that `dataset=embeddings` reads: embeddings, category, fold, filename, source.

    Raises:
        DataError: the data sets of a mix have embeddings of different shapes.
        OSError: the file cannot be written.
    """
    if len({values.shape[1:] for values in embedded.embeddings}) > 1:
        raise DataError("the data sets of the mix have embeddings of different shapes; use the same encoder for all")
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
