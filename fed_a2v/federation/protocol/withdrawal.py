"""A site's withdrawal: its answer to every message once its owner has set `withdraw` in the node's configuration.

The client encodes it; the server's `ReplyValidator` takes it out of the replies before they are checked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from flwr.common import Scalar

from fed_a2v.federation.protocol.errors import as_invalid_reply
from fed_a2v.federation.protocol.manifest import Manifest, check_origin, read_manifest, write_manifest

WITHDRAW = "withdraw"  # key in the metrics


def encode_withdrawal(site: str, round_number: int) -> dict[str, Scalar]:
    """The metrics of a withdrawal; it has no arrays."""
    return {**write_manifest(Manifest(site=site, round_number=round_number)), WITHDRAW: True}


def is_withdrawal(metrics: Mapping[str, Scalar]) -> bool:
    """Whether a reply says that its site withdraws."""
    return isinstance(metrics, Mapping) and metrics.get(WITHDRAW) is True


@as_invalid_reply()
def check_withdrawal(metrics: Mapping[str, Scalar], classes: Collection[str], site: str, round_number: int) -> None:
    """Check that a withdrawal is of the site and answers the message of the round.

    Raises:
        InvalidReplyError: it does not.
    """
    check_origin(read_manifest(metrics, Manifest, 2 * len(classes)), site, round_number)
