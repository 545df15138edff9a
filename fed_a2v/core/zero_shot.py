"""Classes that nobody has recorded: from audio to the prompts of classes without a single clip.

A network that is trained until it tells the recorded classes apart puts every sound on one of them. A bilinear form
with heavy regularisation, in closed form, generalises better to prompts it has not seen (ESZSL, Romera-Paredes & Torr,
2015). It needs no more than sums that prototypes give. And as scores of recorded classes run higher than those of
others, a constant is taken off them, chosen on recorded classes that play unrecorded ones (calibrated stacking, Chao
et al., 2016).

Shapes: N rows of audio (S, Da), C recorded classes, K candidate classes, V the width of the class vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fed_a2v.core.adapters import Adapters, BilinearAdapter
from fed_a2v.core.prototype_bank import PrototypeBatch
from fed_a2v.core.seeding import torch_generator

# Standardised rows are brought to this length, as if each of some thousand columns had deviation 1.
ROW_LENGTH = 32.0

Scorer = Callable[[Tensor, Tensor], Tensor]
"""`scorer(audio (N, S, Da), vectors (K, V))` gives (N, K) scores; higher is nearer."""


@dataclass(frozen=True)
class BilinearMap:
    """Scores a sound against any class vector by the cosine of `x @ weight` with it.

    Attributes:
        weight: (S x Da, V).
        mean: (S x Da,) of the clips.
        std: (S x Da,) of the clips.
        centre: (V,) mean of the recorded classes' vectors: text vectors crowd together.
    """

    weight: Tensor
    mean: Tensor
    std: Tensor
    centre: Tensor

    @classmethod
    def fit(
        cls, rows: PrototypeBatch, vectors: Tensor, row_penalty: float = 30.0, class_penalty: float = 1.0
    ) -> BilinearMap:
        """The closed form: W = (X'X + g N I)^-1 X'Y T (T'T + l I)^-1.

        X are the standardised rows, Y is +1 where a row is of a class and -1 elsewhere, T the centred unit vectors of
        the classes. Prototypes do as well as single clips, one mean a class as well as eight.

        Args:
            rows: N prototypes of C classes.
            vectors: (C, V), in the order of `rows.names`.
            row_penalty: g; broad optimum between 10 and 100.
            class_penalty: l.

        Raises:
            ValueError: fewer than two classes, or vectors that do not fit.
        """
        if len(rows.names) < 2 or len(vectors) != len(rows.names):
            raise ValueError(f"{len(vectors)} class vectors for {len(rows.names)} classes: at least two, one for each")
        x = rows.embeddings.flatten(1).double()
        weight = (rows.counts / rows.counts.sum()).double().unsqueeze(1)
        mean = (weight * x).sum(dim=0)
        # By the law of total variance, that of the clips.
        variance = (weight * ((x - mean).square() + rows.variances.flatten(1).double())).sum(dim=0)
        std = variance.sqrt()
        std = torch.maximum(std, 0.1 * std.square().mean().sqrt().clamp(min=1e-12))
        centre = vectors.mean(dim=0)
        targets = F.normalize(vectors - centre, dim=1).double()
        x = ROW_LENGTH * F.normalize((x - mean) / std, dim=1)
        signs = 2.0 * F.one_hot(rows.labels, len(vectors)).double() - 1
        penalty = row_penalty * len(x)
        # The smaller of the two equal forms: (X'X + p I)^-1 X' = X' (XX' + p I)^-1.
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
    """Give closed-form `adapters` the bilinear map of the classes' prototypes.

    Args:
        adapters: with `closed_form`; changed in place.
        rows: N prototypes of C classes.
        prompts: (C, T, D) CLIP prompts, in the order of `rows.names`.
    """
    assert isinstance(adapters.clip, BilinearAdapter)
    audio = adapters.standardised(rows.embeddings).mean(dim=1, keepdim=True)
    variances = (rows.variances / adapters.audio_std.square()).mean(dim=1, keepdim=True)
    standardised = PrototypeBatch(audio, rows.labels, rows.counts, variances, rows.names)
    found = BilinearMap.fit(standardised, prompts.flatten(1))
    adapters.clip.take(found.weight, found.mean, found.std)


@dataclass(frozen=True)
class UnseenAccuracy:
    """What a scorer makes of recorded and unrecorded classes; nan where there are no clips.

    Attributes:
        among_unseen: of clips of unrecorded classes, with only these as candidates.
        unseen: of the same clips, with all classes as candidates.
        seen: of clips of recorded classes, with all classes as candidates.
    """

    among_unseen: float
    unseen: float
    seen: float

    @property
    def harmonic(self) -> float:
        """Harmonic mean of `unseen` and `seen` (Xian et al., 2019): 0 unless both are served."""
        return 2 * self.unseen * self.seen / (self.unseen + self.seen) if self.unseen + self.seen else 0.0


def unseen_accuracy(scores: Tensor, labels: Tensor, unseen: Tensor, calibration: float = 0.0) -> UnseenAccuracy:
    """Accuracy with and without recordings.

    Args:
        scores: (N, K) against all candidates.
        labels: (N,) of the clips, below K.
        unseen: (K,) mask of the unrecorded classes.
        calibration: taken off the scores of recorded classes.
    """
    of_unseen = unseen[labels]
    among, right = hits(scores, labels, unseen, calibration)
    return UnseenAccuracy(_mean(among[of_unseen]), _mean(right[of_unseen]), _mean(right[~of_unseen]))


def hits(scores: Tensor, labels: Tensor, unseen: Tensor, calibration: float = 0.0) -> tuple[Tensor, Tensor]:
    """Two (N,) masks: clips whose class is the best of its own kind, and clips whose class is the best of all.

    The kinds are recorded and unrecorded; for the second, `calibration` is taken off the scores of recorded classes.
    Arguments as in `unseen_accuracy`.
    """
    right = (scores - calibration * (~unseen).to(scores)).argmax(dim=1) == labels
    other_kind = unseen.unsqueeze(0) != unseen[labels].unsqueeze(1)
    among = scores.masked_fill(other_kind, -torch.inf).argmax(dim=1) == labels
    return among, right


def choose_calibration(
    fit: Callable[[PrototypeBatch, Tensor], Scorer],
    rows: PrototypeBatch,
    vectors: Tensor,
    groups: int = 4,
    seed: int = 0,
) -> float:
    """The calibration that serves recorded classes best that play unrecorded ones.

    The classes are dealt into groups; each in turn is left out of `fit`. What the scorer makes of the left-out classes'
    rows, and of rows of the others that were held out too, gives the harmonic mean for every calibration; the best is
    taken, in the mean over the groups. Every class needs three rows for that, else training rows stand in.

    Args:
        fit: makes a scorer of rows and the vectors of their `names`.
        rows: prototypes of C recorded classes.
        vectors: (C, V).
        groups: at least 2.
        seed: of the dealing.

    Raises:
        ValueError: fewer than two classes a group.
    """
    classes = len(rows.names)
    if groups < 2 or classes < 2 * groups:
        raise ValueError(f"{classes} classes in {groups} groups: at least 2 groups of 2 are needed")
    order = torch.randperm(classes, generator=torch_generator(seed, "calibration"))
    trained_on, held_out = rows.split(0.25)
    tested = held_out if len(held_out.labels.unique()) == classes else rows
    outcomes = []
    for group in order.chunk(groups):
        absent = torch.zeros(classes, dtype=torch.bool)
        absent[group] = True
        absent = absent.to(rows.labels.device)
        scorer = fit(without(trained_on, absent), vectors[~absent])
        outcomes.append((scorer(tested.embeddings, vectors), absent))
    spread = max(float(scores.max() - scores.min()) for scores, _ in outcomes)
    candidates = torch.linspace(0, spread, 101).tolist()

    def served(calibration: float) -> float:
        return sum(unseen_accuracy(scores, tested.labels, absent, calibration).harmonic for scores, absent in outcomes)

    best: float = max(candidates, key=served)
    return best


def without(rows: PrototypeBatch, absent: Tensor) -> PrototypeBatch:
    """The rows of the classes that are not `absent`, (C,), numbered anew."""
    place = (~absent).cumsum(dim=0) - 1
    kept = rows.take(~absent[rows.labels])
    names = tuple(name for name, gone in zip(rows.names, absent.tolist(), strict=True) if not gone)
    return PrototypeBatch(kept.embeddings, place[kept.labels], kept.counts, kept.variances, names)


def _mean(hits: Tensor) -> float:
    return float(hits.float().mean())
