"""Retrieval metrics: how often the class prompt nearest to an adapter output is the right one, and how near it is.

Sites compute them on their test clips; `fed-a2v compare` and the choice of a calibration use them, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Retrieval:
    """Rank of the right class prompt for each output.

    Attributes:
        ranks: (N,) int64, rank of the right prompt by cosine, 1 being the nearest. Ties count as worse and an
            output that is not finite ranks last, so a collapsed adapter never scores above chance.
        similarity: (N,) float32, cosine to the right prompt.
    """

    ranks: Tensor
    similarity: Tensor

    def hits(self, k: int = 1) -> Tensor:
        """(N,) bool: the right prompt is among the `k` nearest; always true with at most `k` classes."""
        return self.ranks <= k

    @property
    def accuracy(self) -> float:
        """Fraction of rows whose nearest prompt is the right one; NaN without rows."""
        return self.hits(1).float().mean().item()

    @property
    def accuracy_at_5(self) -> float:
        """Fraction of rows whose right prompt is among the five nearest; NaN without rows."""
        return self.hits(5).float().mean().item()

    @property
    def mean_similarity(self) -> float:
        """Mean cosine to the right prompt; NaN without rows."""
        return self.similarity.mean().item()


def retrieval(outputs: Tensor, labels: Tensor, prompts: Tensor) -> Retrieval:
    """Rank all class prompts by their cosine to each output, tokens flattened.

    Text vectors are close to each other: two CLIP prompts have a cosine of about 0.8, so the raw cosine to the right
    prompt means little. Therefore the mean over the class prompts is subtracted from both outputs and prompts, and an
    output that is the same for every class has a similarity near 0. A single class is not centred, as its prompt would
    become zero.

    Args:
        outputs: (N, Tc, D) adapter outputs.
        labels: (N,) integers, index into `prompts`.
        prompts: (C, Tc, D), every candidate class, not only those that occur in `labels`.

    Raises:
        ValueError: outputs and prompts differ in shape, or a label has no prompt.
    """
    return ranked(cosines(outputs, prompts), labels)


def ranked(scores: Tensor, labels: Tensor) -> Retrieval:
    """`retrieval` from the (N, C) `cosines` of outputs with all class prompts."""
    labels = labels.to(scores.device, torch.int64)
    if labels.shape != scores.shape[:1]:
        raise ValueError(f"{len(scores)} outputs need as many labels, got shape {tuple(labels.shape)}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < scores.shape[1]:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, but there are {scores.shape[1]} prompts"
        )
    right = scores.gather(1, labels[:, None])
    ranks = scores.shape[1] - (scores < right).sum(1)
    return Retrieval(ranks, right[:, 0])


def cosines(outputs: Tensor, prompts: Tensor) -> Tensor:
    """(N, C) centred cosines of (N, Tc, D) outputs with (C, Tc, D) class prompts, tokens flattened; see `retrieval`.

    Raises:
        ValueError: outputs and prompts differ in shape.
    """
    if outputs.shape[1:] != prompts.shape[1:]:
        raise ValueError(
            f"outputs have shape {tuple(outputs.shape)} and prompts {tuple(prompts.shape)}: tokens and width must "
            "agree; choose the adapter that was built for these prompts"
        )
    candidates = prompts.float().flatten(1)
    rows = outputs.to(prompts.device).float().flatten(1)
    if len(prompts) > 1:
        mean = candidates.mean(0)
        candidates, rows = candidates - mean, rows - mean
    return F.normalize(rows, dim=1) @ F.normalize(candidates, dim=1).T


class ClassScore(NamedTuple):
    """A class and its score: the centred cosine of its prompt to an output, between -1 and 1."""

    name: str
    score: float


def ranked_classes(outputs: Tensor, prompts: Tensor, names: Sequence[str], top: int = 5) -> list[list[ClassScore]]:
    """The nearest classes of each output, best first, by the cosines that accuracy is computed from.

    Args:
        outputs: (N, Tc, D) adapter outputs.
        prompts: (C, Tc, D) class prompts.
        names: (C,) names of the classes.
        top: number of classes for each output; all if there are fewer.
    """
    scores, order = cosines(outputs, prompts).sort(dim=1, descending=True, stable=True)
    return [
        [ClassScore(names[label], score) for label, score in zip(labels, row, strict=True)]
        for labels, row in zip(order[:, :top].tolist(), scores[:, :top].tolist(), strict=True)
    ]
