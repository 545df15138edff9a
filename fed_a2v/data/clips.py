"""Clips, their index and their embeddings: the types of the data package. Labels are positions in `classes`.

`fed_a2v.data.selection` and `fed_a2v.data.index` build the index from lists of clips without decoding any audio;
`fed_a2v.data.site` embeds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Record(NamedTuple):
    """A clip in the list of its data set.

    Attributes:
        key: unique key in the data set.
        category: the class's name in the data set.
        fold: number from 1; official, or assigned if the data set has no folds.
        source: the video or recording that the clip was cut from, "youtube:ID" or "freesound:ID" if it has such an
            ID; "" if unknown.
    """

    key: str
    category: str
    fold: int
    source: str = ""


class ClipSource(Protocol):
    """Interface of a data set of audio clips."""

    def watched(self) -> list[Path]:
        """The files and folders whose sizes or times change whenever `records` does."""
        ...

    def records(self) -> list[Record]:
        """All clips in the data set's order, without decoding any.

        Raises:
            DataError: the data set cannot be read.
        """
        ...

    def mtime_key(self, key: str) -> str | None:
        """A string that changes whenever `content` does, and is quicker to compute; None if there is none."""
        ...

    def content(self, key: str) -> str:
        """A string that identifies the clip's audio: it changes whenever `waveform` does.

        Raises:
            BadClipError: the clip cannot be read.
        """
        ...

    def waveform(self, key: str, sample_rate: int, seconds: float) -> FloatArray:
        """The clip as (round(seconds * sample_rate),) float32.

        Raises:
            BadClipError: the clip cannot be read.
        """
        ...


@dataclass(frozen=True)
class ClipIndex:
    """The N clips that the settings' classes and folds select.

    Attributes:
        records: N records of the clips.
        rows: (N,) int64, the clips' positions in the list of their data set.
        labels: (N,) int64, positions in `classes`.
        splits: N of "train", "validation", "test".
        classes: the class names.
        sets: (N,) int64, position of each clip's data set in the mix.
    """

    records: tuple[Record, ...]
    rows: IntArray
    labels: IntArray
    splits: tuple[Split, ...]
    classes: tuple[str, ...]
    sets: IntArray

    def __len__(self) -> int:
        return len(self.records)

    def index_select(self, positions: Iterable[int]) -> ClipIndex:
        """The index of the clips at these positions."""
        chosen = np.fromiter(positions, dtype=np.int64)
        return ClipIndex(
            records=tuple(self.records[position] for position in chosen),
            rows=self.rows[chosen],
            labels=self.labels[chosen],
            splits=tuple(self.splits[position] for position in chosen),
            classes=self.classes,
            sets=self.sets[chosen],
        )


@dataclass(frozen=True, eq=False)  # compared and hashed by identity, because == of tensors has no single truth value
class EmbeddedClips:
    """The embeddings of N clips, S tokens of width Da each.

    Attributes:
        embeddings: (N, S, Da) float32.
        labels: (N,) int64, positions in `classes`.
        splits: N of "train", "validation", "test".
        classes: the class names.
        keys: N unique keys.
        square_root: whether the embeddings are square roots of the encoder's output.
        skipped: number of clips left out because they could not be read.
        unseen: the classes that no site trains on; they have test clips only.
        sets: (N,) int64, position of each clip's data set in the mix; None: there is one data set.
        contents: N hashes of the embedded content: of the file's bytes, or of the embedding; empty: unknown.
    """

    embeddings: Tensor
    labels: Tensor
    splits: tuple[Split, ...]
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    square_root: bool = False
    skipped: int = 0
    unseen: tuple[str, ...] = ()
    sets: IntArray | None = None
    contents: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, split: Split) -> IntArray:
        """Positions of the clips of one split."""
        return self._rows[split]

    @cached_property
    def _rows(self) -> dict[Split, IntArray]:
        splits = np.array(self.splits)
        return {split: np.flatnonzero(splits == split).astype(np.int64) for split in SPLITS}


def square_roots(embeddings: Tensor) -> Tensor:
    """Square roots of the absolute values with the original signs.

    They are never NaN, even if a clip has negative values that the training clips do not have.
    """
    return embeddings.abs().sqrt_().copysign_(embeddings)
