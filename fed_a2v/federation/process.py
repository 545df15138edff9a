"""In which of Flower's processes this code runs."""

from __future__ import annotations

import sys
from pathlib import Path


def serves_one_message() -> bool:
    """Whether this process was started by a SuperNode for one message."""
    return _program() == "flwr-clientapp"


def is_deployed_server() -> bool:
    """Whether this process was started by a SuperLink that serves SuperNodes, for one run."""
    return _program() == "flwr-serverapp"


def is_simulated_node() -> bool:
    """Whether Flower's simulation plays this node, on the server's own machine.

    A node is taken for one on a machine of its own unless this is certain: there a message is a stranger's.
    """
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _program() -> str:
    return Path(sys.argv[0]).name
