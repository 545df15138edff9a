"""The kind of Flower process that this code runs in; the apps, the strategy and the time limit depend on it."""

from __future__ import annotations

import sys
from pathlib import Path


def serves_one_message() -> bool:
    """Whether a SuperNode started this process, for one message."""
    return _program() == "flwr-clientapp"


def is_deployed_server() -> bool:
    """Whether a SuperLink with SuperNodes started this process, for one run."""
    return _program() == "flwr-serverapp"


def is_simulated_node() -> bool:
    """Whether Flower's simulation runs this node, on the machine of the server.

    If this is not certain the node counts as deployed, because a deployed node must not trust its messages.
    """
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _program() -> str:
    return Path(sys.argv[0]).name
