"""Several processes that embed shards of one data set. They end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fed_a2v.config.schema import DatasetSettings, EncoderSettings
from fed_a2v.data.cache.embed import Embedder, Shard, ShardDone
from fed_a2v.data.cache.known_encoder import known_encoder
from fed_a2v.data.index import open_source


def make_embedder(dataset: DatasetSettings, encoder: EncoderSettings, seed: int, cache: Path) -> Embedder:
    """Who embeds the clips of one data set.

    Raises:
        ModelError: the encoder cannot be loaded, and the cache does not know it.
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
    """See `ShardPool`; each process has an embedder of its own, and gives the same bits as any other.

    Attributes:
        processes: how many.
        dataset: one data set.
        encoder: the frozen encoder.
        seed: of the synthesised sounds.
        cache: folder of the cache.
        threads: of torch, in each process.
    """

    processes: int
    dataset: DatasetSettings
    encoder: EncoderSettings
    seed: int
    cache: Path
    threads: int

    def map(self, shards: Sequence[Shard]) -> Iterator[ShardDone]:
        """Embed shards, and yield what became of each in their order."""
        with ProcessPoolExecutor(
            min(self.processes, max(1, len(shards))),
            # Not forked: torch's threads and the lock of the cache stay where they are.
            multiprocessing.get_context("spawn"),
            _start,
            (self.dataset.model_dump_json(), self.encoder.model_dump_json(), self.seed, str(self.cache), self.threads),
        ) as executor:
            try:
                yield from executor.map(_work, shards)
            except BaseException:
                executor.shutdown(cancel_futures=True)
                raise


_embedder: Embedder | None = None


def _start(dataset_json: str, encoder_json: str, seed: int, cache: str, threads: int) -> None:
    import torch

    global _embedder
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _embedder = make_embedder(
        DatasetSettings.model_validate_json(dataset_json),
        EncoderSettings.model_validate_json(encoder_json),
        seed,
        Path(cache),
    )
    _embedder.start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(shard: Shard) -> ShardDone:
    assert _embedder is not None
    return _embedder.work(shard)
