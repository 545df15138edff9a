"""The configuration: its typed schema, how Hydra composes it, and what its errors say."""
