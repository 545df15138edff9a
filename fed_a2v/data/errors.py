"""Errors about data: each names the file or value, and what to do."""

from fed_a2v.errors import UserError


class DataError(UserError, ValueError):
    """A data set cannot be used as it is."""


class BadClipError(DataError):
    """One clip cannot be used; `dataset.skip_bad=true` goes on without it."""


class PartitionError(DataError):
    """The clips cannot be divided among the sites as asked."""
