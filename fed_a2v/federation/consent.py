"""What a site's owner allows to leave it, whatever a run asks for."""

from __future__ import annotations

from fed_a2v.settings import ShareSettings


class ConsentError(ValueError):
    """A run asks a site for more than its owner allows."""


def check_consent(share: ShareSettings, least: int) -> None:
    """Check that every average that the settings ask for is one of `least` clips or more.

    Args:
        share: what the run asks for.
        least: clips behind every average, by the owner's word; 0: whatever the run asks for.

    Raises:
        ConsentError: names both numbers.
    """
    asked = 1 if share.kind == "samples" else share.min_clips
    if asked < least:
        raise ConsentError(
            f"this site gives averages of {least} clips or more (min-clips in its node configuration), "
            f"share={share.kind} with share.min_clips={share.min_clips} asks for {asked}; raise share.min_clips"
        )
