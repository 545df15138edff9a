"""Flower's entry point for the sites."""

from __future__ import annotations

from flwr.app import Context
from flwr.client import Client
from flwr.clientapp import ClientApp

from fed_a2v.federation.client.flower_client import A2VClient
from fed_a2v.federation.client.secure_sums import secure_sums_mod
from fed_a2v.federation.process import is_simulated_node


def client_fn(context: Context) -> Client:
    """The client of one node."""
    return A2VClient(dict(context.node_config), deployed=not is_simulated_node()).to_client()


app = ClientApp(client_fn=client_fn, mods=[secure_sums_mod])
