"""Store of embeddings on disk, looked up by the contents of clips, and read without copying; `embed` uses it.

    FOLDER/NAME.npy         (n, S, Da) float32 or float16: the embeddings of n clips, memory-mapped
    FOLDER/NAME.clips.npy   (n,) table: for each clip the hash of its content, and the checksum of its embedding

Such a pair is a segment. The embeddings of a segment are never changed, and it is valid once its table exists, which
is written last: a process that is killed loses only the segment that it was writing.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fed_a2v.data.errors import DataError
from fed_a2v.storage.files import replacing

logger = logging.getLogger("fed_a2v")

Array = NDArray[Any]
IntArray = NDArray[np.int64]

# Replaces the hash of a clip whose embedding is damaged.
REMOVED = bytes(32)
TABLE = np.dtype([("clip", "V32"), ("checksum", "<u4")])


class EmbeddingStore:
    """The embeddings of one encoder, in one type.

    Args:
        folder: folder of the segments; created when the first is written.
        dtype: "float32", or "float16", which needs half the space.
    """

    def __init__(self, folder: Path, dtype: str) -> None:
        self.folder = folder
        self.dtype = np.dtype(dtype)

    def known(self) -> set[bytes]:
        """The `clip_id` of each clip that has an embedding."""
        return set(self._places())

    def write(self, contents: Sequence[str], embeddings: Array) -> None:
        """Add a segment.

        Args:
            contents: n contents of the clips.
            embeddings: (n, S, Da), finite.

        Raises:
            DataError: a value is too large for the type, or the folder cannot be written.
        """
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(embeddings.astype(self.dtype))
        if not np.isfinite(rows).all():
            raise DataError(
                f"an embedding has a value of {np.abs(embeddings).max():.4g}, which is too large for float16; "
                "set dataset.cache_dtype=float32"
            )
        table = np.empty(len(rows), TABLE)
        table["clip"] = [np.void(clip_id(content)) for content in contents]
        table["checksum"] = [_checksum(row) for row in rows]
        self._write(table, [rows], rows.shape)

    def read(self, contents: Sequence[str]) -> tuple[Array, IntArray]:
        """The embeddings of those of N clips that have one.

        If they are consecutive rows of one segment, the array is the memory-mapped file.

        Returns:
            Embeddings (M, S, Da) of the store's type, and their M positions in `contents`; (0, 0, 0) if M is 0.
        """
        ids = [clip_id(content) for content in contents]
        while True:
            places = self._places()
            positions = np.array([position for position, clip in enumerate(ids) if clip in places], dtype=np.int64)
            selected = [places[ids[position]] for position in positions]
            try:
                rows, checksums = self._gather(selected)
            except FileNotFoundError:  # the segment was merged into another since, or is damaged: look it up again
                continue
            damaged = [
                place
                for place, row, checksum in zip(selected, rows, checksums, strict=True)
                if _checksum(row) != checksum
            ]
            if not damaged:
                return rows, positions
            logger.warning("%d embeddings in %s are damaged; computing them again", len(damaged), self.folder)
            self._remove(damaged)

    def merge(self, contents: Sequence[str]) -> None:
        """Merge the segments that have only these clips into one segment, in this order.

        Segments that also have other clips are unchanged. The caller must hold the lock of the store.
        """
        places = self._places()
        ids = list(dict.fromkeys(clip for clip in map(clip_id, contents) if clip in places))
        merging = set(ids)
        tables = {name: _table(self.folder, name) for name in {places[clip][0] for clip in ids}}
        tables = {name: table for name, table in tables.items() if {row.tobytes() for row in table["clip"]} <= merging}
        if len(tables) < 2:
            return
        values = {name: np.load(self._rows_file(name), mmap_mode="r", allow_pickle=False) for name in tables}
        parts = [places[clip] for clip in ids if places[clip][0] in tables]
        table = np.array([tables[name][row] for name, row in parts], TABLE)
        shape = (len(parts), *next(iter(values.values())).shape[1:])
        merged = self._write(table, (values[name][row] for name, row in parts), shape)
        for name in set(tables) - {merged}:
            self._table_file(name).unlink()
            self._rows_file(name).unlink()

    def clean(self) -> None:
        """Delete the incomplete files of killed processes. The caller must hold the lock of the store."""
        complete = set(self._names())
        for file in self.folder.glob("*"):
            name = file.name.partition(".")[0]
            if file.suffix == ".tmp" or (file.suffix == ".npy" and name not in complete):
                file.unlink(missing_ok=True)

    def _write(self, table: Array, rows: Iterable[Array], shape: tuple[int, ...]) -> str:
        name = hashlib.sha256(table.tobytes()).hexdigest()[:32]
        try:
            with replacing(self._rows_file(name)) as file:
                header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for part in rows:
                    file.write(part.tobytes())
            with replacing(self._table_file(name)) as file:
                np.save(file, table)
        except OSError as error:
            raise DataError(f"{error}; set cache_dir to a writable folder with free space") from error
        return name

    def _places(self) -> dict[bytes, tuple[str, int]]:
        """Segment and row of each clip."""
        places: dict[bytes, tuple[str, int]] = {}
        for name in self._names():
            try:
                clips = _table(self.folder, name)["clip"]
            except (OSError, ValueError, EOFError) as error:
                if self._table_file(name).exists():
                    logger.warning("%s is damaged (%s); computing it again", self._table_file(name), error)
                    self._table_file(name).unlink(missing_ok=True)
                continue
            raw = clips.tobytes()  # slicing bytes is much faster than converting each row
            for row in range(len(clips)):
                places[raw[32 * row : 32 * row + 32]] = (name, row)
        places.pop(REMOVED, None)
        return places

    def _remove(self, places: Iterable[tuple[str, int]]) -> None:
        """Mark rows as removed in the tables of their segments."""
        by_name: dict[str, list[int]] = {}
        for name, row in places:
            by_name.setdefault(name, []).append(row)
        for name, rows in by_name.items():
            table = _table(self.folder, name)
            table["clip"][rows] = np.void(REMOVED)
            with replacing(self._table_file(name)) as file:
                np.save(file, table)

    def _gather(self, places: Sequence[tuple[str, int]]) -> tuple[Array, Array]:
        """Embeddings and checksums of rows of segments, without copying if they are consecutive rows of one segment."""
        if not places:
            return np.zeros((0, 0, 0), self.dtype), np.zeros(0, np.uint32)
        names = np.array([name for name, _ in places])
        rows = np.array([row for _, row in places])
        segments = {str(name): self._open(str(name)) for name in np.unique(names)}
        if len(segments) == 1 and (np.diff(rows) == 1).all():
            values, table = next(iter(segments.values()))
            consecutive = slice(rows[0], rows[-1] + 1)
            return values[consecutive], table["checksum"][consecutive]
        shape = next(iter(segments.values()))[0].shape[1:]
        gathered, checksums = np.empty((len(rows), *shape), self.dtype), np.empty(len(rows), np.uint32)
        for name, (values, table) in segments.items():
            here = names == name
            gathered[here], checksums[here] = values[rows[here]], table["checksum"][rows[here]]
        return gathered, checksums

    def _open(self, name: str) -> tuple[Array, Array]:
        table = _table(self.folder, name)
        try:
            # Copy-on-write mode, because torch requires writable arrays; the file is never changed.
            values = np.load(self._rows_file(name), mmap_mode="c", allow_pickle=False)
            intact = len(values) == len(table) and values.dtype == self.dtype and values.ndim == 3
        except (OSError, ValueError, EOFError):  # missing or truncated
            intact = False
        if not intact:
            logger.warning("%s is damaged; computing it again", self._rows_file(name))
            self._table_file(name).unlink(missing_ok=True)
            raise FileNotFoundError(name)
        return values, table

    def _names(self) -> list[str]:
        return sorted(file.name.removesuffix(".clips.npy") for file in self.folder.glob("*.clips.npy"))

    def _rows_file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _table_file(self, name: str) -> Path:
        return self.folder / f"{name}.clips.npy"


def clip_id(content: str) -> bytes:
    """32 bytes that identify a clip's content."""
    return hashlib.sha256(content.encode()).digest()


def _table(folder: Path, name: str) -> Array:
    table: Array = np.load(folder / f"{name}.clips.npy", allow_pickle=False)
    if table.dtype != TABLE or table.ndim != 1:
        raise ValueError("not a table of clips")
    return table


def _checksum(row: Array) -> int:
    return zlib.crc32(np.ascontiguousarray(row).data)
