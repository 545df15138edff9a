"""The audio encoder as the cache needs it: known by its fingerprint, even where its model is no longer there."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from fed_a2v.config.schema import EncoderSettings
from fed_a2v.data.clips import FloatArray
from fed_a2v.data.errors import DataError
from fed_a2v.encoders.audio import AudioEncoder, load_encoder
from fed_a2v.encoders.pretrained import ModelError
from fed_a2v.storage.array_cache import cache_key
from fed_a2v.storage.files import write_json

logger = logging.getLogger("fed_a2v")


@dataclass
class CachedEncoderInfo:
    """What is known of an encoder that this machine had once, or that another machine's cache was made with."""

    name: str
    sample_rate: int
    tokens: int
    width: int
    fingerprint: str
    reason: str

    def encode(self, waveforms: FloatArray) -> FloatArray:
        """Nothing can be embedded.

        Raises:
            ModelError: says what is missing.
        """
        del waveforms
        raise ModelError(self.reason)


def known_encoder(settings: EncoderSettings, cache: Path) -> AudioEncoder:
    """The encoder that the settings name; where it cannot be loaded, what the cache knows of it.

    So a machine that was given a cache trains without transformers and without the model.

    Raises:
        ModelError: the encoder cannot be loaded, and the cache does not know it.
        DataError: the cache cannot be written.
    """
    # Neither the device nor the size of batches makes other embeddings.
    identity = settings.model_dump(exclude={"device", "batch_size"})
    file = cache / "encoders" / f"{cache_key(sorted(identity.items()))}.json"
    try:
        encoder = load_encoder(settings)
        facts = {
            "name": encoder.name,
            "sample_rate": encoder.sample_rate,
            "tokens": encoder.tokens,
            "width": encoder.width,
            "fingerprint": encoder.fingerprint,
        }
    except ModelError as error:
        if (absent := _recall(file, str(error))) is None:
            raise
        return absent
    known = _recall(file, "")
    if known is None or asdict(known) != facts | {"reason": ""}:
        try:
            write_json(file, facts)
        except OSError as error:
            raise DataError(f"{error}; set cache_dir to one that can be written") from error
    return encoder


def _recall(file: Path, reason: str) -> CachedEncoderInfo | None:
    try:
        facts = json.loads(file.read_bytes())
        return CachedEncoderInfo(
            str(facts["name"]),
            int(facts["sample_rate"]),
            int(facts["tokens"]),
            int(facts["width"]),
            str(facts["fingerprint"]),
            reason,
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s): it is written anew", file, error)
        return None
