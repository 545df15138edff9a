"""The statistics that a site sends of its clips: averages of groups of similar clips (single clips by setting only)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fed_a2v.core.statistics import AudioPrototypes, ClassStatistics, PooledMoments

# The variance within groups that a site sends: of each group, one for a class, or none.
Variance = Literal["groups", "class", "none"]


def summarise_class(
    name: str,
    embeddings: Tensor,
    kind: Literal["prototypes", "mean", "samples"],
    prototypes: int = 8,
    min_clips: int = 3,
    variance: Variance = "groups",
) -> ClassStatistics | None:
    """Compute a site's statistics of one class.

    Args:
        name: name of the class.
        embeddings: (N, S, Da) of the site's training clips of the class.
        kind: `prototypes`: means of groups of similar clips; `mean`: one mean; `samples`: every single clip.
        prototypes: maximum number of groups.
        min_clips: minimum number of clips in a group; with too few for two groups there is one mean.
        variance: variance within groups: `groups`: of each group; `class`: its mean over the clips of the class, for
            all groups; `none`: zeros. For privacy: the mean and variance of three clips reveal whether a given clip is
            one of them.

    Returns:
        The statistics without adapter outputs, or None if there are fewer than `min_clips` clips.
    """
    groups = clip_groups(embeddings, kind, prototypes, min_clips)
    return share_groups(name, embeddings, groups, variance) if groups else None


def clip_groups(
    embeddings: Tensor, kind: Literal["prototypes", "mean", "samples"], prototypes: int = 8, min_clips: int = 3
) -> list[Tensor]:
    """Row indices of the groups that are averaged; no groups if there are too few clips.

    The arguments are those of `summarise_class`.
    """
    if kind == "samples":
        return list(torch.arange(len(embeddings)).split(1))
    if len(embeddings) < min_clips:
        return []
    number = 1 if kind == "mean" else max(1, min(prototypes, len(embeddings) // min_clips))
    return similar_groups(embeddings.flatten(1), number)


def share_groups(
    name: str, embeddings: Tensor, groups: Sequence[Tensor], variance: Variance = "groups"
) -> ClassStatistics:
    """Statistics of a class whose clips are in `groups`, at least one; see `summarise_class`."""
    means = torch.stack([embeddings[group].mean(dim=0) for group in groups])
    spread = torch.stack([embeddings[group].var(dim=0, correction=0) for group in groups])
    counts = torch.tensor([len(group) for group in groups])
    if variance == "class":
        spread = (counts[:, None, None] * spread).sum(dim=0, keepdim=True).div(counts.sum()).expand_as(spread)
    audio = AudioPrototypes(means, counts, torch.zeros_like(spread) if variance == "none" else spread.contiguous())
    return ClassStatistics(name, len(embeddings), audio)


def pooled_moments(embeddings: Tensor, min_clips: int = 3) -> PooledMoments | None:
    """Moments of all clips of a site that may not share class statistics, for standardising the embeddings.

    They must not be sent in addition to averages of classes: the difference would be an average of the few clips
    that are in no class average.

    Args:
        embeddings: (N, S, Da) of all training clips of the site.
        min_clips: minimum number of clips.

    Returns:
        Their moments, or None if there are fewer than `min_clips` clips.
    """
    if len(embeddings) < min_clips:
        return None
    variance = embeddings.double().var(dim=0, correction=0).mean()
    return PooledMoments(embeddings.mean(dim=0), float(variance), len(embeddings))


def similar_groups(rows: Tensor, number: int) -> list[Tensor]:
    """Divide (N, D) rows into `number` groups of similar rows, of equal size to within one; returns row indices.

    The rows are halved recursively along their direction of largest variance. Unlike k-means, this never makes a
    group of one and needs no random start.
    """

    def divide(index: Tensor, parts: int) -> list[Tensor]:
        if parts == 1:
            return [index]
        left = parts // 2
        centred = rows[index].double()
        centred = centred - centred.mean(dim=0)
        # Scores along the first principal axis, from the (n, n) Gram matrix in place of the larger (D, D) covariance.
        scores = torch.linalg.eigh(centred @ centred.T).eigenvectors[:, -1]
        # The sign of an eigenvector is arbitrary; fix it, so that every machine makes the same groups.
        scores = scores * torch.sign(scores[scores.abs().argmax()])
        order = index[scores.argsort(stable=True)]
        middle = round(len(order) * left / parts)
        return divide(order[:middle], left) + divide(order[middle:], parts - left)

    return divide(torch.arange(len(rows)), number)


def fingerprint(classes: list[ClassStatistics]) -> str:
    """Hash of the prototypes, so that a site sends them only when its data has changed."""
    digest = hashlib.sha256()
    for statistics in classes:
        digest.update(repr((statistics.name, statistics.count)).encode())
        if statistics.audio is not None:
            for tensor in (statistics.audio.means, statistics.audio.counts, statistics.audio.variances):
                digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
