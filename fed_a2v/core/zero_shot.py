"""Generalised zero-shot retrieval: audio of unseen classes, of which no site has a clip.

A network that is trained to separate the recorded classes assigns every sound to one of them. A strongly regularised
bilinear form, solved in closed form, generalises better to unseen prompts (ESZSL, Romera-Paredes & Torr, 2015), and
prototypes suffice to compute it. As recorded classes get higher scores than unseen ones, a constant is subtracted from
their scores, chosen on recorded classes that are left out in turn (calibrated stacking, Chao et al., 2016). The server
step solves the adapter and chooses the constant.

Shapes: N rows of audio (S, Da), C recorded classes, K candidate classes, V the width of the class vectors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fed_a2v.core.adapters import Adapters, BilinearAdapter, ClassPrompts
from fed_a2v.core.losses import AdapterLoss, AdapterLossWeights
from fed_a2v.core.metrics import cosines
from fed_a2v.core.seeding import torch_generator
from fed_a2v.core.statistics import PrototypeBatch
from fed_a2v.core.training import AdamWSettings, train_steps

# Groups of recorded classes that are left out in turn to choose the calibration.
CALIBRATION_GROUPS = 4
# Norm of standardised rows, about that of a thousand columns with standard deviation 1.
ROW_LENGTH = 32.0

Scorer = Callable[[Tensor, Tensor], Tensor]
"""`scorer(audio (N, S, Da), vectors (K, V))` returns (N, K) scores; higher is nearer."""


@dataclass(frozen=True)
class BilinearMap:
    """Scores audio against any class vector by the cosine of `x @ weight` with it.

    Attributes:
        weight: (S x Da, V).
        mean: (S x Da,) mean of the clips.
        std: (S x Da,) standard deviation of the clips.
        centre: (V,) mean of the recorded classes' vectors, which is subtracted as text vectors are close to each other.
    """

    weight: Tensor
    mean: Tensor
    std: Tensor
    centre: Tensor

    @classmethod
    def fit(
        cls, rows: PrototypeBatch, vectors: Tensor, row_penalty: float = 30.0, class_penalty: float = 1.0
    ) -> BilinearMap:
        """Solve W = (X'X + g N I)^-1 X'Y T (T'T + l I)^-1.

        X are the standardised rows, Y is +1 for the class of a row and -1 for the others, T are the centred unit
        vectors of the classes. Prototypes were measured to be as good as single clips, and one per class as good as
        eight.

        Args:
            rows: N prototypes of C classes.
            vectors: (C, V), in the order of `rows.names`.
            row_penalty: g; the optimum is broad, between 10 and 100.
            class_penalty: l.

        Raises:
            ValueError: fewer than two classes, or not one vector per class.
        """
        if len(rows.names) < 2 or len(vectors) != len(rows.names):
            raise ValueError(
                f"{len(vectors)} class vectors for {len(rows.names)} classes: need at least two classes, with one each"
            )
        x = rows.embeddings.flatten(1).double()
        weight = (rows.counts / rows.counts.sum()).double().unsqueeze(1)
        mean = (weight * x).sum(dim=0)
        # The variance of the clips, by the law of total variance.
        variance = (weight * ((x - mean).square() + rows.variances.flatten(1).double())).sum(dim=0)
        std = variance.sqrt()
        std = torch.maximum(std, 0.1 * std.square().mean().sqrt().clamp(min=1e-12))
        centre = vectors.mean(dim=0)
        targets = F.normalize(vectors - centre, dim=1).double()
        x = ROW_LENGTH * F.normalize((x - mean) / std, dim=1)
        signs = 2.0 * F.one_hot(rows.labels, len(vectors)).double() - 1
        penalty = row_penalty * len(x)
        # (X'X + p I)^-1 X' = X' (XX' + p I)^-1, and there are usually fewer rows than columns.
        inner = torch.linalg.solve(
            x @ x.T + penalty * torch.eye(len(x), dtype=x.dtype, device=x.device), signs @ targets
        )
        outer = targets.T @ targets + class_penalty * torch.eye(targets.shape[1], dtype=x.dtype, device=x.device)
        solved = torch.linalg.solve(outer, (x.T @ inner).T).T
        return cls(solved.float(), mean.float(), std.float(), centre)

    def __call__(self, audio: Tensor, vectors: Tensor) -> Tensor:
        """(N, K) cosines of (N, S, Da) audio with (K, V) class vectors."""
        x = ROW_LENGTH * F.normalize((audio.flatten(1) - self.mean) / self.std, dim=1)
        return F.normalize(x @ self.weight, dim=1) @ F.normalize(vectors - self.centre, dim=1).T


def solve_adapter(adapters: Adapters, rows: PrototypeBatch, prompts: Tensor) -> None:
    """Fit a bilinear map to the prototypes and load it into closed-form adapters.

    Args:
        adapters: adapters with `closed_form`; changed in place.
        rows: N prototypes of C classes.
        prompts: (C, T, D) CLIP prompts, in the order of `rows.names`.
    """
    assert isinstance(adapters.clip, BilinearAdapter)
    audio = adapters.standardised(rows.embeddings).mean(dim=1, keepdim=True)
    variances = (rows.variances / adapters.audio_std.square()).mean(dim=1, keepdim=True)
    standardised = PrototypeBatch(audio, rows.labels, rows.counts, variances, rows.names)
    solution = BilinearMap.fit(standardised, prompts.flatten(1))
    adapters.clip.load_solution(solution.weight, solution.mean, solution.std)


@dataclass(frozen=True)
class UnseenAccuracy:
    """Accuracy of a scorer on recorded and unseen classes; NaN without clips.

    Attributes:
        among_unseen: accuracy on clips of unseen classes, with only these as candidates.
        unseen: accuracy on the same clips, with all classes as candidates.
        seen: accuracy on clips of recorded classes, with all classes as candidates.
    """

    among_unseen: float
    unseen: float
    seen: float

    @property
    def harmonic(self) -> float:
        """Harmonic mean of `unseen` and `seen` (Xian et al., 2019), which is 0 if either is."""
        return 2 * self.unseen * self.seen / (self.unseen + self.seen) if self.unseen + self.seen else 0.0


def unseen_accuracy(scores: Tensor, labels: Tensor, unseen: Tensor, calibration: float = 0.0) -> UnseenAccuracy:
    """Compute the accuracy on recorded and unseen classes.

    Args:
        scores: (N, K) scores of all candidates.
        labels: (N,) labels of the clips, below K.
        unseen: (K,) mask of the unseen classes.
        calibration: constant to subtract from the scores of recorded classes.
    """
    of_unseen = unseen[labels]
    among, right = hits(scores, labels, unseen, calibration)
    return UnseenAccuracy(_mean(among[of_unseen]), _mean(right[of_unseen]), _mean(right[~of_unseen]))


def hits(scores: Tensor, labels: Tensor, unseen: Tensor, calibration: float = 0.0) -> tuple[Tensor, Tensor]:
    """Two (N,) masks: clips whose class has the best score of its own kind, and of all classes.

    The kinds are recorded and unseen; for the second mask, `calibration` is subtracted from the scores of recorded
    classes. Arguments as in `unseen_accuracy`.
    """
    right = (scores - calibration * (~unseen).to(scores)).argmax(dim=1) == labels
    other_kind = unseen.unsqueeze(0) != unseen[labels].unsqueeze(1)
    among = scores.masked_fill(other_kind, -torch.inf).argmax(dim=1) == labels
    return among, right


def calibrate_adapters(
    adapters: Adapters,
    initial: Mapping[str, Tensor],
    rows: PrototypeBatch,
    prompts: Tensor,
    loss_weights: AdapterLossWeights,
    steps: int,
    optimiser: AdamWSettings,
    seed: int,
) -> float:
    """Choose the calibration of adapters, see `choose_calibration`.

    For each group that is left out, CLIP adapters are trained from the initial weights on prototypes of the others.

    Args:
        adapters: the global adapters; not changed.
        initial: their state before training.
        rows: prototypes of C recorded classes.
        prompts: (C, T, D) CLIP prompts, in the order of `rows.names`.
        loss_weights: weights of the adapters' loss.
        steps: optimiser steps.
        optimiser: settings of AdamW.
        seed: seed of the groups and of the training.
    """
    shape = prompts.shape[1:]

    def fit(known: PrototypeBatch, vectors: Tensor) -> Scorer:
        candidate = copy.deepcopy(adapters)
        candidate.load_state_dict(initial)
        candidate.set_standardisation(adapters.audio_mean, adapters.audio_std)
        candidate.t5 = None
        of_known = ClassPrompts(known.names, vectors.unflatten(1, shape), None)
        if candidate.closed_form:
            solve_adapter(candidate, known, of_known.clip)
        else:
            random = torch_generator(seed, "calibration", *known.names)
            loss = AdapterLoss(of_known, loss_weights)
            train_steps(candidate, known.embeddings, known.labels, loss, steps, optimiser, random)

        @torch.no_grad()
        def scorer(audio: Tensor, candidates: Tensor) -> Tensor:
            return cosines(candidate(audio).clip, candidates.unflatten(1, shape))

        return scorer

    return choose_calibration(fit, rows, prompts.flatten(1), CALIBRATION_GROUPS, seed)


def choose_calibration(
    fit: Callable[[PrototypeBatch, Tensor], Scorer],
    rows: PrototypeBatch,
    vectors: Tensor,
    groups: int = 4,
    seed: int = 0,
) -> float:
    """Choose the calibration by cross-validation over recorded classes.

    The classes are divided into groups at random, and each group in turn is left out of `fit` as if it was unseen. The
    result maximises the mean over the groups of the harmonic mean on rows of left-out classes and held-out rows of the
    others. Unless every class has three rows, no rows are held out and the test is on all of them.

    Args:
        fit: returns a scorer for rows and the vectors of their `names`.
        rows: prototypes of C recorded classes.
        vectors: (C, V).
        groups: number of groups, at least 2.
        seed: seed of the division into groups.

    Raises:
        ValueError: fewer than two classes per group.
    """
    classes = len(rows.names)
    if groups < 2 or classes < 2 * groups:
        raise ValueError(f"{classes} classes in {groups} groups: need at least 2 groups with 2 classes each")
    order = torch.randperm(classes, generator=torch_generator(seed, "calibration"))
    trained_on, held_out = rows.split(0.25)
    tested = held_out if len(held_out.labels.unique()) == classes else rows
    results = []
    for group in order.chunk(groups):
        absent = torch.zeros(classes, dtype=torch.bool)
        absent[group] = True
        absent = absent.to(rows.labels.device)
        scorer = fit(without(trained_on, absent), vectors[~absent])
        results.append((scorer(tested.embeddings, vectors), absent))
    # No constant larger than the range of the scores can make a difference.
    spread = max(float(scores.max() - scores.min()) for scores, _ in results)
    candidates = torch.linspace(0, spread, 101).tolist()

    def total_harmonic(calibration: float) -> float:
        return sum(unseen_accuracy(scores, tested.labels, absent, calibration).harmonic for scores, absent in results)

    best: float = max(candidates, key=total_harmonic)
    return best


def without(rows: PrototypeBatch, absent: Tensor) -> PrototypeBatch:
    """The rows of the classes that are not in the (C,) mask `absent`, with new labels."""
    new_label = (~absent).cumsum(dim=0) - 1
    kept = rows.index_select(~absent[rows.labels])
    names = tuple(name for name, gone in zip(rows.names, absent.tolist(), strict=True) if not gone)
    return PrototypeBatch(kept.embeddings, new_label[kept.labels], kept.counts, kept.variances, names)


def _mean(hits: Tensor) -> float:
    return float(hits.float().mean())
