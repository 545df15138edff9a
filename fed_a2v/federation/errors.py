"""The error that ends a federation; its message says why, and what to do."""


class FederationError(RuntimeError):
    """The federation cannot start or go on."""
