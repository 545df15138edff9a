"""Distillation of the sites' adapters into the global one (FedDF: Lin et al. 2020), on synthetic audio embeddings.

Averaging weights mixes what sites know with what they have never heard. Here every class is taught only by the
sites that own it, each weighing as many clips as it has, and the global adapters learn to give the outputs that those
sites' adapters give. No class prompt plays a part in it.
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

# MSE and cosine to the teachers' outputs; the contrastive term would be training on the prompts themselves.
DISTILLATION = AdapterLossWeights(contrastive=0.0)


class Teacher(NamedTuple):
    """A site's adapters: their weights, in the order of `Adapters.weights`, and its clips by class index."""

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
    """What the teachers make of audio embeddings of the classes that they own.

    Args:
        adapters: of the teachers' shape; they stay as they are.
        teachers: in a fixed order.
        audio: (R, S, Da).
        labels: (R,) class indices.
        chunk_size: rows that go through a teacher at once; default 0: all.
        t5_audio: (R, S, Da) of the same classes, for the teachers' T5 adapters; default: `audio`.

    Returns:
        (R,) mask of the rows whose class has a teacher, and the mean outputs for those, weighted by clips:
        CLIP (M, Tc, Dc) and T5 (M, T, Dt) or None. No outputs where no class has a teacher.
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
    taught = clips > 0
    means = {kind: total[taught] / clips[taught][:, None, None] for kind, total in sums.items()}
    return taught, AdapterOutput(means["clip"], means.get("t5")) if means else None


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
    """Train `adapters` to agree with the teachers, in place.

    Args:
        adapters: the global ones, usually the sites' average.
        prompts: class prompts; only the scale of the loss comes from them.
        teachers: the sites of this round.
        audio: (R, S, Da) embeddings, synthetic or prototypes.
        labels: (R,) class indices into `prompts`.
        steps: of the optimiser.
        optimiser: its settings.
        random: source of the order of the rows.
        mixture: which rows are synthetic, and their share of every batch; default: rows are rows.
        t5_audio: see `distillation_targets`.

    Returns:
        Mean loss over the steps, under `loss`, and its parts `mse` and `cosine`; empty if no row has a teacher.
    """
    taught, targets = distillation_targets(adapters, teachers, audio, labels, optimiser.chunk_size, t5_audio)
    if targets is None:
        return {}
    loss = AdapterLoss(prompts, DISTILLATION)
    mixture = mixture and mixture._replace(synthetic=mixture.synthetic[taught])
    losses = train_steps(
        adapters,
        audio[taught],
        labels[taught],
        loss,
        steps,
        optimiser,
        random,
        targets,
        one_target_a_row=True,
        mixture=mixture,
        t5_audio=None if t5_audio is None else t5_audio[taught],
    )
    del losses["contrastive"]
    return losses
