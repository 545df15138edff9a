"""Classes that no site has recorded, from class sums: a linear discriminant of recorded and unseen classes together.

The server step calls it for closed-form adapters with `share=statistics` and `dataset.unseen`. The score of a class is
the sum of three linear maps, each divided by its spread on the recorded classes' means:

* the discriminant of the Gaussian model, with means of unseen classes that the label prior predicts;
* a bilinear form of rows and class vectors (ESZSL, Romera-Paredes & Torr 2015), which the model's moments solve;
* the label prior's own scores.

The sum has the scale of the first. Without a prior only the bilinear form is left. As recorded classes get higher
scores, a constant is subtracted from them, see `choose_calibration`.

Shapes: K recorded classes; M candidates, recorded and unseen; R columns of the public space; V width of class vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fed_a2v.core.class_sums import SharedGaussian
from fed_a2v.core.label_prior import directions
from fed_a2v.core.seeding import torch_generator
from fed_a2v.core.statistics import PrototypeBatch
from fed_a2v.core.zero_shot import CALIBRATION_GROUPS, Scorer, choose_calibration

# Penalties of the bilinear form, for rows of length 1: those of `BilinearMap.fit`.
ROW_PENALTY, CLASS_PENALTY = 30.0 / 32.0**2, 1.0
# Rows of a class, drawn from the model, on which the calibration is chosen.
CALIBRATION_ROWS = 24


@dataclass(frozen=True)
class LinearScores:
    """Log posteriors of classes, up to a constant for each row: `rows @ weight.T + bias`.

    Attributes:
        labels: (M,) classes.
        weight: (M, R).
        bias: (M,).
    """

    labels: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """(N, M) scores of (N, R) rows."""
        return rows @ self.weight.T + self.bias

    def spread(self, rows: Tensor) -> float:
        """Root mean square of the scores' deviation over the classes of each row."""
        return float(self(rows).var(dim=1, correction=0).mean().sqrt().clamp(min=1e-12))

    def added(self, other: LinearScores, factor: float) -> LinearScores:
        """These scores plus a multiple of others of the same classes."""
        return replace(self, weight=self.weight + factor * other.weight, bias=self.bias + factor * other.bias)


def unseen_discriminant(
    model: SharedGaussian, unseen: Tensor, vectors: Tensor, prior: Tensor | None = None
) -> LinearScores:
    """Scores of the model's classes, and after them of the unseen ones.

    Args:
        model: of the recorded classes, at least two.
        unseen: (U,) other classes.
        vectors: (C, V) vectors of all classes.
        prior: (C, R) weights of the classes in a label head; None: no prior.
    """
    labels = torch.cat([model.labels, unseen])
    rows = F.normalize(model.means, dim=1)
    recorded = LinearScores(model.labels, *model.discriminant)
    scale = recorded.spread(rows)
    bilinear = _bilinear(model, labels, vectors)
    if prior is None:
        nothing = LinearScores(labels, torch.zeros_like(bilinear.weight), torch.zeros_like(bilinear.bias))
        return nothing.added(bilinear, scale / bilinear.spread(rows))
    toward = directions(prior.to(model.means), model.labels)
    means = torch.cat([model.means, model.means.mean(dim=0) + model.strength * toward[unseen]])
    gaussian = LinearScores(labels, *replace(model, labels=labels, means=means).discriminant)
    own = LinearScores(labels, toward[labels], torch.zeros(len(labels), dtype=model.means.dtype))
    scale = gaussian.spread(rows)
    return gaussian.added(bilinear, scale / bilinear.spread(rows)).added(own, scale / own.spread(rows))


def _bilinear(model: SharedGaussian, labels: Tensor, vectors: Tensor) -> LinearScores:
    """The bilinear form that `BilinearMap.fit` solves on equally many rows of each class, here on their moments."""
    known = vectors[model.labels].to(model.means)
    candidates = F.normalize(vectors[labels].to(model.means) - known.mean(dim=0), dim=1)
    targets = candidates[: len(known)]
    identity = torch.eye(len(model.covariance), dtype=known.dtype)
    second = model.means.T @ model.means / len(known) + model.covariance + ROW_PENALTY * identity
    signed = 2 * model.means - model.means.sum(dim=0)  # sums of the rows of a class, minus those of the others
    # T (T'T + l I)^-1 = (TT' + l I)^-1 T, and there are fewer classes than numbers in a vector.
    outer = targets @ targets.T + CLASS_PENALTY * torch.eye(len(known), dtype=known.dtype)
    weight = torch.linalg.solve(second, signed.T @ torch.linalg.solve(outer, targets @ candidates.T))
    return LinearScores(labels, weight.T.contiguous(), torch.zeros(len(labels), dtype=known.dtype))


def calibrated_discriminant(
    model: SharedGaussian, unseen: Tensor, vectors: Tensor, prior: Tensor | None, seed: int
) -> tuple[LinearScores, float]:
    """`unseen_discriminant` with a constant subtracted from the recorded classes' scores, and the constant.

    The constant is chosen on rows that the model draws; it is 0 for fewer recorded classes than that needs.
    """
    scores, count = unseen_discriminant(model, unseen, vectors, prior), len(model.labels)
    if count < 2 * CALIBRATION_GROUPS:
        return scores, 0.0
    place = torch.arange(count).repeat_interleave(CALIBRATION_ROWS)
    drawn = model.draw(place, torch_generator(seed, "unseen rows")).unsqueeze(1)
    names = tuple(map(str, range(count)))
    rows = PrototypeBatch(drawn, place, torch.ones(len(place)), torch.zeros_like(drawn), names)

    def fit(known: PrototypeBatch, _: Tensor) -> Scorer:
        kept = torch.zeros(count, dtype=torch.bool)
        kept[[int(name) for name in known.names]] = True
        part = replace(model, labels=model.labels[kept], counts=model.counts[kept], means=model.means[kept])
        found = unseen_discriminant(part, model.labels[~kept], vectors, prior)
        order = torch.cat([kept.nonzero().flatten(), (~kept).nonzero().flatten()]).argsort()
        return lambda audio, _: found(audio.squeeze(1).double())[:, order]

    constant = choose_calibration(fit, rows, vectors[model.labels], CALIBRATION_GROUPS, seed)
    bias = scores.bias.clone()
    bias[:count] -= constant
    return replace(scores, bias=bias), constant
