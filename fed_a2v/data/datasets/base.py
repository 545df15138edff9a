"""The base class of the data sets, and `data_set`, which finds the class of a data set by its name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from fed_a2v.config.sections.data import DatasetSettings

if TYPE_CHECKING:
    from fed_a2v.data.clips import ClipSource
    from fed_a2v.data.datasets.embeddings import EmbeddingsFile


class DataSet:
    """What the package asks of a data set besides its clips; the file of a data set sets `Source` to a subclass.

    Attributes:
        has_audio: whether the clips are sounds (`ClipSource`); otherwise they are embeddings (`EmbeddingsFile`).
        folds: folds that exist even if they have no clips.
        layout: glob pattern that only the folder of this data set matches. A pattern with fewer * is tried first.
    """

    has_audio: ClassVar[bool] = True
    folds: ClassVar[tuple[int, ...]] = ()
    layout: ClassVar[str] = ""

    @classmethod
    def open(cls, settings: DatasetSettings, seed: int) -> ClipSource | EmbeddingsFile:
        """The object that lists and reads the clips; `seed` is the seed of synthesised clips."""
        raise NotImplementedError

    @classmethod
    def located(cls, settings: DatasetSettings, place: Path) -> DatasetSettings:
        """The settings for data at `place` on this machine, which is the root folder unless a subclass overrides this.

        Raises:
            DataError: the data set reads no files.
        """
        return settings.model_copy(update={"root": str(place)})

    @classmethod
    def fits(cls, place: Path) -> bool:
        """Whether `place` has the layout of this data set."""
        return bool(cls.layout) and any(place.glob(cls.layout))


def data_set(name: str) -> type[DataSet]:
    """The class of the data set that `dataset.name` names; its file is only imported here, e.g. scipy only for synth.

    The settings check that the name is an option in `conf/dataset/`, so that settings from a message import no other
    module.
    """
    source: type[DataSet] = importlib.import_module(f"fed_a2v.data.datasets.{name}").Source
    return source
