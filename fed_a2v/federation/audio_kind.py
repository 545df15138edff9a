"""What kind of embeddings a site has, and which kind most clips have: adapters serve only one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fed_a2v.core.shares import capped
from fed_a2v.federation.wire import SiteReply


class AudioKind(NamedTuple):
    """Embeddings of shape (tokens, width), and whether they are square roots of what the encoder gave."""

    tokens: int
    width: int
    square_root: bool

    def __str__(self) -> str:
        return f"{self.tokens} x {self.width}" + (" square roots" if self.square_root else "")


def audio_kind(reply: SiteReply) -> AudioKind | None:
    """The kind of a site's embeddings; None if it shares nothing."""
    for prompt in reply.prompts:
        if prompt.audio is not None:
            return AudioKind(prompt.audio.means.shape[1], prompt.audio.means.shape[2], reply.square_root)
    if reply.moments is not None:
        tokens, width = reply.moments.mean.shape
        return AudioKind(tokens, width, reply.square_root)
    return None


def kind_of_most_clips(replies: Sequence[SiteReply], max_site_share: float) -> AudioKind | None:
    """The kind that most of the sites' clips have; None if no site shares anything.

    Args:
        replies: of all sites.
        max_site_share: of all clips, that a single site may count for.
    """
    clips: dict[AudioKind, float] = {}
    believed = capped([reply.num_examples for reply in replies], max_site_share)
    for reply, count in zip(replies, believed, strict=True):
        kind = audio_kind(reply)
        if kind is not None:
            clips[kind] = clips.get(kind, 0) + count
    return max(sorted(clips), key=lambda kind: clips[kind], default=None)
