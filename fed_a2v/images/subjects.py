"""Subjects of images with their embeddings, and embeddings of classes from the prototype bank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fed_a2v.core.server_step import ServerStep
from fed_a2v.images.gallery import Subject


class Subjects(NamedTuple):
    """Subjects and their (B, S, Da) audio embeddings, as inputs of the adapters."""

    subjects: list[Subject]
    embeddings: Tensor


def of_classes(step: ServerStep, classes: Sequence[str]) -> Subjects:
    """An embedding of each class: the mean of its prototypes, or a generated sample with bank.keep=generator.

    With share=statistics it is the mean of the class's clips in the public space. Classes that no site has recorded are
    left out.
    """
    rows = step.bank.rows() if step.sums is None else step.sums.class_means()
    embeddings: dict[str, Tensor] = {}
    if rows is not None:
        for label, name in enumerate(rows.names):
            of_class = rows.labels == label
            weights = rows.counts[of_class] / rows.counts[of_class].sum()
            embeddings[name] = (weights[:, None, None] * rows.embeddings[of_class]).sum(dim=0)
    elif step.generator is not None and step.replayed:
        random = torch.Generator().manual_seed(0)
        samples = step.generator.sample_classes(step.conditions_of(step.replayed), 1, random)
        embeddings = dict(zip(step.replayed, samples[:, 0], strict=True))
    known = [name for name in classes if name in embeddings]
    if not known:
        return Subjects([], torch.empty(0, 1, step.adapters.audio_width))
    device = step.prompts.clip.device
    return Subjects(
        [Subject(name, name) for name in known], torch.stack([embeddings[name].to(device) for name in known])
    )


def joined(several: Sequence[Subjects]) -> Subjects:
    """The concatenation of several lists of subjects."""
    subjects = [subject for each in several for subject in each.subjects]
    return Subjects(subjects, torch.cat([each.embeddings.cpu() for each in several]))
