"""The Flower client: a node as Flower sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.client import NumPyClient
from flwr.common import Config, NDArrays, Scalar

if TYPE_CHECKING:
    from fed_a2v.federation.node import Node


def own_name(node_config: dict[str, Scalar]) -> str | None:
    """What a node's operator calls its site; None where it has no name."""
    return next((str(node_config[key]) for key in ("site", "partition-id") if key in node_config), None)


class A2VClient(NumPyClient):
    """A node's side of the federation.

    Args:
        node_config: what only this node knows: `site` (its name), `dataset` (the kind of its data), `data-dir`,
            `cache-dir`, `device`, `targets` (a file of class prompts, where it has no text model), `min-clips` (clips
            behind every average that leaves it, at least); all optional.
    """

    def __init__(self, node_config: dict[str, Scalar]) -> None:
        super().__init__()
        self.node_config = node_config

    def node(self) -> Node:
        """What does the work."""
        # In a deployment every message starts a process: one that asks for a name need not wait for torch.
        from fed_a2v.federation.node import Node

        return Node(self.node_config)

    def get_properties(self, config: Config) -> dict[str, Scalar]:
        """The node's name, for federations in which every node is a site of its own."""
        del config
        name = own_name(self.node_config)
        return {} if name is None else {"site": name}

    def fit(self, parameters: NDArrays, config: Config) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """See `Node.fit`."""
        return self.node().fit(parameters, config)

    def evaluate(self, parameters: NDArrays, config: Config) -> tuple[float, int, dict[str, Scalar]]:
        """See `Node.evaluate`."""
        return self.node().evaluate(parameters, config)
