"""The sites' statistics of each class, and prototypes as rows for training.

Sites make them with `prototypes`, the protocol carries them, the server stores them in the prototype bank and trains
on a `PrototypeBatch`.

Shapes: S audio tokens of width Da; K prototypes; Tc x Dc CLIP and T x Dt T5 prompt tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AudioPrototypes:
    """Averaged audio embeddings of one class at one site.

    Attributes:
        means: (K, S, Da), each the mean over a group of clips.
        counts: (K,) int64, clips of each group.
        variances: (K, S, Da), population variance within each group; zeros if a site does not send it.
    """

    means: Tensor
    counts: Tensor
    variances: Tensor


@dataclass(frozen=True)
class ClassStatistics:
    """One site's statistics of one class.

    Attributes:
        name: name of the class.
        count: the site's training clips of the class.
        audio: averaged audio embeddings, or None if the server stores them already or needs none.
        clip: (Tc, Dc) mean CLIP adapter output over the class's clips, or None if not requested.
        t5: (T, Dt) mean T5 adapter output, or None.
    """

    name: str
    count: int
    audio: AudioPrototypes | None = None
    clip: Tensor | None = None
    t5: Tensor | None = None


@dataclass(frozen=True)
class PooledMoments:
    """Two averages over all training clips of a site, sent by a site that shares no class statistics.

    Attributes:
        mean: (S, Da), over the clips.
        variance: population variance over the clips, averaged over all S * Da entries.
        count: number of the clips.
    """

    mean: Tensor
    variance: float
    count: int

    def as_statistics(self, name: str) -> ClassStatistics:
        """The moments as the single prototype of a class called `name`."""
        mean = self.mean[None]
        audio = AudioPrototypes(
            mean, torch.tensor([self.count]), torch.full_like(mean, self.variance, dtype=torch.float32)
        )
        return ClassStatistics(name, self.count, audio)


@dataclass(frozen=True)
class PrototypeBatch:
    """The bank's prototypes as rows, in a fixed order, for training over all classes at once.

    Attributes:
        embeddings: (N, S, Da).
        labels: (N,) int64, index into `names`.
        counts: (N,) float32, clips of each row.
        variances: (N, S, Da), variance within each row's group.
        names: the C classes that have rows, sorted.
    """

    embeddings: Tensor
    labels: Tensor
    counts: Tensor
    variances: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def index_select(self, index: Tensor) -> PrototypeBatch:
        """The rows at `index` (integers or a mask); `names` and the numbering of labels do not change."""
        return PrototypeBatch(
            self.embeddings[index], self.labels[index], self.counts[index], self.variances[index], self.names
        )

    def to(self, device: torch.device) -> PrototypeBatch:
        """The same rows on another device."""
        return PrototypeBatch(
            self.embeddings.to(device),
            self.labels.to(device),
            self.counts.to(device),
            self.variances.to(device),
            self.names,
        )

    def joined(self, other: PrototypeBatch) -> PrototypeBatch:
        """The rows of both, with new labels and ordered by class, on the device of `self`."""
        names = tuple(sorted({*self.names, *other.names}))
        label_of = {name: label for label, name in enumerate(names)}
        labels = torch.cat(
            [torch.tensor([label_of[name] for name in each.names])[each.labels.cpu()] for each in (self, other)]
        )
        order = labels.argsort(stable=True)
        embeddings, counts, variances = (
            torch.cat([one, two.to(one)])[order.to(one.device)]
            for one, two in (
                (self.embeddings, other.embeddings),
                (self.counts, other.counts),
                (self.variances, other.variances),
            )
        )
        return PrototypeBatch(embeddings, labels[order].to(embeddings.device), counts, variances, names)

    def split(self, share: float) -> tuple[PrototypeBatch, PrototypeBatch]:
        """Split off `held_out_number` of each class's rows, evenly spaced, as (kept, held out)."""
        held = torch.zeros(len(self), dtype=torch.bool)
        for label in range(len(self.names)):
            rows = torch.nonzero(self.labels == label).flatten()
            held[rows[spaced(len(rows), held_out_number(len(rows), share))]] = True
        return self.index_select(~held), self.index_select(held)


def held_out_number(rows: int, share: float) -> int:
    """Number of a class's rows to hold out: `share` of them, at least one of three or more, never all.

    Of two rows none needs to be held out, as both are needed to estimate the variance. 0 for a share of 0.
    """
    if share == 0:
        return 0
    return min(max(round(share * rows), 1 if rows >= 3 else 0), max(0, rows - 1))


def spaced(rows: int, number: int) -> list[int]:
    """`number` evenly spaced indices below `rows`; a single one is the middle.

    Sites send similar groups next to each other, so the first and the last are the least typical.
    """
    return [(2 * place + 1) * rows // (2 * number) for place in range(number)]
