"""dataset=embeddings: precomputed embeddings in an `.npz` file.

embeddings   (N, D) or (N, S, D)
category     (N,) class names; or instead
target       (N,) class numbers, which become the names class_00, class_01, ...
fold         (N,) folds, from 1
filename     (N,) optional, unique names of the clips
source       (N,) optional, the recordings that the clips were cut from; "" if unknown
head         (K, D) optional, the weight of the encoder's label head, for `projection=head`
head_labels  (K,) optional, the names of its labels, for `prior=labels`
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from fed_a2v.config.sections.data import DatasetSettings
from fed_a2v.core.names import clean_name
from fed_a2v.data.clips import FloatArray, IntArray, Record
from fed_a2v.data.datasets.base import DataSet
from fed_a2v.data.errors import BadClipError, DataError
from fed_a2v.storage.npz import Array, ArrayFileError, as_floats, as_names, read_arrays

logger = logging.getLogger("fed_a2v")

# A row whose largest value is more than this times the median row's is damaged, and would dominate all statistics.
OUT_OF_SCALE = 1e4


class EmbeddingsFile(DataSet):
    """The clips of a file of embeddings. A clip's key is its name in the file, or its row.

    Args:
        path: the file.
    """

    has_audio = False

    def __init__(self, path: str | Path) -> None:
        self.path = path

    @classmethod
    def open(cls, settings: DatasetSettings, seed: int) -> Self:
        """See `DataSet`."""
        del seed
        return cls(str(settings.path))

    @classmethod
    def located(cls, settings: DatasetSettings, place: Path) -> DatasetSettings:
        """See `DataSet`; in a folder the file has the name that it has in the settings."""
        file = place / Path(str(settings.path)).name if place.is_dir() else place
        return settings.model_copy(update={"path": str(file)})

    @classmethod
    def fits(cls, place: Path) -> bool:
        """See `DataSet`."""
        return place.is_file()

    def watched(self) -> list[Path]:
        """The file."""
        return [Path(self.path).expanduser()]

    def records(self) -> list[Record]:
        """The clips that the file lists; the embeddings are not read.

        Raises:
            DataError: the file is missing or malformed, or its arrays have different lengths.
        """
        path = self.path
        try:
            arrays = read_arrays(path, ("fold",), ("category", "target", "filename", "source"))
            folds = _integers(arrays["fold"], f"fold of {path}", minimum=1)
            if "category" in arrays:
                categories = as_names(arrays["category"], f"category of {path}")
            elif "target" in arrays:
                targets = _integers(arrays["target"], f"target of {path}", minimum=0)
                categories = [f"class_{target:02d}" for target in targets]
            else:
                raise DataError(f"{path} has neither category nor target; add one of them for the classes of the clips")
            if "filename" in arrays:
                keys = as_names(arrays["filename"], f"filename of {path}")
            else:
                keys = [f"row-{row:05d}" for row in range(len(folds))]
            sources = _sources(arrays, len(folds), path)
        except ArrayFileError as error:
            raise DataError(f"dataset.path: {error}") from error
        for name, values in (("category or target", categories), ("filename", keys), ("source", sources)):
            if len(values) != len(folds):
                raise DataError(f"{path}: {len(values)} rows in {name}, {len(folds)} in fold; save as many in each")
        if not keys:
            raise DataError(f"{path} has no rows; save at least one clip")
        for row, name in enumerate(categories):
            if not clean_name(name):
                raise DataError(f"{path}: category {name!r} in row {row} contains no word; rename the class")
        return [Record(*values) for values in zip(keys, categories, folds.tolist(), sources, strict=True)]

    def read(self, records: Sequence[Record], rows: IntArray, skip_bad: bool) -> tuple[FloatArray, IntArray]:
        """The embeddings of the requested rows.

        Args:
            records: all records, as `records` returns them.
            rows: (N,) the requested rows.
            skip_bad: leave out rows with NaN, infinite or out-of-scale values.

        Returns:
            Embeddings (M, S, D) float32, and their M positions in `rows`.

        Raises:
            BadClipError: a row has NaN, infinite or out-of-scale values, and `skip_bad` is off.
            DataError: the array is missing or has another shape.
        """
        path, embeddings = self.path, self._embeddings()
        if len(embeddings) != len(records):
            raise DataError(f"{path}: {len(embeddings)} rows in embeddings, {len(records)} in fold")
        embeddings = embeddings[rows] if embeddings.ndim == 3 else embeddings[rows, None]
        largest = np.maximum(embeddings.max(axis=(1, 2)), -embeddings.min(axis=(1, 2)))
        finite = np.isfinite(largest)
        median = float(np.median(largest[finite])) if finite.any() else 0.0
        good = finite & ((largest <= OUT_OF_SCALE * median) | (median == 0))
        if not good.all():
            first = int(np.flatnonzero(~good)[0])
            fault = f"values of up to {largest[first]:.3g}, while the median is {median:.3g}"
            reason = (
                f"{path}: row {rows[first]} ({records[rows[first]].key}) of embeddings has "
                f"{fault if finite[first] else 'NaN or infinite values'}"
            )
            if not skip_bad:
                raise BadClipError(f"{reason}; dataset.skip_bad=true skips such rows")
            logger.warning("%s; skipped this row and %d others", reason, int((~good).sum()) - 1)
        return embeddings[good], np.flatnonzero(good).astype(np.int64)

    def shape(self) -> tuple[int, int]:
        """(S, D) of the embeddings.

        Raises:
            DataError: see `read`.
        """
        shape = self._embeddings().shape
        return (1, shape[1]) if len(shape) == 2 else (shape[1], shape[2])

    def _embeddings(self) -> FloatArray:
        try:
            return as_floats(
                read_arrays(self.path, ("embeddings",))["embeddings"], f"embeddings of {self.path}", (2, 3)
            )
        except ArrayFileError as error:
            raise DataError(f"dataset.path: {error}") from error


Source = EmbeddingsFile


def _sources(arrays: dict[str, Array], count: int, path: str | Path) -> list[str]:
    if "source" not in arrays:
        return [""] * count
    values = arrays["source"]
    if values.ndim != 1 or values.dtype.kind != "U":
        raise ArrayFileError(
            f"source of {path} is {values.dtype} of shape {values.shape}; it must have one string per row"
        )
    return [str(value) for value in values]


def _integers(values: Array, what: str, minimum: int) -> IntArray:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ArrayFileError(f"{what} is {values.dtype} of shape {values.shape}; it must have one integer per row")
    for value in (values.min(), values.max()) if len(values) else ():
        if not minimum <= value < 2**31:
            raise ArrayFileError(f"{what} has the value {value}; it must be from {minimum} to {2**31 - 1}")
    return values.astype(np.int64)
