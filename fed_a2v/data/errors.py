"""Errors about data sets; each message names the file or value, and the remedy."""

from fed_a2v.errors import UserError


class DataError(UserError, ValueError):
    """A data set cannot be used as it is."""


class BadClipError(DataError):
    """A clip cannot be used; `dataset.skip_bad=true` continues without it."""


class PartitionError(DataError):
    """The clips cannot be divided among the sites as the settings require."""
