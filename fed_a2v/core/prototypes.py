"""What a site says about its clips: averages of groups of similar clips, never single clips unless asked to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fed_a2v.core.prototype_bank import AudioPrototypes, ClassStatistics, PooledMoments

# Of the clips within a group, as a site tells it: that of each group, one for a class, or none.
Variance = Literal["groups", "class", "none"]


def summarise_class(
    name: str,
    embeddings: Tensor,
    kind: Literal["prototypes", "mean", "samples"],
    prototypes: int = 8,
    min_clips: int = 3,
    variance: Variance = "groups",
) -> ClassStatistics | None:
    """What a site says about one class.

    Args:
        name: of the class.
        embeddings: (N, S, Da) of the site's training clips of the class.
        kind: `prototypes`: means of groups of similar clips; `mean`: one mean; `samples`: every clip itself.
        prototypes: groups at most.
        min_clips: clips behind each mean at least; with too few for two groups there is one mean.
        variance: within groups: `groups` gives each its own, `class` all groups of the class the mean over its clips,
            `none` zeros. Three clips' mean and variance tell whether a given clip is one of them.

    Returns:
        The prompts without adapter outputs, or None where there are fewer than `min_clips` clips.
    """
    groups = clip_groups(embeddings, kind, prototypes, min_clips)
    return share_groups(name, embeddings, groups, variance) if groups else None


def clip_groups(
    embeddings: Tensor, kind: Literal["prototypes", "mean", "samples"], prototypes: int = 8, min_clips: int = 3
) -> list[Tensor]:
    """The rows of `embeddings` that are averaged together, a group a mean; none where there are too few.

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
    """What a site says about one class whose clips are in these `groups`, one at least; see `summarise_class`."""
    means = torch.stack([embeddings[group].mean(dim=0) for group in groups])
    spread = torch.stack([embeddings[group].var(dim=0, correction=0) for group in groups])
    counts = torch.tensor([len(group) for group in groups])
    if variance == "class":
        spread = (counts[:, None, None] * spread).sum(dim=0, keepdim=True).div(counts.sum()).expand_as(spread)
    audio = AudioPrototypes(means, counts, torch.zeros_like(spread) if variance == "none" else spread.contiguous())
    return ClassStatistics(name, len(embeddings), audio)


def pooled_moments(embeddings: Tensor, min_clips: int = 3) -> PooledMoments | None:
    """What a site says that may speak of none of its classes, so that the embeddings can be standardised.

    Beside the averages of a class it must not be sent: the difference of the two would be an average of what few
    clips are left.

    Args:
        embeddings: (N, S, Da) of all training clips of the site.
        min_clips: clips behind an average at least.

    Returns:
        Their moments, or None where there are fewer than `min_clips` clips.
    """
    if len(embeddings) < min_clips:
        return None
    variance = embeddings.double().var(dim=0, correction=0).mean()
    return PooledMoments(embeddings.mean(dim=0), float(variance), len(embeddings))


def similar_groups(rows: Tensor, number: int) -> list[Tensor]:
    """Divide N rows of (N, D) into `number` groups of equal size (to within one), similar rows together.

    The rows are halved along their direction of largest variance, again and again. Unlike k-means this never
    makes a group of one, and it needs no random start.
    """

    def divide(index: Tensor, parts: int) -> list[Tensor]:
        if parts == 1:
            return [index]
        left = parts // 2
        centred = rows[index].double()
        centred = centred - centred.mean(dim=0)
        # The first right singular vector's scores are the first left one's: no need for the (D, D) matrix.
        scores = torch.linalg.eigh(centred @ centred.T).eigenvectors[:, -1]
        # An eigenvector's sign is arbitrary: fix it, so that every machine makes the same groups.
        scores = scores * torch.sign(scores[scores.abs().argmax()])
        order = index[scores.argsort(stable=True)]
        cut = round(len(order) * left / parts)
        return divide(order[:cut], left) + divide(order[cut:], parts - left)

    return divide(torch.arange(len(rows)), number)


def fingerprint(prompts: list[ClassStatistics]) -> str:
    """Hash of the prototypes, so that a site need send them only when its data has changed."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(repr((prompt.name, prompt.count)).encode())
        if prompt.audio is not None:
            for tensor in (prompt.audio.means, prompt.audio.counts, prompt.audio.variances):
                digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
