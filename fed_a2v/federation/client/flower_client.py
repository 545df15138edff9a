"""The Flower client of a node: it passes the messages on to the message handler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.client import NumPyClient
from flwr.common import Config, NDArrays, Scalar

from fed_a2v.federation.client.node_config import read_node_config

if TYPE_CHECKING:
    from fed_a2v.federation.client.message_handler import MessageHandler


class A2VClient(NumPyClient):
    """The Flower client of one node.

    Args:
        node_config: the node's own configuration; see `NodeConfig`. It is checked when the first message arrives, so
            that the server receives the error, too.
        deployed: the node is on its own machine and does not trust the server: no message may contain a path or code to
            run, and no error shows the content of a file. Otherwise the paths in the server's settings are used.
    """

    def __init__(self, node_config: dict[str, Scalar], deployed: bool = False) -> None:
        super().__init__()
        self.node_config = node_config
        self.deployed = deployed

    def handler(self) -> MessageHandler:
        """The message handler."""
        # In a deployment every message starts a process; a request for the name is answered without importing torch.
        from fed_a2v.federation.client.message_handler import MessageHandler

        return MessageHandler(self.node_config, self.deployed)

    def get_properties(self, config: Config) -> dict[str, Scalar]:
        """The node's name, for federations in which every node is a site."""
        del config
        name = read_node_config(self.node_config).name
        return {} if name is None else {"site": name}

    def fit(self, parameters: NDArrays, config: Config) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """See `MessageHandler.fit`."""
        return self.handler().fit(parameters, config)

    def evaluate(self, parameters: NDArrays, config: Config) -> tuple[float, int, dict[str, Scalar]]:
        """See `MessageHandler.evaluate`."""
        return self.handler().evaluate(parameters, config)
