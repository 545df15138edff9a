"""Flower's entry point for the sites."""

from __future__ import annotations

from flwr.app import Context
from flwr.client import Client
from flwr.clientapp import ClientApp

from fed_a2v.federation.client import A2VClient


def client_fn(context: Context) -> Client:
    """The client of one node."""
    return A2VClient(dict(context.node_config)).to_client()


app = ClientApp(client_fn=client_fn)
