"""A map of the embedding space: real prototypes and synthetic embeddings on their principal axes.

The callback `embedding_map` computes it, and the report plots it; `fed-a2v demo` adds the embedding of a new sound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fed_a2v.core.prototype_bank import PrototypeBank
from fed_a2v.core.seeding import torch_generator
from fed_a2v.core.server_step import ServerStep
from fed_a2v.core.sum_bank import SumBank

Points = NDArray[np.float64]
# Principal axes that are kept: two to plot, the others as input of UMAP.
AXES = 32
# Points of either kind (real, synthetic) at most: more do not make a plot clearer.
MOST_POINTS = 2000
# Synthetic embeddings of each class, unless that exceeds MOST_POINTS.
SAMPLES = 20


@dataclass(frozen=True)
class EmbeddingMap:
    """N points, real ones first.

    Attributes:
        coordinates: (N, P) float32 along the principal axes of the real points, P up to `AXES`.
        explained: (P,) float32, share of the real points' variance along each axis.
        labels: (N,) int64, index into `classes`.
        synthetic: (N,) bool, whether the point is a sample of the generator.
        counts: (N,) int64, clips of a real point; 0 for a synthetic one.
        sites: (N,) str, site of a real point; "" for a synthetic one.
        classes: (C,) str, sorted.
    """

    coordinates: NDArray[np.float32]
    explained: NDArray[np.float32]
    labels: NDArray[np.int64]
    synthetic: NDArray[np.bool_]
    counts: NDArray[np.int64]
    sites: NDArray[np.str_]
    classes: NDArray[np.str_]


@dataclass(frozen=True)
class MapSpace:
    """The embedding space of a map with N points, for embeddings that are not on it.

    Attributes:
        mean: (Da,) origin of the map.
        axes: (P, Da) its axes.
        points: (N, Da) embeddings of its points.
    """

    mean: Points
    axes: Points
    points: Points

    def coordinates(self, points: Points) -> NDArray[np.float32]:
        """(M, P) coordinates of (M, Da) points, tokens averaged."""
        return ((points - self.mean) @ self.axes.T).astype(np.float32)

    def similarities(self, point: Points) -> Points:
        """(N,) cosines of the map's points to a point (Da,), with the origin of the map subtracted from both."""
        one, others = point - self.mean, self.points - self.mean
        tiny = np.finfo(float).tiny
        cosines: Points = others @ one / np.maximum(np.linalg.norm(others, axis=1) * np.linalg.norm(one), tiny)
        return cosines


def embedding_map(step: ServerStep, round_number: int) -> EmbeddingMap | None:
    """Map the bank's prototypes and the generator's samples of each class; None without two finite points.

    The axes are those of the real points, so that the generator does not affect the view in which it is judged; those
    of the synthetic points if the bank keeps no prototypes. Several tokens are averaged.

    Args:
        step: the server step after a round. Neither its state nor its random numbers change.
        round_number: part of the seed of the samples.
    """
    found = map_in_space(step, round_number)
    return None if found is None else found[0]


def map_in_space(step: ServerStep, round_number: int) -> tuple[EmbeddingMap, MapSpace] | None:
    """As `embedding_map`, with the space in which the map lies."""
    width = step.adapters.audio_mean.shape[-1]
    sites, names, counts, real = _class_means(step.sums) if step.sums is not None else _prototypes(step.bank, width)
    classes = sorted({*names, *step.replayed})
    if not classes:
        return None
    synthetic = _samples(step, classes, round_number)
    samples = synthetic.shape[1]
    points = np.concatenate([real, synthetic.flatten(0, 1).numpy()])
    labels = [classes.index(name) for name in names] + [label for label in range(len(classes)) for _ in range(samples)]
    finite = np.isfinite(points).all(axis=1)
    points, base = points[finite], (real if len(real) else points)
    base = base[np.isfinite(base).all(axis=1)]
    if len(base) < 2:
        return None
    mean, axes, explained = _principal_axes(base)
    space = MapSpace(mean, axes, points)
    added = len(classes) * samples
    drawn = EmbeddingMap(
        coordinates=space.coordinates(points),
        explained=explained.astype(np.float32),
        labels=np.array(labels, dtype=np.int64)[finite],
        synthetic=(np.arange(len(labels)) >= len(names))[finite],
        counts=np.array(counts + [0] * added, dtype=np.int64)[finite],
        sites=np.array(sites + [""] * added, dtype=np.str_)[finite],
        classes=np.array(classes, dtype=np.str_),
    )
    return drawn, space


def _principal_axes(base: Points) -> tuple[Points, Points, Points]:
    """Mean (D,), up to `AXES` principal axes (P, D) and their shares of the variance (P,), of (N, D) points.

    Not scikit-learn's PCA, whose import takes longer than the last round of most runs. As there, the entry of an axis
    that is largest by magnitude is positive, so that a map is not mirrored at random.
    """
    mean = base.mean(axis=0)
    _, deviations, axes = np.linalg.svd(base - mean, full_matrices=False)
    axes *= np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1))
    variances = deviations**2
    return mean, axes[:AXES], variances[:AXES] / max(variances.sum(), np.finfo(float).tiny)


def _prototypes(bank: PrototypeBank, width: int) -> tuple[list[str], list[str], list[int], Points]:
    """Site, class, clips and (N, Da) embedding of the bank's prototypes, evenly thinned to `MOST_POINTS`."""
    entries = [
        (site, statistics.name, int(count), mean)
        for site, statistics in bank
        if statistics.audio is not None
        for mean, count in zip(statistics.audio.means, statistics.audio.counts, strict=True)
    ]
    step = max(1.0, len(entries) / MOST_POINTS)
    kept = [entries[int(index * step)] for index in range(min(len(entries), MOST_POINTS))]
    points = np.empty((len(kept), width))
    for row, (*_, mean) in enumerate(kept):
        points[row] = mean.double().mean(dim=0).cpu().numpy()
    return [entry[0] for entry in kept], [entry[1] for entry in kept], [entry[2] for entry in kept], points


def _class_means(sums: SumBank) -> tuple[list[str], list[str], list[int], Points]:
    """As `_prototypes`, of the classes' means in the public space over the clips of all sites."""
    means = sums.class_means()
    if means is None:
        return [], [], [], np.empty((0, sums.columns))
    counts = [round(count) for count in means.counts.tolist()]
    return ["all sites"] * len(means), list(means.names), counts, means.embeddings[:, 0].double().numpy()


@torch.no_grad()
def _samples(step: ServerStep, classes: list[str], round_number: int) -> Tensor:
    """(C, number, Da) float64 samples, with number 0 if there is no trained generator."""
    generator, width = step.generator, step.adapters.audio_mean.shape[-1]
    if generator is None or not step.trains_generator or not step.finetuned_rounds:
        return torch.empty(len(classes), 0, width, dtype=torch.float64)
    number = max(1, min(SAMPLES, MOST_POINTS // len(classes)))
    device = next(generator.parameters(), step.conditions).device
    random = torch_generator(step.settings.seed, "map", round_number)
    generator.move_to(step.conditions.device)
    samples = generator.sample_classes(step.conditions_of(classes), number, random)
    generator.move_to(device)  # back: it may wait on the CPU between rounds
    return samples.double().mean(dim=2).cpu()


def umap_layout(coordinates: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """(N, 2) of (N, P) principal coordinates by UMAP (McInnes et al. 2018); None if umap-learn is not installed.

    UMAP preserves neighbourhoods; distances between distant groups have no meaning.
    """
    try:
        from umap import UMAP
    except ImportError:
        return None
    if len(coordinates) < 4:
        return None
    neighbours = min(15, len(coordinates) - 1)
    layout: NDArray[np.float32] = UMAP(n_neighbors=neighbours, random_state=0).fit_transform(coordinates)
    return layout
