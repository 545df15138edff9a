"""The kind of the sites' embeddings; adapters work with only one kind, and the strategy chooses it once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from fed_a2v.config.sections.data import DatasetSettings, EncoderSettings
from fed_a2v.data.datasets.base import data_set
from fed_a2v.data.index import parts
from fed_a2v.encoders.audio import known_shape
from fed_a2v.federation.protocol import TrainReply
from fed_a2v.federation.protocol.errors import FederationError


class EmbeddingSpec(NamedTuple):
    """Shape (tokens, width) of embeddings, and whether they are square roots of the encoder's output."""

    tokens: int
    width: int
    square_root: bool

    def __str__(self) -> str:
        return f"{self.tokens} x {self.width}" + (" square roots" if self.square_root else "")


def embedding_spec(reply: TrainReply) -> EmbeddingSpec | None:
    """The kind of a site's embeddings; None if the site shares neither prototypes nor moments."""
    for statistics in reply.statistics:
        if statistics.audio is not None:
            return EmbeddingSpec(statistics.audio.means.shape[1], statistics.audio.means.shape[2], reply.square_root)
    if reply.moments is not None:
        tokens, width = reply.moments.mean.shape
        return EmbeddingSpec(tokens, width, reply.square_root)
    return None


def agreed_spec(
    replies: Sequence[TrainReply], dataset: DatasetSettings, encoder: EncoderSettings, in_space: bool = False
) -> EmbeddingSpec | None:
    """The kind that the adapters must work with; None if no site shares anything.

    The settings determine it as far as possible: the shape if the encoder's output shape is known without downloading
    or loading a model, the square root if `dataset.square_root` is "always" or "never". The sites vote on the rest;
    each has one vote, regardless of the number of clips that it claims.

    Args:
        replies: replies to the registration.
        dataset: settings of the data set.
        encoder: settings of the audio encoder.
        in_space: whether the replies have rows in a public space, whose shape the protocol has checked.

    Raises:
        FederationError: no site has the kind of the settings, or no kind has more than half of the votes.
    """
    kinds = Counter(kind for kind in map(embedding_spec, replies) if kind is not None)
    if not kinds:
        return None
    reported = ", ".join(f"{number} of {kind}" for kind, number in sorted(kinds.items()))
    has_sounds = any(data_set(part.name).has_audio for part in parts(dataset))
    shape = known_shape(encoder) if has_sounds and not in_space else None
    root = {"always": True, "never": False}.get(dataset.square_root)
    votes = Counter(
        {kind: number for kind, number in kinds.items() if kind[:2] == (shape or kind[:2]) and root in (None, kind[2])}
    )
    if not votes:
        required = f"encoder={encoder.name}" + (f" gives {shape[0]} x {shape[1]}" if shape else "")
        raise FederationError(
            f"the sites' embeddings (tokens x width) are {reported}, but {required} and dataset.square_root="
            f"{dataset.square_root}; use the sites' encoder, or dataset=embeddings if they have files "
            "of embeddings"
        )
    (most, number), *_ = votes.most_common(1)
    if 2 * number <= votes.total():
        raise FederationError(
            f"the sites' embeddings (tokens x width) are {reported}: no kind is that of more than half of the sites; "
            "use the same encoder or files of embeddings at all sites, set dataset.square_root to always or never, or "
            "leave out the sites that differ"
        )
    return most
