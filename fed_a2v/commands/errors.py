"""Which errors a user can mend: a command ends with their one line, and no traceback."""

from __future__ import annotations

from fed_a2v.config import ConfigError


def mendable() -> tuple[type[Exception], ...]:
    """Errors whose message tells the user what to do."""
    from fed_a2v.data.errors import DataError
    from fed_a2v.encoders.pretrained import ModelError
    from fed_a2v.encoders.text import TargetsError
    from fed_a2v.federation.errors import FederationError
    from fed_a2v.images.gallery import GalleryError
    from fed_a2v.load import RunError
    from fed_a2v.report.collect import ReportError
    from fed_a2v.runs.checkpoint import CheckpointError
    from fed_a2v.storage.npz import ArrayFileError

    settings = (ConfigError, TargetsError, ModelError)
    files = (DataError, ArrayFileError, CheckpointError, GalleryError)
    return (*settings, *files, FederationError, RunError, ReportError, OSError)
