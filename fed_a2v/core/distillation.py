"""Distillation of the sites' adapters into the global one (FedDF: Lin et al. 2020), on synthetic audio embeddings.

The server step calls it. Averaging weights mixes adapters of sites that train on a class with those of sites that do
not. Here the teachers of a class are only the sites that have it, weighted by their clips, and the global adapters
learn to reproduce the teachers' outputs. The class prompts are not used as targets.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fed_a2v.core.adapters import AdapterOutput, Adapters, ClassPrompts
from fed_a2v.core.losses import AdapterLoss, AdapterLossWeights
from fed_a2v.core.training import AdamWSettings, Mixture, train_steps

# MSE and cosine to the teachers' outputs; the contrastive term would train on the class prompts themselves.
DISTILLATION = AdapterLossWeights(contrastive=0.0)


class Teacher(NamedTuple):
    """A site's adapters: weights in the order of `Adapters.weights`, and the site's clips by class index."""

    weights: Sequence[Tensor]
    clips: Mapping[int, float]


@torch.no_grad()
def distillation_targets(
    adapters: Adapters,
    teachers: Sequence[Teacher],
    audio: Tensor,
    labels: Tensor,
    chunk_size: int = 0,
    t5_audio: Tensor | None = None,
) -> tuple[Tensor, AdapterOutput | None]:
    """The teachers' mean outputs for audio embeddings, each teacher on its own classes only.

    Args:
        adapters: adapters of the teachers' architecture; not changed.
        teachers: in a fixed order, for reproducible sums.
        audio: (R, S, Da).
        labels: (R,) class indices.
        chunk_size: rows of one forward pass; default 0: all.
        t5_audio: (R, S, Da) of the same classes, for the teachers' T5 adapters; default: `audio`.

    Returns:
        (R,) mask of the rows whose class has a teacher, and the mean outputs of those M rows, weighted by clips:
        CLIP (M, Tc, Dc) and T5 (M, T, Dt) or None. The outputs are None if no class has a teacher.
    """
    model = copy.deepcopy(adapters)
    inputs = (audio,) if t5_audio is None else (audio, t5_audio)
    clips = torch.zeros(len(labels), device=audio.device)
    sums: dict[str, Tensor] = {}
    for teacher in teachers:
        model.load_weights(teacher.weights)
        counts = torch.zeros(int(labels.max()) + 1, device=audio.device)
        for label, count in teacher.clips.items():
            if label < len(counts):
                counts[label] = count
        rows = torch.nonzero(counts[labels]).flatten()
        for part in rows.split(chunk_size or max(1, len(rows))):
            weight = counts[labels[part]]
            clips[part] += weight
            for kind, output in model(*(rows[part] for rows in inputs))._asdict().items():
                if output is not None:
                    total = sums.setdefault(kind, output.new_zeros(len(labels), *output.shape[1:]))
                    total[part] += weight[:, None, None] * output
    has_teacher = clips > 0
    means = {kind: total[has_teacher] / clips[has_teacher][:, None, None] for kind, total in sums.items()}
    return has_teacher, AdapterOutput(means["clip"], means.get("t5")) if means else None


def distil(
    adapters: Adapters,
    prompts: ClassPrompts,
    teachers: Sequence[Teacher],
    audio: Tensor,
    labels: Tensor,
    steps: int,
    optimiser: AdamWSettings,
    random: torch.Generator,
    mixture: Mixture | None = None,
    t5_audio: Tensor | None = None,
) -> dict[str, float]:
    """Train `adapters` in place to reproduce the teachers' outputs.

    Args:
        adapters: the global adapters, usually the sites' average.
        prompts: class prompts; they only set the scale of the loss.
        teachers: the sites of this round.
        audio: (R, S, Da) embeddings, synthetic or prototypes.
        labels: (R,) class indices into `prompts`.
        steps: number of optimiser steps.
        optimiser: settings of AdamW.
        random: source of the order of the rows.
        mixture: which rows are synthetic, and their share of every batch; default: no distinction.
        t5_audio: see `distillation_targets`.

    Returns:
        Mean loss over the steps, under `loss`, and its parts `mse` and `cosine`; empty if no row has a teacher.
    """
    has_teacher, targets = distillation_targets(adapters, teachers, audio, labels, optimiser.chunk_size, t5_audio)
    if targets is None:
        return {}
    loss = AdapterLoss(prompts, DISTILLATION)
    mixture = mixture and mixture._replace(synthetic=mixture.synthetic[has_teacher])
    losses = train_steps(
        adapters,
        audio[has_teacher],
        labels[has_teacher],
        loss,
        steps,
        optimiser,
        random,
        targets,
        one_target_a_row=True,
        mixture=mixture,
        t5_audio=None if t5_audio is None else t5_audio[has_teacher],
    )
    del losses["contrastive"]  # its weight is 0
    return losses
