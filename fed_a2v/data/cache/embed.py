"""Embedding clips, with a cache by content; `fed_a2v.data.site` and `fed-a2v embed` call it.

The clips are embedded in shards, in this process or in several. A finished shard is stored, and survives a crash. A
cached embedding is found by the clip's content, independent of its path and of the order of the clips.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from fed_a2v.data.audio import check_waveform
from fed_a2v.data.cache.content_hashes import ContentHashIndex
from fed_a2v.data.cache.embedding_store import EmbeddingStore, clip_id
from fed_a2v.data.clips import ClipSource, FloatArray, IntArray
from fed_a2v.data.errors import BadClipError, DataError
from fed_a2v.encoders.audio import AudioEncoder
from fed_a2v.storage.array_cache import acquire_lock, cache_key

logger = logging.getLogger("fed_a2v")

BATCH = 16  # clips
BATCH_SECONDS = 16 * 60.0  # limits the batch size of long clips
SHARD = 64  # clips
REMEDY = "repair or remove it, or set dataset.skip_bad=true"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Shard:
    """Clips to be embedded; `contents` has None for a clip whose content is not yet known."""

    keys: tuple[str, ...]
    contents: tuple[str | None, ...]


@dataclass(frozen=True)
class ShardDone:
    """Result of embedding a shard.

    Attributes:
        contents: contents of the shard's clips; None for a clip that cannot be opened.
        mtime_keys: (key, mtime_key, content) of clips whose content was computed.
        bad: error messages of the clips that were left out.
    """

    contents: tuple[str | None, ...]
    mtime_keys: tuple[tuple[str, str, str], ...]
    bad: tuple[str, ...]


class _Clip(NamedTuple):
    key: str
    content: str
    waveform: FloatArray


class ShardPool(Protocol):
    """Interface of what embeds shards: an `Embedder` in this process, or a `WorkerPool` of several processes."""

    def map(self, shards: Sequence[Shard]) -> Iterator[ShardDone]:
        """Embed and store shards, and yield the result of each in order."""
        ...


@dataclass
class Embedder:
    """Embeds the clips of one data set with one encoder.

    Attributes:
        source: the data set.
        encoder: the frozen encoder.
        seconds: length to which clips are cropped or padded.
        skip_bad: leave out clips that cannot be used, instead of raising.
        cache: folder of the cache.
        dtype: type of the stored embeddings, "float32" or "float16".
    """

    source: ClipSource
    encoder: AudioEncoder
    seconds: float
    skip_bad: bool
    cache: Path
    dtype: str
    store: EmbeddingStore = field(init=False)
    _stored: set[bytes] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        encoder = self.encoder
        key = cache_key(
            encoder.fingerprint, encoder.sample_rate, encoder.tokens, encoder.width, float(self.seconds), self.dtype
        )
        self.store = EmbeddingStore(self.cache / "embeddings" / key, self.dtype)

    def map(self, shards: Sequence[Shard]) -> Iterator[ShardDone]:
        """Embed shards in this process."""
        self.start()
        return map(self.work, shards)

    def start(self) -> None:
        """Load the set of clips that already have an embedding; call it before `work`."""
        self._stored = self.store.known()

    def work(self, shard: Shard) -> ShardDone:
        """Embed the clips of a shard that have no embedding yet, and store them.

        Raises:
            BadClipError: a clip cannot be used, and `skip_bad` is off.
            DataError: the encoder returns embeddings of another shape than its attributes state.
        """
        contents: dict[str, str] = {}
        mtime_keys: list[tuple[str, str, str]] = []
        bad: list[str] = []
        seen: set[str] = set()
        new: dict[str, FloatArray] = {}
        batch: list[_Clip] = []
        for key, known in zip(shard.keys, shard.contents, strict=True):
            try:
                mtime_key = self.source.mtime_key(key)
                content = contents[key] = known or self.source.content(key)
                if known is None and mtime_key is not None:
                    mtime_keys.append((key, mtime_key, content))
                if clip_id(content) in self._stored or content in seen:
                    continue
                batch.append(_Clip(key, content, waveform_of(self.source, key, self.encoder.sample_rate, self.seconds)))
                seen.add(content)
            except BadClipError as error:
                self._reject(str(error), bad)
            if len(batch) == self.batch:
                new |= self._encode(batch, bad)
                batch = []
        if batch:
            new |= self._encode(batch, bad)
        if new:
            self.store.write(list(new), np.stack(list(new.values())))
            self._stored |= {clip_id(content) for content in new}
        return ShardDone(tuple(contents.get(key) for key in shard.keys), tuple(mtime_keys), tuple(bad))

    @property
    def batch(self) -> int:
        """Batch size: smaller for long clips, so that a batch fits into memory."""
        return max(1, min(BATCH, int(BATCH_SECONDS / self.seconds)))

    def _reject(self, reason: str, bad: list[str]) -> None:
        """Raise, or with `skip_bad` add the reason to `bad`."""
        if not self.skip_bad:
            raise BadClipError(f"{reason}; {REMEDY}")
        bad.append(reason)

    def _encode(self, clips: Sequence[_Clip], bad: list[str]) -> dict[str, FloatArray]:
        """The embeddings of the clips by content, without those with NaN or infinity."""
        embeddings = self.encoder.encode(np.stack([clip.waveform for clip in clips]))
        expected = (len(clips), self.encoder.tokens, self.encoder.width)
        if embeddings.shape != expected:
            raise DataError(
                f"the encoder {self.encoder.name} returned embeddings of shape {embeddings.shape}; expected {expected}"
            )
        new = {}
        for clip, embedding in zip(clips, embeddings, strict=True):
            if np.isfinite(embedding).all():
                new[clip.content] = embedding
            else:
                self._reject(
                    f"the encoder {self.encoder.name} returns NaN or infinity for {clip.key}; expected finite values "
                    f"of shape {(1, *expected[1:])}",
                    bad,
                )
        return new


def waveform_of(source: ClipSource, key: str, sample_rate: int, seconds: float) -> FloatArray:
    """Read a clip as (round(seconds * sample_rate),) float32, and check what a custom data set returns.

    Raises:
        BadClipError: the clip cannot be read, or is not such a waveform.
    """
    waveform = source.waveform(key, sample_rate, seconds)
    return check_waveform(waveform, round(seconds * sample_rate), f"the waveform of {key}")


def embed_clips(
    embedder: Embedder, keys: Sequence[str], pool: ShardPool | None = None, progress: Progress | None = None
) -> tuple[FloatArray, IntArray]:
    """`embed_contents` without the contents."""
    embeddings, rows, _ = embed_contents(embedder, keys, pool, progress)
    return embeddings, rows


def embed_contents(
    embedder: Embedder, keys: Sequence[str], pool: ShardPool | None = None, progress: Progress | None = None
) -> tuple[FloatArray, IntArray, list[str]]:
    """Embed N clips, or load them from the cache; cached clips need neither the audio nor the encoder's model.

    If several processes need the same embeddings, one computes and the others wait. If there are no bad clips, all
    clips were embedded together, and the type is float32, the array is the memory-mapped file of the cache.

    Args:
        embedder: embeds a clip that has no embedding yet.
        keys: keys of the clips.
        pool: runs the embedding; default: `embedder` in this process.
        progress: called with the number of finished clips and the total.

    Returns:
        Embeddings (M, S, Da) float32 of the good clips, their M positions in `keys`, and their contents.

    Raises:
        BadClipError: a clip cannot be used, and `skip_bad` is off.
        DataError: no clip can be used, or the cache cannot be written.
    """
    known = ContentHashIndex(embedder.source, embedder.cache)
    contents = [known.get(key) for key in keys]
    if _missing(embedder, contents):
        try:
            lock = acquire_lock(embedder.store.folder / "lock", "these embeddings")
        except OSError as error:
            raise DataError(str(error)) from error
        try:
            contents = _embed_missing(embedder, keys, contents, known, pool or embedder, progress)
        finally:
            lock.release()
    embeddings, rows = _read(embedder, contents)
    if len(rows) == 0 and len(keys):
        raise DataError(f"none of the {len(keys)} clips can be read; the warnings above give the reasons")
    return embeddings.astype(np.float32, copy=False), rows, [contents[row] or "" for row in rows]


def _missing(embedder: Embedder, contents: Sequence[str | None]) -> list[int]:
    """Positions of the clips of unknown content, and of those without an embedding in the store."""
    stored = embedder.store.known()
    return [row for row, content in enumerate(contents) if content is None or clip_id(content) not in stored]


def _embed_missing(
    embedder: Embedder,
    keys: Sequence[str],
    contents: Sequence[str | None],
    known: ContentHashIndex,
    pool: ShardPool,
    progress: Progress | None,
) -> list[str | None]:
    """Embed the clips without an embedding; returns the contents, None for clips that cannot be opened."""
    embedder.store.clean()
    missing = _missing(embedder, contents)  # again: another process may have embedded them while this one waited
    if missing:
        logger.info("Embedding %d clips with %s", len(missing), embedder.encoder.name)
    parts = [missing[start : start + SHARD] for start in range(0, len(missing), SHARD)]
    shards = [Shard(tuple(keys[row] for row in part), tuple(contents[row] for row in part)) for part in parts]
    contents, done = list(contents), 0
    for part, result in zip(parts, pool.map(shards), strict=True):
        for row, content in zip(part, result.contents, strict=True):
            contents[row] = content
        known.add(result.mtime_keys)
        for reason in result.bad:
            logger.warning("Skipped a clip: %s", reason)
        done += len(part)
        if progress is not None:
            progress(done, len(missing))
    embedder.store.merge([content for content in contents if content is not None])
    return contents


def _read(embedder: Embedder, contents: Sequence[str | None]) -> tuple[FloatArray, IntArray]:
    opened = np.array([row for row, content in enumerate(contents) if content is not None], dtype=np.int64)
    embeddings, rows = embedder.store.read([content for content in contents if content is not None])
    return embeddings, opened[rows]
