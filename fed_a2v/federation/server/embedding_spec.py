"""What kind of embeddings the sites have: adapters serve only one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from fed_a2v.config.schema import Settings
from fed_a2v.data.index import parts
from fed_a2v.encoders.audio import known_shape
from fed_a2v.federation.errors import FederationError
from fed_a2v.federation.protocol import TrainReply


class EmbeddingSpec(NamedTuple):
    """Embeddings of shape (tokens, width), and whether they are square roots of what the encoder gave."""

    tokens: int
    width: int
    square_root: bool

    def __str__(self) -> str:
        return f"{self.tokens} x {self.width}" + (" square roots" if self.square_root else "")


def embedding_spec(reply: TrainReply) -> EmbeddingSpec | None:
    """The kind of a site's embeddings; None if it shares nothing."""
    for prompt in reply.prompts:
        if prompt.audio is not None:
            return EmbeddingSpec(prompt.audio.means.shape[1], prompt.audio.means.shape[2], reply.square_root)
    if reply.moments is not None:
        tokens, width = reply.moments.mean.shape
        return EmbeddingSpec(tokens, width, reply.square_root)
    return None


def agreed_spec(replies: Sequence[TrainReply], settings: Settings) -> EmbeddingSpec | None:
    """The kind that the adapters are to serve; None if no site shares anything.

    Of the shape that the server's own encoder gives, where it knows that without fetching or loading a model: no site
    is asked. Of what is left open the sites decide, each with one vote, whatever number of clips it claims.

    Args:
        replies: of the registration.
        settings: of the experiment.

    Raises:
        FederationError: no site is of the encoder's kind, or no kind is that of more than half of the sites.
    """
    kinds = Counter(kind for kind in map(embedding_spec, replies) if kind is not None)
    if not kinds:
        return None
    told = ", ".join(f"{number} of {kind}" for kind, number in sorted(kinds.items()))
    encodes = any(part.name != "embeddings" for part in parts(settings.dataset))
    shape = known_shape(settings.encoder) if encodes else None
    root = {"always": True, "never": False}.get(settings.dataset.square_root)
    votes = Counter(
        {kind: number for kind, number in kinds.items() if kind[:2] == (shape or kind[:2]) and root in (None, kind[2])}
    )
    if not votes:
        wanted = f"encoder={settings.encoder.name}" + (f" gives {shape[0]} x {shape[1]}" if shape else "")
        raise FederationError(
            f"the sites' embeddings (tokens x width) are {told}, but {wanted} and dataset.square_root="
            f"{settings.dataset.square_root}; run with the sites' own encoder, or with dataset=embeddings where they "
            "hold files of embeddings"
        )
    (most, number), *_ = votes.most_common(1)
    if 2 * number <= votes.total():
        raise FederationError(
            f"the sites' embeddings (tokens x width) are {told}: no kind is that of more than half of the sites; give "
            "all the same encoder or file of embeddings, set dataset.square_root to always or never, or leave out "
            "those that differ"
        )
    return most
