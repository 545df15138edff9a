"""Pooled training: the adapters of an experiment on all clips in one place, the upper bound of a federation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fed_a2v.config.schema import Settings, cache_dir
from fed_a2v.core.adapters import Adapters, ClassPrompts
from fed_a2v.core.class_sums import ClassSums, shared_gaussian
from fed_a2v.core.metrics import retrieval
from fed_a2v.core.seeding import torch_generator
from fed_a2v.core.statistics import PrototypeBatch
from fed_a2v.core.training import epoch_steps, train_epochs
from fed_a2v.core.uncertainty import with_interval
from fed_a2v.core.zero_shot import solve_adapter
from fed_a2v.data.site import class_names, load_clips
from fed_a2v.federation.factory import (
    adapter_loss,
    prompt_set,
    seeded_adapters,
    site_optimiser,
    site_steps,
    unseen_mask,
)
from fed_a2v.federation.server.step_factory import make_space


def pooled_rows(settings: Settings, steps: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """Train the same adapters on the pooled clips of all sites: the upper bound, where all data is shared.

    Loss and optimiser are those of the sites, without the proximal term (`site.proximal`). Closed-form adapters are
    solved for, on every clip. With share=statistics the input are rows of the public space, without privacy noise.

    Args:
        settings: settings of the experiment.
        steps: optimiser steps of each round; default: as many epochs as a site trains, or the steps of the server if
            sites do not train.

    Returns:
        The metrics of each round: `round`, `accuracy` and `accuracy_at_5` on all test clips, with a T5 adapter also
        `t5/accuracy` and `t5/cosine`, and the number of steps as `site/optimiser_steps`.
    """
    torch.set_num_threads(settings.threads)
    clips = load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings.cache_dir))
    train, test = (torch.from_numpy(clips.rows(split)) for split in ("train", "test"))
    prompts = prompt_set(settings, class_names(settings.dataset))
    device = prompts.clip.device
    audio, labels = clips.embeddings[train].to(device), clips.labels[train].to(device)
    test_audio, test_labels = clips.embeddings[test].to(device), clips.labels[test].to(device)
    space = None
    if settings.shares_sums:
        space = make_space(settings)
        space = space.centred(space.rows(audio).mean(dim=0))
    adapters = seeded_adapters(settings.adapters, prompts, audio.shape[-1], settings.seed, space)
    audio, test_audio = adapters.mapped(audio), adapters.mapped(test_audio)
    loss = adapter_loss(settings.loss, prompts, unseen_mask(settings.dataset, prompts))
    shape, site, finetune = settings.adapters, settings.site, settings.finetune
    if space is not None and not adapters.closed_form:
        adapters.audio_std.fill_(space.deviation)
    elif space is None and settings.adapters.standardise:
        columns = audio.flatten(0, 1)
        adapters.set_standardisation(columns.mean(dim=0), columns.std(dim=0, correction=0))
    if adapters.closed_form:
        _solve(adapters, audio, labels, prompts)
    rows = []
    for number in range(1, settings.rounds + 1):
        if steps is not None:
            taken = steps[number - 1]
        elif settings.site_trains or adapters.closed_form:
            taken = site_steps(shape, site, finetune, number, len(audio))
        else:
            taken = finetune.steps_of(number)
        if taken:
            random = torch_generator(settings.seed, "pooled", number)
            epochs, more = (site.epochs, taken - epoch_steps(len(audio), site.epochs, site.batch_size))
            if steps is not None:
                epochs, more = 0, taken
            train_epochs(adapters, audio, labels, loss, epochs, site_optimiser(site), random, more_steps=more)
        with torch.no_grad():
            outputs = adapters(test_audio)
            scores = retrieval(outputs.clip, test_labels, prompts.clip)
        tested = len(test_labels)
        row = {"round": number, "test_clips": tested} | with_interval("accuracy", scores.accuracy, tested)
        row |= with_interval("accuracy_at_5", scores.accuracy_at_5, tested)
        if prompts.t5 is not None:
            scores = retrieval(outputs.t5, test_labels, prompts.t5)
            row |= with_interval("t5/accuracy", scores.accuracy, tested) | {"t5/cosine": scores.mean_similarity}
        rows.append(row | {"site/optimiser_steps": taken, "server/optimiser_steps": 0})
    return rows


def _solve(adapters: Adapters, audio: Tensor, labels: Tensor, prompts: ClassPrompts) -> None:
    """Set closed-form adapters to the solution on single clips."""
    if adapters.space is not None:
        model = shared_gaussian(ClassSums.of(audio[:, 0].cpu(), labels.cpu(), len(prompts.names)))
        adapters.load_discriminant(model.labels, *model.discriminant)
        return
    present, places = labels.unique(return_inverse=True)
    names = tuple(prompts.names[label] for label in present.tolist())
    ones, zeros = torch.ones(len(labels), device=audio.device), torch.zeros_like(audio)
    solve_adapter(adapters, PrototypeBatch(audio, places, ones, zeros, names), prompts.clip[present])
