"""From clips to embeddings, through the cache."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fed_a2v.data.cache import Arrays, cache_key, cached
from fed_a2v.data.clips import ClipSource, FloatArray, IntArray
from fed_a2v.data.errors import BadClipError, DataError
from fed_a2v.encoders.audio import AudioEncoder

logger = logging.getLogger("fed_a2v")

BATCH = 16
REMEDY = "mend or remove it, or set dataset.skip_bad=true"


@dataclass(frozen=True)
class _Embedding:
    """What it takes to embed clips: the cache needs it only where nothing is stored yet."""

    source: ClipSource
    keys: Sequence[str]
    encoder: AudioEncoder
    seconds: float
    skip_bad: bool

    def compute(self) -> Arrays:
        """`embeddings` (M, S, Da) of the good clips, and `good` (N,), which of all they are."""
        total = len(self.keys)
        logger.info("Embedding %d clips with %s", total, self.encoder.name)
        good = np.zeros(total, dtype=bool)
        parts: list[FloatArray] = []
        for start in range(0, total, BATCH):
            waveforms = []
            for row in range(start, min(start + BATCH, total)):
                waveform = self.waveform(row)
                good[row] = waveform is not None
                if waveform is not None:
                    waveforms.append(waveform)
            if waveforms:
                parts.append(self._encode(np.stack(waveforms)))
        if not parts:
            raise DataError(f"none of the {total} clips can be read")
        return {"embeddings": np.concatenate(parts), "good": good}

    def waveform(self, row: int) -> FloatArray | None:
        """The waveform of one clip; None where it is bad and bad clips are skipped."""
        key = self.keys[row]
        try:
            return self.source.waveform(key, self.encoder.sample_rate, self.seconds)
        except BadClipError as error:
            if not self.skip_bad:
                raise BadClipError(f"{error}; {REMEDY}") from error
            logger.warning("Skipped a clip: %s", error)
            return None

    def content(self, row: int) -> str:
        """What identifies the clip's sound; a clip that cannot be opened is bad, which is a content too."""
        try:
            return self.source.content(self.keys[row])
        except BadClipError:
            return "unreadable"

    def _encode(self, waveforms: FloatArray) -> FloatArray:
        embeddings = self.encoder.encode(waveforms)
        expected = (len(waveforms), self.encoder.tokens, self.encoder.width)
        if embeddings.shape != expected or not np.isfinite(embeddings).all():
            raise DataError(
                f"the encoder {self.encoder.name} gave embeddings of shape {embeddings.shape}, finite: "
                f"{bool(np.isfinite(embeddings).all())}; finite numbers of shape {expected} are needed"
            )
        return embeddings


def embed_clips(
    source: ClipSource, keys: Sequence[str], encoder: AudioEncoder, seconds: float, skip_bad: bool, cache: Path
) -> tuple[FloatArray, IntArray]:
    """Embed N clips, or take what is cached.

    The cache's key is the content of the clips, in their order, and all else that the result depends on; it holds
    no path, so that the same sounds elsewhere are not computed again.

    Returns:
        Embeddings (M, S, Da) float32 of the good clips, and their M positions in `keys`.

    Raises:
        BadClipError: a clip cannot be used, and `skip_bad` is off.
        DataError: no clip can be used, or the cache cannot be written.
    """
    job = _Embedding(source, keys, encoder, seconds, skip_bad)
    contents = [job.content(row) for row in range(len(keys))]
    key = cache_key(encoder.fingerprint, encoder.sample_rate, seconds, contents)
    arrays = cached(cache / "embeddings", key, job.compute)
    good: IntArray = np.flatnonzero(arrays["good"]).astype(np.int64)
    if not skip_bad and len(good) < len(keys):
        # Another run skipped clips: let the first one's own error say what is wrong with it.
        bad = int(np.flatnonzero(~arrays["good"])[0])
        job.waveform(bad)
        raise BadClipError(f"{keys[bad]} could not be read when it was embedded; {REMEDY}")
    return arrays["embeddings"], good
