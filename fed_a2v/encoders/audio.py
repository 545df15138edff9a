"""Frozen audio encoders, which embed waveforms as S tokens of width Da: their interface, and `load_encoder`.

Each built-in encoder has its own file, named as in `encoder.name`. `fed_a2v.data.cache` embeds the clips of a data set
with the encoder that `load_encoder` returns.
"""

from __future__ import annotations

import importlib
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from fed_a2v.config.plugins import make_object
from fed_a2v.config.sections.data import EncoderSettings

FloatArray = NDArray[np.float32]


class AudioEncoder(Protocol):
    """Interface of a frozen audio encoder. A clip's embedding must not depend on the other clips of its batch.

    Attributes:
        name: the encoder's name in the settings.
        sample_rate: sample rate of the waveforms, in Hz.
        tokens: S, tokens per clip.
        width: Da, width of a token.
    """

    name: str
    sample_rate: int
    tokens: int
    width: int

    @property
    def fingerprint(self) -> str:
        """A string that changes whenever the embeddings would; part of the cache key."""
        ...

    def encode(self, waveforms: FloatArray) -> FloatArray:
        """Embed waveforms of shape (B, samples) as (B, S, Da)."""
        ...


# The attributes of `AudioEncoder` that a custom class must have.
ENCODER_ATTRIBUTES = ("name", "sample_rate", "tokens", "width", "fingerprint")


class BuiltInEncoder(AudioEncoder, Protocol):
    """Interface of the encoders of this package; the file of an encoder sets `Encoder` to its class."""

    @classmethod
    def load(cls, settings: EncoderSettings) -> Self:
        """Create the encoder.

        Raises:
            ModelError: the model is missing or of another type, or its packages are not installed.
        """
        ...

    @classmethod
    def known_shape(cls, settings: EncoderSettings) -> tuple[int, int] | None:
        """See the function `known_shape`."""
        ...


def load_encoder(settings: EncoderSettings) -> AudioEncoder:
    """Create the encoder that the settings name.

    Raises:
        ModelError: a pretrained model is missing or of another type, or its packages are not installed.
        ConfigError: a custom class cannot be used.
    """
    if settings.target is None:
        return _built_in(settings.name).load(settings)
    encoder: AudioEncoder = make_object("encoder", settings.target, settings.arguments, ["encode"], ENCODER_ATTRIBUTES)
    return encoder


def known_shape(settings: EncoderSettings) -> tuple[int, int] | None:
    """(S, Da) of an encoder without loading it: nothing is downloaded, no weights are read, no custom code is run.

    For a pretrained model the configuration file is enough. None if that is not on this machine, and for
    `encoder=custom`.
    """
    return _built_in(settings.name).known_shape(settings) if settings.target is None else None


def _built_in(name: str) -> type[BuiltInEncoder]:
    # The file is only imported here, so that the log-mel encoder works without transformers and without the time to
    # import torch. The settings check that the name is an option in `conf/encoder/`.
    encoder: type[BuiltInEncoder] = importlib.import_module(f"fed_a2v.encoders.{name}").Encoder
    return encoder
