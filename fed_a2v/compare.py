"""Comparison of an experiment with its baselines: plain FedAvg, prototypes only, and pooled training.

Any fine-tuning on the server improves on plain averaging. The contribution of a generator shows only in comparison
with fine-tuning on the sites' prototypes alone, with the same seed and the same number of optimiser steps. Plain
averaging takes fewer steps and pooled training as many as its epochs have; each has a variant with as many steps.
Called by `fed-a2v compare`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fed_a2v.arms import Run, RunProgress, run_several
from fed_a2v.config.baselines import BASELINES, DEFAULT, DEFAULT_OF_SUMS, REFERENCE, STEPPED, SUMS_REFERENCE
from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.schema import Settings
from fed_a2v.data.index import folds as data_folds
from fed_a2v.federation.server.step_factory import check_buildable
from fed_a2v.report.page import write_report
from fed_a2v.runs.folder import RunFolder
from fed_a2v.runs.intervals import (
    CROSSED,
    caption,
    crossed_table,
    figures_table,
    pair_name,
    summarise,
)
from fed_a2v.runs.rounds import gains, steps_of
from fed_a2v.runs.table import comparison_table, figures_by_round
from fed_a2v.storage.files import write_json, write_text

log = logging.getLogger("fed_a2v")


def compare(
    overrides: Sequence[str],
    folder: Path,
    baselines: Sequence[str] | None = None,
    console: Console | None = None,
    jobs: int = 1,
) -> dict[str, list[dict[str, Any]]]:
    """Run an experiment and the `baselines`, and write `comparison.md`, `.csv`, `.tex`, `.json` and `report.html`.

    Args:
        overrides: overrides of the experiment.
        folder: folder for a subfolder of each run.
        baselines: names from `BASELINES`; None: FedAvg, fine-tuning without a generator, and pooled training.
        console: console for progress.
        jobs: number of processes; with one, the runs follow each other in this one and show their rounds.

    Returns:
        The round metrics of each run by label, the experiment last.

    Raises:
        ConfigError: a setting is wrong, or a baseline does not fit the experiment.
        DataError: the data set cannot be used; nothing has run.
    """
    comparison = Comparison.of(overrides, folder, baselines)
    comparison.check()
    (rows,) = run_all([comparison], jobs, console)
    _write_gains(folder, rows)
    tables = {figure: comparison_table(rows, figure=figure) for figure in ("accuracy", *_t5(rows))}
    write_text(folder / "comparison.md", "\nT5:\n\n".join(table.markdown() for table in tables.values()))
    write_text(folder / "comparison.csv", figures_by_round(rows).csv())
    write_text(folder / "comparison.tex", "\n".join(table.latex(*_heading(figure)) for figure, table in tables.items()))
    write_json(folder / "comparison.json", rows)
    if comparison.settings.report:
        _write_report(folder)
    return rows


def cross_validate(
    overrides: Sequence[str],
    folder: Path,
    baselines: Sequence[str] | None = None,
    folds: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    console: Console | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """Compare on several folds and seeds, and write `comparison.md`, `.csv`, `.tex`, `.json` and `report.html` of all.

    Args:
        overrides: overrides of the experiment.
        folder: folder for a folder of `compare` for each fold and seed.
        baselines: see `compare`.
        folds: test folds, one per run, with all others for training; `[]`: all folds of the data; None: the folds of
            the experiment.
        seeds: seeds; None: the seed of the experiment.
        console: console for progress.
        jobs: see `compare`; the figures are the same for any number.

    Returns:
        See `summarise`.

    Raises:
        ConfigError: the data does not have a fold, or has only one.
        DataError: the data set cannot be used; nothing has run.
    """
    settings = compose_settings(overrides)
    available = [] if folds is None else data_folds(settings.dataset)
    if folds is not None and (len(available) < 2 or set(folds) - set(available)):
        raise ConfigError(
            f"--folds={','.join(map(str, folds))}: the data has the folds {available}; choose from two or more"
        )
    tested = [None] if folds is None else folds or available
    pairs = [(fold, seed) for fold in tested for seed in seeds or [settings.seed]]
    comparisons = []
    for fold, seed in pairs:
        chosen = [] if fold is None else [f"dataset.test_fold={fold}"]
        words = [*overrides, *chosen, f"seed={seed}", "report=false"]  # one report of all at the end
        comparisons.append(Comparison.of(words, folder / pair_name(fold, seed), baselines))
    for number, comparison in enumerate(comparisons):
        comparison.check(baselines=number == 0)
    runs: dict[str, list[list[dict[str, Any]]]] = {}
    for comparison, of_pair in zip(comparisons, run_all(comparisons, jobs, console), strict=True):
        _write_gains(comparison.folder, of_pair)
        write_json(comparison.folder / "comparison.json", of_pair)
        for label, rows in of_pair.items():
            runs.setdefault(label, []).append(rows)
    shared = 1 / (len(available) - 1) if len(tested) > 1 else 0.0
    summary = summarise(pairs, runs, shared, SUMS_REFERENCE if settings.shares_sums else REFERENCE)
    table = crossed_table(summary)
    sentences = "".join(f"* {sentence}\n" for sentence in summary["sentences"])
    write_text(folder / "comparison.md", f"{sentences}\n{table.markdown()}\n{summary['covers']}\n")
    write_text(folder / "comparison.csv", figures_table(summary).csv())
    write_text(folder / "comparison.tex", table.latex(caption(summary), "tab:comparison"))
    write_json(folder / "comparison.json", {CROSSED: summary})
    if settings.report:
        _write_report(folder)
    return summary


@dataclass(frozen=True)
class Comparison:
    """An experiment and its baselines on one fold and seed.

    Attributes:
        settings: settings of the experiment.
        folder: folder for a folder of each run.
        label: name of the experiment among the arms.
        arms: settings of each arm by name, the experiment last; None for pooled training.
    """

    settings: Settings
    folder: Path
    label: str
    arms: dict[str, Settings | None]

    @classmethod
    def of(cls, overrides: Sequence[str], folder: Path, baselines: Sequence[str] | None = None) -> Comparison:
        """Compose the settings of all arms.

        Raises:
            ConfigError: a setting is wrong, or a baseline does not fit the experiment.
        """
        settings = compose_settings(overrides)
        if baselines is None:
            baselines = DEFAULT_OF_SUMS if settings.shares_sums else DEFAULT
        arms = {name: _arm(name, overrides, settings) for name in baselines}
        label = next((name for name, arm in arms.items() if arm == settings), _label(settings))
        return cls(settings, folder, label, {name: arms[name] for name in arms if name != label} | {label: settings})

    def check(self, baselines: bool = True) -> None:
        """Check the parts and the data of the experiment, and of its baselines, before anything runs.

        Raises:
            ConfigError: a part cannot be built.
            DataError: the data set cannot be used.
        """
        for arm in self.arms.values() if baselines else [self.settings]:
            if arm is not None:
                check_buildable(arm)


def run_all(
    comparisons: Sequence[Comparison], jobs: int, console: Console | None = None
) -> list[dict[str, list[dict[str, Any]]]]:
    """Run every arm of each comparison and return the round metrics of each arm, the experiment last.

    Args:
        comparisons: comparisons with different folders.
        jobs: number of processes.
        console: console for progress.
    """
    runs = [
        Run(each.arms[name] or each.settings, each.folder / name, pooled=each.arms[name] is None)
        for each in comparisons
        for name in each.arms
        if name != STEPPED
    ]
    stepped = [each for each in comparisons if STEPPED in each.arms]
    progress = RunProgress(console or Console(stderr=True), len(runs) + len(stepped)) if jobs > 1 else None
    rows = run_several(runs, jobs, console, progress)
    for_steps = {each.folder: tuple(steps_of(rows[each.folder / each.label])) for each in stepped}
    after = [Run(each.settings, each.folder / STEPPED, pooled=True, steps=for_steps[each.folder]) for each in stepped]
    rows |= run_several(after, jobs, console, progress)
    return [{name: rows[each.folder / name] for name in each.arms} for each in comparisons]


def _arm(name: str, overrides: Sequence[str], experiment: Settings) -> Settings | None:
    """The settings of a baseline; None for pooled training.

    Raises:
        ConfigError: the baseline does not fit the experiment.
    """
    extra = BASELINES[name]
    if extra is None:
        return None
    if name == SUMS_REFERENCE and not experiment.shares_sums:
        raise ConfigError(f"--with={name}: the sites send no sums; add share=statistics, or compare with prototypes")
    averages = "finetune.enabled=false" in extra
    if averages and (experiment.aggregation.distils or not experiment.aggregation.averages):
        extra = [*extra, "aggregation.mode=avg"]  # the baseline is plain averaging, not kd or none
    if experiment.bank.keep == "generator" and "generator=none" in extra:
        extra = [*extra, "bank.keep=prototypes"]
    if experiment.generator.load_checkpoint and "generator=none" in extra:
        extra = [*extra, "generator.load_checkpoint=false"]
    without_sums = experiment.shares_sums and (name == REFERENCE or (averages and not experiment.site_trains))
    if without_sums:
        extra = [*extra, "share=prototypes", *(f"{section}=none" for section in ("privacy", "secure_sums", "prior"))]
    if not experiment.site_trains and (averages or without_sums):  # a comparison needs sites that train, as usual
        usual = compose_settings()
        closed = ["adapters=compact"] if experiment.adapters.closed_form else []
        epochs, rounds = experiment.site.epochs or usual.site.epochs, max(usual.rounds, experiment.rounds)
        extra = [*extra, *closed, f"site.epochs={epochs}", f"rounds={rounds}"]
    try:
        return compose_settings([*overrides, *extra])
    except ConfigError as error:
        raise ConfigError(f"--with={name}: {error}; choose other baselines with --with") from error


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
    """Write one report of all runs, and those of the runs again, now with the others as baselines.

    A failure is only logged.
    """
    try:
        write_report([folder], folder / "report.html")
        for own in sorted(folder.glob("*/report.html")):
            write_report([own.parent], own)
    except Exception as error:
        log.warning("The report was not written: %s: %s", type(error).__name__, error)


def _t5(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """T5's figure, if an arm has a T5 adapter."""
    return ["t5/accuracy"] if any("t5/accuracy" in row for run in rows.values() for row in run) else []


def _heading(figure: str) -> tuple[str, str]:
    """Caption and label of a table of rounds in LaTeX."""
    side, label = ("T5 accuracy", "tab:comparison-t5") if figure.startswith("t5") else ("Accuracy", "tab:comparison")
    return f"{side} after each round, one fold and seed; below, the optimiser steps of all rounds.", label
