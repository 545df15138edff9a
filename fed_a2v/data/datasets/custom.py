"""dataset=custom: a class that the user provides, named by its import path in `dataset._target_`."""

from __future__ import annotations

from fed_a2v.config.plugins import make_object
from fed_a2v.config.sections.data import DatasetSettings
from fed_a2v.data.clips import ClipSource
from fed_a2v.data.datasets.base import DataSet

# The methods of `ClipSource`, which the class must have.
SOURCE_METHODS = ("watched", "records", "mtime_key", "content", "waveform")


class CustomDataSet(DataSet):
    """Makes an object of the user's class, which needs no base class."""

    @classmethod
    def open(cls, settings: DatasetSettings, seed: int) -> ClipSource:
        """An object of the class, with `dataset.root` as `root` if it is set, and `dataset.arguments`.

        Raises:
            ConfigError: the class cannot be used.
        """
        del seed
        root = {} if settings.root is None else {"root": settings.root}
        source: ClipSource = make_object(
            "dataset", str(settings.target), {**root, **settings.arguments}, SOURCE_METHODS
        )
        return source


Source = CustomDataSet
