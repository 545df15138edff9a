"""What pictures are made of: subjects with their embeddings, and what the bank has of a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fed_a2v.core.server_step import ServerStep
from fed_a2v.images.gallery import Subject


class Subjects(NamedTuple):
    """Subjects and their (B, S, Da) audio embeddings."""

    subjects: list[Subject]
    embeddings: Tensor


def of_classes(step: ServerStep, classes: Sequence[str]) -> Subjects:
    """What the bank has of each class: the mean of its recordings, or a sample where it may keep none.

    Classes that no site has recorded are left out.
    """
    rows = step.bank.rows()
    found: dict[str, Tensor] = {}
    if rows is not None:
        for label, name in enumerate(rows.names):
            of_class = rows.labels == label
            weights = rows.counts[of_class] / rows.counts[of_class].sum()
            found[name] = (weights[:, None, None] * rows.embeddings[of_class]).sum(dim=0)
    elif step.generator is not None and step.replayed:
        random = torch.Generator().manual_seed(0)
        samples = step.generator.sample_classes(step.conditions_of(step.replayed), 1, random)
        found = dict(zip(step.replayed, samples[:, 0], strict=True))
    known = [name for name in classes if name in found]
    if not known:
        return Subjects([], torch.empty(0, 1, step.adapters.audio_width))
    device = step.prompts.clip.device
    return Subjects([Subject(name, name) for name in known], torch.stack([found[name].to(device) for name in known]))


def joined(several: Sequence[Subjects]) -> Subjects:
    """All subjects, one after the other."""
    subjects = [subject for each in several for subject in each.subjects]
    return Subjects(subjects, torch.cat([each.embeddings.cpu() for each in several]))
