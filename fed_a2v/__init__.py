"""Federated training of adapters from sound to the prompt embeddings of image models."""

__version__ = "0.1.0"
