"""The error that ends a federation; its message says why, and what to do."""

from fed_a2v.errors import UserError


class FederationError(UserError, RuntimeError):
    """The federation cannot start or go on."""
