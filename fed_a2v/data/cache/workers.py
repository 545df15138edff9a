"""Embedding with several processes: `WorkerPool`, for `fed-a2v embed`, and `make_embedder`, which each process calls.

The worker processes exit when the process that started them exits.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fed_a2v.config.sections.data import DatasetSettings, EncoderSettings
from fed_a2v.data.cache.embed import Embedder, Shard, ShardDone
from fed_a2v.data.cache.known_encoder import known_encoder
from fed_a2v.data.index import open_source


def make_embedder(dataset: DatasetSettings, encoder: EncoderSettings, seed: int, cache: Path) -> Embedder:
    """Create the embedder of one data set.

    Raises:
        ModelError: the encoder cannot be loaded, and its attributes are not in the cache.
    """
    return Embedder(
        open_source(dataset, seed),
        known_encoder(encoder, cache),
        dataset.clip_seconds,
        dataset.skip_bad,
        cache,
        dataset.cache_dtype,
    )


@dataclass(frozen=True)
class WorkerPool:
    """A `ShardPool` of several processes, each with its own embedder; the number of processes does not affect the bits.

    Attributes:
        processes: number of processes.
        dataset: settings of one data set.
        encoder: settings of the frozen encoder.
        seed: seed of synthesised clips.
        cache: folder of the cache.
        threads: number of torch threads in each process.
    """

    processes: int
    dataset: DatasetSettings
    encoder: EncoderSettings
    seed: int
    cache: Path
    threads: int

    def map(self, shards: Sequence[Shard]) -> Iterator[ShardDone]:
        """Embed and store shards, and yield the result of each in order."""
        with ProcessPoolExecutor(
            min(self.processes, max(1, len(shards))),
            # Not forked, because a fork would copy the state of torch's threads and of the cache's lock.
            multiprocessing.get_context("spawn"),
            _start_worker,
            (self.dataset.model_dump_json(), self.encoder.model_dump_json(), self.seed, str(self.cache), self.threads),
        ) as executor:
            try:
                yield from executor.map(_work, shards)
            except BaseException:
                executor.shutdown(cancel_futures=True)
                raise


_embedder: Embedder | None = None  # of a worker process


def _start_worker(dataset_json: str, encoder_json: str, seed: int, cache: str, threads: int) -> None:
    import torch

    global _embedder
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _embedder = make_embedder(
        DatasetSettings.model_validate_json(dataset_json),
        EncoderSettings.model_validate_json(encoder_json),
        seed,
        Path(cache),
    )
    _embedder.start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(shard: Shard) -> ShardDone:
    assert _embedder is not None
    return _embedder.work(shard)
