"""The Flower client: a node as Flower sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.client import NumPyClient
from flwr.common import Config, NDArrays, Scalar

from fed_a2v.federation.client.node_config import read_node_config

if TYPE_CHECKING:
    from fed_a2v.federation.client.message_handler import Node


class A2VClient(NumPyClient):
    """A node's side of the federation.

    Args:
        node_config: what only this node knows; see `NodeConfig`. It is checked when the first message comes, so that
            the server hears what is wrong with it, too.
        deployed: the node is on a machine of its own. To it the server is a stranger: no message names a file there
            or code to run, and no error tells what is in a file. Otherwise the server's settings are this machine's.
    """

    def __init__(self, node_config: dict[str, Scalar], deployed: bool = False) -> None:
        super().__init__()
        self.node_config = node_config
        self.deployed = deployed

    def node(self) -> Node:
        """What does the work."""
        # In a deployment every message starts a process: one that asks for a name need not wait for torch.
        from fed_a2v.federation.client.message_handler import Node

        return Node(self.node_config, self.deployed)

    def get_properties(self, config: Config) -> dict[str, Scalar]:
        """The node's name, for federations in which every node is a site of its own."""
        del config
        name = read_node_config(self.node_config).name
        return {} if name is None else {"site": name}

    def fit(self, parameters: NDArrays, config: Config) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """See `Node.fit`."""
        return self.node().fit(parameters, config)

    def evaluate(self, parameters: NDArrays, config: Config) -> tuple[float, int, dict[str, Scalar]]:
        """See `Node.evaluate`."""
        return self.node().evaluate(parameters, config)
