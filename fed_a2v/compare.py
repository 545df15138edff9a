"""Comparison of an experiment with its baselines: plain FedAvg, prototypes only, and pooled training.

Any fine-tuning on the server improves on plain averaging. The contribution of a generator shows only in comparison
with fine-tuning on the sites' prototypes alone, with the same seed and the same number of optimiser steps. Plain
averaging takes fewer steps and pooled training as many as its epochs have; each has a variant with as many steps.
Called by `fed-a2v compare`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from fed_a2v.config.baselines import BASELINES
from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.schema import Settings, cache_dir
from fed_a2v.config.sections.federation import AggregationSettings
from fed_a2v.core.adapters import Adapters, ClassPrompts
from fed_a2v.core.class_sums import ClassSums, shared_gaussian
from fed_a2v.core.metrics import retrieval
from fed_a2v.core.seeding import torch_generator
from fed_a2v.core.statistics import PrototypeBatch
from fed_a2v.core.training import epoch_steps, train_epochs
from fed_a2v.core.zero_shot import solve_adapter
from fed_a2v.data.index import folds as data_folds
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
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.report.page import write_report
from fed_a2v.runs.folder import RunFolder
from fed_a2v.runs.intervals import CROSSED, crossed_table, pair_name, summarise
from fed_a2v.runs.rounds import gains
from fed_a2v.runs.table import comparison_table
from fed_a2v.storage.files import read_jsonl, write_json, write_text

log = logging.getLogger("fed_a2v")


def compare(
    overrides: Sequence[str],
    folder: Path,
    baselines: Sequence[str] = ("FedAvg", "prototypes"),
    console: Console | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Run an experiment and the `baselines`, and write `comparison.md`, `comparison.json` and `report.html`.

    Args:
        overrides: overrides of the experiment.
        folder: folder for a subfolder of each run.
        baselines: names from `BASELINES`.
        console: console for progress.

    Returns:
        The round metrics of each run by label, the experiment last.
    """
    settings = compose_settings(overrides)
    arms = {name: _arm(overrides, settings.aggregation, BASELINES[name]) for name in baselines}
    label = next((name for name, arm in arms.items() if arm == settings), _label(settings))
    mine = _run(settings, folder / label, console)
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, arm in arms.items():
        if name == label:
            continue
        if arm is None:
            rows[name] = pooled_rows(settings, steps_of(mine) if name.endswith("steps") else None)
        else:
            rows[name] = _run(arm, folder / name, console)
    rows[label] = mine
    _write_gains(folder, rows)
    has_t5 = any("t5/accuracy" in row for run in rows.values() for row in run)
    t5 = f"\nT5:\n\n{comparison_table(rows, figure='t5/accuracy').markdown()}" if has_t5 else ""
    write_text(folder / "comparison.md", comparison_table(rows).markdown() + t5)
    write_json(folder / "comparison.json", rows)
    if settings.report:
        _write_report(folder)
    return rows


def cross_validate(
    overrides: Sequence[str],
    folder: Path,
    baselines: Sequence[str] = ("FedAvg", "prototypes"),
    folds: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Compare on several folds and seeds, and write `comparison.md`, `comparison.json` and `report.html` of all.

    Args:
        overrides: overrides of the experiment.
        folder: folder for a folder of `compare` for each fold and seed.
        baselines: names from `BASELINES`.
        folds: test folds, one per run, with all others for training; `[]`: all folds of the data; None: the folds of
            the experiment.
        seeds: seeds; None: the seed of the experiment.
        console: console for progress.

    Returns:
        See `summarise`.

    Raises:
        ConfigError: the data does not have a fold, or has only one.
    """
    settings = compose_settings(overrides)
    available = [] if folds is None else data_folds(settings.dataset)
    if folds is not None and (len(available) < 2 or set(folds) - set(available)):
        raise ConfigError(
            f"--folds={','.join(map(str, folds))}: the data has the folds {available}; choose from two or more"
        )
    tested = [None] if folds is None else folds or available
    pairs = [(fold, seed) for fold in tested for seed in seeds or [settings.seed]]
    runs: dict[str, list[list[dict[str, Any]]]] = {}
    for fold, seed in pairs:
        chosen = [] if fold is None else [f"dataset.test_fold={fold}"]
        words = [*overrides, *chosen, f"seed={seed}", "report=false"]  # one report of all at the end
        for label, rows in compare(words, folder / pair_name(fold, seed), baselines, console).items():
            runs.setdefault(label, []).append(rows)
    shared = 1 / (len(available) - 1) if len(tested) > 1 else 0.0
    summary = summarise(pairs, runs, shared)
    write_text(
        folder / "comparison.md", f"{summary['says']}\n\n{crossed_table(summary).markdown()}\n{summary['covers']}\n"
    )
    write_json(folder / "comparison.json", {CROSSED: summary})
    if settings.report:
        _write_report(folder)
    return summary


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
        row = {"round": number, "accuracy": scores.accuracy, "accuracy_at_5": scores.accuracy_at_5}
        if prompts.t5 is not None:
            scores = retrieval(outputs.t5, test_labels, prompts.t5)
            row |= {"t5/accuracy": scores.accuracy, "t5/cosine": scores.mean_similarity}
        rows.append(row | {"site/optimiser_steps": taken, "server/optimiser_steps": 0})
    return rows


def steps_of(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Consecutive optimiser steps in each round of a run: those of a site plus those of the server."""
    return [round(row.get("site/optimiser_steps", 0) + row.get("server/optimiser_steps", 0)) for row in rows]


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


def _arm(overrides: Sequence[str], aggregation: AggregationSettings, extra: list[str] | None) -> Settings | None:
    """The settings of a baseline; None for pooled training."""
    if extra is None:
        return None
    if "finetune.enabled=false" in extra and (aggregation.distils or not aggregation.averages):
        extra = [*extra, "aggregation.mode=avg"]  # the baseline is plain averaging, not kd or none
    return compose_settings([*overrides, *extra])


def _label(settings: Settings) -> str:
    """Label of an experiment that is not a baseline."""
    if settings.finetune.enabled:
        return settings.generator.name
    if settings.aggregation.distils:
        return "kd"
    return "FedAvg, as many steps" if settings.site.server_steps else "FedAvg"


def _write_gains(folder: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write the gain over FedAvg to the runs' results, since FedAvg may have finished after them."""
    for name, run in rows.items():
        own = RunFolder(folder / name)
        if own.results.is_file() and "gain_over_fedavg" in (results := own.read_results()):
            own.write_results(results | gains(run, own.rows_without_step()))


def _write_report(folder: Path) -> None:
    """Write one report of all runs; a failure is only logged."""
    try:
        write_report([folder], folder / "report.html")
    except Exception as error:
        log.warning("The report was not written: %s: %s", type(error).__name__, error)


def _run(settings: Settings, folder: Path, console: Console | None) -> list[dict[str, Any]]:
    run_in_process(settings, folder, console)
    return read_jsonl(folder / "metrics.jsonl")
