"""Membership inference: whether uploads reveal that a clip is in a site's data, to an attacker who has the clip.

    FED_A2V_DATA=FOLDER python benchmarks/membership.py [--write]

ESC-50, YAMNet and log-mel embeddings. Of each class, two folds are the site's clips (members) and a third one's are
non-members, in four turns. The attack ranks all of them; its AUC is the probability that a member ranks above a
non-member: 0.5 is chance, 1 is certainty. The best of three attacks counts:

* *room*: the share of dimensions with (x - mean)^2 <= (n - 1) variance, which holds in all for a clip x among n, and
  hardly ever for a non-member; no other sounds are needed;
* *likeness*: the cosine of x and the mean, both minus the mean of the fourth fold's clips of the class, whitened by the
  covariance within classes (after Sankararaman et al. 2009, "Genomic privacy and limits of individual detection in a
  pool"); the nearest of several means counts;
* *distance*: how much nearer x is to the mean than to that of the fourth fold, in the same metric.
"""

from __future__ import annotations

import argparse
from typing import Literal, NamedTuple

import numpy as np
import torch
from common import data, machine, write_block
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fed_a2v.config.compose import compose_settings
from fed_a2v.config.schema import cache_dir
from fed_a2v.core.prototypes import Variance, summarise_class
from fed_a2v.core.statistics import AudioPrototypes
from fed_a2v.data.index import index_clips
from fed_a2v.data.site import load_clips

KINDS = ("yamnet", "logmel")
FOLDS = (1, 2, 3, 4)
# Share of the diagonal in the covariance.
SHRINKAGE = 0.01


class Upload(NamedTuple):
    """Statistics of a class that a site sends."""

    kind: Literal["prototypes", "mean"]
    prototypes: int
    min_clips: int
    variance: Variance


UPLOADS = {
    "`share=prototypes` (groups of three), variance of each group": Upload("prototypes", 8, 3, "groups"),
    "the same, one variance per class": Upload("prototypes", 8, 3, "class"),
    "the same, no variance": Upload("prototypes", 8, 3, "none"),
    "groups of eight, no variance": Upload("prototypes", 8, 8, "none"),
    "`share=mean`, variance": Upload("mean", 1, 3, "class"),
    "`share=mean share.variance=none` (the careful set-up)": Upload("mean", 1, 8, "none"),
}


class Clips(NamedTuple):
    """Embeddings (N, D) float64, with class and fold of each."""

    rows: NDArray[np.float64]
    labels: NDArray[np.int64]
    folds: NDArray[np.int64]

    def of(self, label: int, *folds: int) -> NDArray[np.float64]:
        """The clips of a class in some folds."""
        return self.rows[(self.labels == label) & np.isin(self.folds, folds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    given = parser.parse_args()
    lines = ["| statistics of a class of 16 clips | " + " | ".join(KINDS) + " |", "|---" * (1 + len(KINDS)) + "|"]
    found = {kind: attacked(clips(kind)) for kind in KINDS}
    for name in UPLOADS:
        cells = [max(found[kind][name].items(), key=lambda each: each[1]) for kind in KINDS]
        lines.append(f"| {name} | " + " | ".join(f"{auc:.3f} ({attack})" for attack, auc in cells) + " |")
    text = "\n".join(lines) + f"\n\nAUC over four pairs of folds; the best attack is in brackets. {machine()}."
    print(text)
    if given.write:
        write_block("membership", text)


def clips(kind: str) -> Clips:
    """Embeddings, classes and folds of the clips of ESC-50."""
    settings = compose_settings(["experiment=esc50_50x1", *data(kind)])
    found = load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings.cache_dir))
    folds = {record.key: record.fold for record in index_clips(settings.dataset).records}
    rows = found.embeddings.flatten(1).double().numpy()
    return Clips(rows, found.labels.numpy(), np.array([folds[key] for key in found.keys]))


def attacked(found: Clips) -> dict[str, dict[str, float]]:
    """The AUC of each attack on each upload."""
    classes = range(int(found.labels.max()) + 1)
    whitening = whitened(
        np.concatenate([found.of(label, *FOLDS) - found.of(label, *FOLDS).mean(0) for label in classes])
    )
    ranks: dict[str, dict[str, tuple[list[float], list[bool]]]] = {name: {} for name in UPLOADS}
    for turn in range(len(FOLDS)):
        first, second, third, other_fold = np.roll(FOLDS, -turn).tolist()
        for label in classes:
            own, others, known = found.of(label, first, second), found.of(label, other_fold), found.of(label, third)
            for name, upload in UPLOADS.items():
                sent = summarise_class("", torch.from_numpy(own[:, None]).float(), *upload)
                assert sent is not None
                assert sent.audio is not None
                rows = np.concatenate([own, others])
                for attack, scores in attacks(rows, sent.audio, known.mean(0), whitening).items():
                    ranked, members = ranks[name].setdefault(attack, ([], []))
                    ranked += scores.tolist()
                    members += [True] * len(own) + [False] * len(others)
    return {
        name: {attack: float(roc_auc_score(members, ranked)) for attack, (ranked, members) in each.items()}
        for name, each in ranks.items()
    }


def whitened(residuals: NDArray[np.float64]) -> NDArray[np.float64]:
    """(D, D) whitening matrix: rows with these residuals have about unit covariance after the product with it."""
    covariance = residuals.T @ residuals / len(residuals)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(covariance.diagonal() + 1e-6)
    values, vectors = np.linalg.eigh(shrunk)
    return np.asarray(vectors / np.sqrt(values))


def attacks(
    rows: NDArray[np.float64], sent: AudioPrototypes, known: NDArray[np.float64], whitening: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Scores of each row by attack; higher for members."""
    means, counts = flat(sent.means), sent.counts.numpy()
    found = {}
    if sent.variances.any():
        found["room"] = room(rows, means, counts, flat(sent.variances))
    candidates, centres = (rows - known) @ whitening, (means - known) @ whitening
    lengths = np.linalg.norm(candidates, axis=1)[:, None] * np.linalg.norm(centres, axis=1)
    found["likeness"] = (candidates @ centres.T / lengths).max(1)
    apart = np.square(candidates[:, None] - centres).sum(2)
    found["distance"] = (np.square(candidates).sum(1)[:, None] - apart).max(1)
    return found


def room(
    rows: NDArray[np.float64], means: NDArray[np.float64], counts: NDArray[np.int64], variances: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The share of dimensions in which a row may be one of the clips of a mean; the largest over the means.

    If groups have one variance for all, (x - mean)^2 n / (n - 1) of a member of a group of n is at most the sum of
    squares within all groups.
    """
    alike = len(means) > 1 and bool((variances == variances[0]).all())
    squares = variances * counts.sum() if alike else variances * counts[:, None]
    asked = np.square(rows[:, None] - means) * (counts / (counts - 1))[:, None]
    # Tolerance for rounding in single precision.
    fits = asked <= squares * 1.001 + 1e-7
    return np.asarray(fits.mean(2).max(1))


def flat(tensor: Tensor) -> NDArray[np.float64]:
    """(K, S, Da) as (K, D)."""
    return np.asarray(tensor.flatten(1).double().numpy())


if __name__ == "__main__":
    main()
