"""An experiment beside its yardsticks: plain FedAvg, prototypes only, and pooled training.

A generator looks good beside plain averaging, for any fine-tuning on the server does. What it adds shows only
beside fine-tuning on the sites' prototypes alone, with the same seed and the same number of optimiser steps.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fed_a2v.config import compose_settings
from fed_a2v.core.adapters import Adapters
from fed_a2v.core.metrics import retrieval
from fed_a2v.core.seeding import seed_for, torch_generator
from fed_a2v.core.training import AdamWSettings, train_epochs
from fed_a2v.data.site import class_names, load_clips
from fed_a2v.federation.engine import run_in_process
from fed_a2v.federation.task import adapter_loss, prompt_set, torch_device
from fed_a2v.report.page import write_report
from fed_a2v.runs.table import comparison_table
from fed_a2v.settings import Settings, cache_dir
from fed_a2v.storage.files import read_jsonl, write_json, write_text

log = logging.getLogger("fed_a2v")

# Overrides that make the yardstick; None is pooled training, which is no federation.
YARDSTICKS: dict[str, list[str] | None] = {
    "FedAvg": ["finetune.enabled=false"],
    "prototypes": ["generator=none"],
    "gaussian": ["generator=gaussian"],
    "pooled": None,
}


def compare(
    overrides: Sequence[str],
    folder: Path,
    yardsticks: Sequence[str] = ("FedAvg", "prototypes"),
    console: Console | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Run an experiment and the `yardsticks`, and write `comparison.md`, `comparison.json` and `report.html`.

    Args:
        overrides: of the experiment.
        folder: a subfolder is made for each run.
        yardsticks: names from `YARDSTICKS`.
        console: where progress is shown.

    Returns:
        The rows of each run by label, the experiment last.
    """
    settings = compose_settings(overrides)
    label = settings.generator.name if settings.finetune.enabled else "FedAvg"
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in yardsticks:
        extra = YARDSTICKS[name]
        if name == label:
            continue
        if extra is None:
            rows[name] = pooled_rows(settings)
        else:
            rows[name] = _run(compose_settings([*overrides, *extra]), folder / name, console)
    rows[label] = _run(settings, folder / label, console)
    has_t5 = any("t5/accuracy" in row for run in rows.values() for row in run)
    t5 = f"\nT5:\n\n{comparison_table(rows, figure='t5/accuracy').markdown()}" if has_t5 else ""
    write_text(folder / "comparison.md", comparison_table(rows).markdown() + t5)
    write_json(folder / "comparison.json", rows)
    if settings.report:
        _write_report(folder)
    return rows


def pooled_rows(settings: Settings) -> list[dict[str, Any]]:
    """Train on all sites' clips in one place, as many epochs as the sites do: the bound that sharing all gives.

    Returns:
        A row a round with `round`, `accuracy` and `accuracy_at_5` on all test clips; with a T5 adapter `t5/accuracy`
        and `t5/cosine`, too.
    """
    torch.set_num_threads(settings.threads)
    clips = load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings))
    train, test = (torch.from_numpy(clips.rows(split)) for split in ("train", "test"))
    prompts = prompt_set(settings, class_names(settings.dataset))
    loss = adapter_loss(settings, prompts)
    device = torch_device(settings.device)
    audio, labels = clips.embeddings[train].to(device), clips.labels[train].to(device)
    test_audio, test_labels = clips.embeddings[test].to(device), clips.labels[test].to(device)
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(settings.seed, "adapters"))
        adapters = Adapters(audio.shape[-1], prompts, settings.adapters.hidden_width).to(device)
    if settings.adapters.standardise:
        columns = audio.flatten(0, 1)
        adapters.set_standardisation(columns.mean(dim=0), columns.std(dim=0, correction=0))
    rows = []
    for number in range(1, settings.rounds + 1):
        random = torch_generator(settings.seed, "pooled", number)
        optimiser = AdamWSettings(settings.site.learning_rate, settings.site.weight_decay, settings.site.batch_size)
        train_epochs(adapters, audio, labels, loss, settings.site.epochs, optimiser, random)
        with torch.no_grad():
            outputs = adapters(test_audio)
            found = retrieval(outputs.clip, test_labels, prompts.clip)
        row = {"round": number, "accuracy": found.accuracy, "accuracy_at_5": found.accuracy_at_5}
        if prompts.t5 is not None:
            near = retrieval(outputs.t5, test_labels, prompts.t5)
            row |= {"t5/accuracy": near.accuracy, "t5/cosine": near.mean_similarity}
        rows.append(row)
    return rows


def _write_report(folder: Path) -> None:
    """All runs in one page; for want of it no comparison fails."""
    try:
        write_report([folder], folder / "report.html")
    except Exception as error:
        log.warning("No report was written: %s: %s", type(error).__name__, error)


def _run(settings: Settings, folder: Path, console: Console | None) -> list[dict[str, Any]]:
    run_in_process(settings, folder, console)
    return read_jsonl(folder / "metrics.jsonl")
