"""Attributes of encoders in the cache, so that cached embeddings can be used on a machine without the encoder's model.

`fed_a2v.data.cache.workers` loads every encoder through `known_encoder`.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from fed_a2v.config.sections.data import EncoderSettings
from fed_a2v.data.clips import FloatArray
from fed_a2v.data.errors import DataError
from fed_a2v.encoders.audio import AudioEncoder, load_encoder
from fed_a2v.encoders.pretrained import ModelError
from fed_a2v.storage.array_cache import cache_key
from fed_a2v.storage.files import write_json
from fed_a2v.storage.untrusted import read_json

logger = logging.getLogger("fed_a2v")


@dataclass
class CachedEncoderInfo:
    """Stands for an encoder that cannot be loaded on this machine; `reason` is the error message of loading it."""

    name: str
    sample_rate: int
    tokens: int
    width: int
    fingerprint: str
    reason: str

    def encode(self, waveforms: FloatArray) -> FloatArray:
        """Not supported.

        Raises:
            ModelError: always; the message is `reason`.
        """
        del waveforms
        raise ModelError(self.reason)


def known_encoder(settings: EncoderSettings, cache: Path) -> AudioEncoder:
    """Load the encoder that the settings name; if that fails, return its cached attributes.

    So a machine with a copy of the cache can train without transformers and without the model.

    Raises:
        ModelError: the encoder cannot be loaded, and its attributes are not in the cache.
        DataError: the cache cannot be written.
    """
    # Device and batch size do not affect the embeddings.
    identity = settings.model_dump(exclude={"device", "batch_size"})
    file = cache / "encoders" / f"{cache_key(sorted(identity.items()))}.json"
    try:
        encoder = load_encoder(settings)
        attributes = {
            "name": encoder.name,
            "sample_rate": encoder.sample_rate,
            "tokens": encoder.tokens,
            "width": encoder.width,
            "fingerprint": encoder.fingerprint,
        }
    except ModelError as error:
        if (cached := _read_info(file, str(error))) is None:
            raise
        return cached
    cached = _read_info(file, "")
    if cached is None or asdict(cached) != attributes | {"reason": ""}:
        try:
            write_json(file, attributes)
        except OSError as error:
            raise DataError(f"{error}; set cache_dir to a writable folder") from error
    return encoder


def _read_info(file: Path, reason: str) -> CachedEncoderInfo | None:
    """The cached attributes; None if the file is missing or damaged."""
    try:
        if not (attributes := read_json(file)):
            return None
        return CachedEncoderInfo(
            str(attributes["name"]),
            int(attributes["sample_rate"]),
            int(attributes["tokens"]),
            int(attributes["width"]),
            str(attributes["fingerprint"]),
            reason,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s); writing it again", file, error)
        return None
