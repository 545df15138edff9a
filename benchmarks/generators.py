"""Gains of the server step and of generators: ESC-50 in difficult federations, each fold as the test, three seeds.

    FED_A2V_DATA=FOLDER python benchmarks/generators.py [TABLE ...] [--quick | --standard | --full] [--jobs N] [--write]

FOLDER has `esc50_yamnet.npz` (embeddings of a frozen YAMNet with target and fold), `clip_vitb32_text.npz` (CLIP's
text vectors of 31 of the classes) and, for the log-mel table, `esc50/` in the official layout; folds 1 to 4. Each
finished run is a row of a CSV (`docs/generators.csv`) and is not repeated, so the benchmark can be stopped and
continued. A CSV with other columns is replaced.

`--quick`: a smoke test of a minute. `--standard`: the tables of the docs, an hour and a half on two cores. `--full`:
every method in every table, hours. `--write` writes tables and plot to docs/.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from common import PROMPTS, ROOT, data, machine, read_rows, spread, write_block
from filelock import FileLock
from rich.console import Console

from fed_a2v.config.compose import compose_settings
from fed_a2v.config.schema import Settings, cache_dir
from fed_a2v.data.partition import partition
from fed_a2v.data.site import load_clips
from fed_a2v.federation.factory import site_steps
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.pooled import pooled_rows
from fed_a2v.runs.intervals import Interval, paired_interval, summarise
from fed_a2v.storage.files import read_jsonl

FEDERATIONS = {
    "50 sites x 1": ["experiment=esc50_50x1"],
    "5 sites x 10": ["experiment=esc50_5x10"],
    "5 sites": ["experiment=esc50_5x10", "partition.classes_per_site=null"],
    "incremental 5 x 10": ["experiment=class_incremental"],
}
# Class statistics that a site sends.
SHARES = {"8": ["share.variance=groups"], "1 + variance": ["share=mean"]}
FORGOTTEN = "bank.keep=generator"
UNTRAINED = ["generator=vae", "generator.learning_rate=1e-12"]
METHODS: dict[str, list[str] | None] = {
    "FedAvg": ["finetune.enabled=false"],
    "FedAvg, as many steps": ["finetune.enabled=false", "site.server_steps=true"],
    "prototypes": ["generator=none"],
    "noise": ["generator=noise"],
    "gaussian": ["generator=gaussian"],
    "gmm": ["generator=gmm"],
    "vae": ["generator=vae"],
    "vae, untrained": UNTRAINED,
    "gaussian, variance of a class": ["generator=gaussian", "share.variance=class"],
    "gaussian, no variance": ["generator=gaussian", "share.variance=none"],
    "vae, variance of a class": ["generator=vae", "share.variance=class"],
    "vae, no variance": ["generator=vae", "share.variance=none"],
    "vae, closed form": ["generator=vae_closed_form"],
    "gan": ["generator=gan"],
    "flow": ["generator=flow"],
    "kd": ["aggregation.mode=kd", "finetune.enabled=false", "generator=gaussian"],
    "server only": ["aggregation.mode=none", "generator=none"],
    "gaussian, uploads forgotten": ["generator=gaussian", FORGOTTEN],
    "vae, uploads forgotten": ["generator=vae", FORGOTTEN],
    "vae, untrained, uploads forgotten": [*UNTRAINED, FORGOTTEN],
    "pooled": None,
    "pooled, as many steps": None,
}
# Disables what takes time without affecting the tables.
LEAN = (
    *("wandb.mode=disabled", "report=false", "federation.evaluate_before=false", "generator.save_checkpoint=false"),
    *("checkpoint.frequency=1000", "checkpoint.keep_best=false", "generator.validation_frequency=1000"),
)


class Table(NamedTuple):
    """One block of the docs: its runs, for every fold and seed."""

    data: str
    federation: str
    share: str
    methods: tuple[str, ...]


TABLES = {
    "yamnet 50x1": Table(
        "yamnet",
        "50 sites x 1",
        "8",
        ("FedAvg", "FedAvg, as many steps", "prototypes", "vae", "pooled", "pooled, as many steps"),
    ),
    "yamnet 50x1 one mean": Table(
        "yamnet", "50 sites x 1", "1 + variance", ("prototypes", "noise", "gaussian", "vae", "vae, closed form")
    ),
    "variance": Table(
        "yamnet",
        "50 sites x 1",
        "8",
        (
            *("prototypes", "gaussian", "gaussian, variance of a class", "gaussian, no variance"),
            *("vae", "vae, variance of a class", "vae, no variance"),
        ),
    ),
    "yamnet 5x10": Table(
        "yamnet",
        "5 sites x 10",
        "8",
        (
            *("FedAvg", "FedAvg, as many steps", "prototypes", "noise", "gaussian", "vae", "vae, untrained"),
            *("vae, closed form", "server only"),
        ),
    ),
    "incremental": Table(
        "yamnet",
        "incremental 5 x 10",
        "8",
        (
            *("FedAvg", "prototypes", "gaussian, uploads forgotten", "vae, uploads forgotten"),
            "vae, untrained, uploads forgotten",
        ),
    ),
    "logmel 5x10": Table("logmel", "5 sites x 10", "8", ("prototypes", "gaussian", "vae", "vae, closed form")),
    "clip": Table("clip", "5 sites", "8", ("prototypes", "noise", "gaussian", "vae", "vae, untrained")),
}
FOLDS, SEEDS = (1, 2, 3, 4), (0, 1, 2)


class Case(NamedTuple):
    """One run."""

    data: str
    federation: str
    share: str
    method: str
    fold: int
    seed: int


COLUMNS = (
    *Case._fields,
    *("accuracy_first_ten_learned", "accuracy_first_ten", "site_steps", "server_steps", "seconds", "bytes_up"),
    "by_round",
)
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"default: all of {', '.join(TABLES)}")
    size = parser.add_mutually_exclusive_group()
    for name in ("quick", "standard", "full"):
        size.add_argument(f"--{name}", dest="tables_of", action="store_const", const=globals()[name], default=quick)
    parser.add_argument("--csv", type=Path, default=ROOT / "docs" / "generators.csv")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, of one thread each")
    parser.add_argument("--write", action="store_true", help="write tables and picture into docs/")
    given = parser.parse_args()
    if unknown := [name for name in given.tables if name not in TABLES]:
        parser.error(f"no table {unknown[0]!r}; choose from {', '.join(TABLES)}")
    tables = {name: one for name, one in given.tables_of().items() if not given.tables or name in given.tables}
    pairs = [(4, 0)] if given.tables_of is quick else [(fold, seed) for seed in SEEDS for fold in FOLDS]
    fill(given.csv, list(dict.fromkeys(cases(tables.values(), pairs))), given.jobs)
    rows = read(given.csv)
    for name, one in tables.items():
        text = block(one, rows, pairs)
        print(f"## {name}\n\n{text}\n", flush=True)
        if given.write:
            write_block(name, text)
    if given.write:
        plot(rows, ROOT / "docs" / "generators.png")


def quick() -> dict[str, Table]:
    """A smoke test."""
    return {"yamnet 5x10": TABLES["yamnet 5x10"]._replace(methods=("FedAvg", "prototypes", "gaussian"))}


def standard() -> dict[str, Table]:
    """The tables of the docs."""
    return TABLES


def full() -> dict[str, Table]:
    """Every method in every table."""
    return {name: one._replace(methods=tuple(METHODS)) for name, one in TABLES.items()}


def cases(tables: Sequence[Table], pairs: Sequence[tuple[int, int]]) -> Iterator[Case]:
    """The runs of some tables, pair by pair, so that a stopped benchmark has complete pairs."""
    for fold, seed in pairs:
        for one in tables:
            for method in one.methods:
                yield Case(one.data, one.federation, one.share, method, fold, seed)


def missing_of(path: Path, wanted: Sequence[Case]) -> list[Case]:
    """The runs that are missing in the CSV."""
    done = {key_of(row) for row in read(path)}
    return [case for case in wanted if key(case) not in done]


def fill(path: Path, wanted: Sequence[Case], jobs: int) -> None:
    """Execute the runs that are missing in the CSV."""
    missing = missing_of(path, wanted)
    start = time.perf_counter()
    print(f"{len(wanted)} runs, {len(wanted) - len(missing)} of them in the CSV")
    for kind in {case.data for case in missing}:
        data(kind)  # fails here if FED_A2V_DATA is not set
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=quietly) as pool:
        for number, future in enumerate(as_completed([pool.submit(run, case) for case in missing]), start=1):
            row = future.result()
            append(path, row)
            took = time.perf_counter() - start
            print(f"{number}/{len(missing)} {took:.0f} s: {' | '.join(key_of(row))}: {row['by_round']}", flush=True)


def quietly() -> None:
    """Initialise a process of the pool: one thread, and no log lines of Flower."""
    os.environ["OMP_NUM_THREADS"] = "1"
    logging.getLogger("flwr").setLevel(logging.ERROR)


def overrides(case: Case) -> list[str]:
    """The settings of a run."""
    where = [*FEDERATIONS[case.federation], *SHARES[case.share], *data(case.data)]
    return [*where, f"dataset.test_fold={case.fold}", f"seed={case.seed}", *LEAN, *(METHODS[case.method] or [])]


def run(case: Case, *more: str) -> Row:
    """One run, with `more` overrides, as a row of the CSV."""
    start = time.perf_counter()
    settings = compose_settings([*overrides(case), *more])
    kept: dict[str, float] = {}
    if METHODS[case.method] is None:
        rows = pooled_rows(settings, steps(settings) if case.method.endswith("steps") else None)
    else:
        with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
            run_in_process(settings, Path(folder), Console(file=nowhere))
            rows = read_jsonl(Path(folder) / "metrics.jsonl")
            if settings.scenario.name == "class_incremental":
                site = json.loads((Path(folder) / "partition.json").read_text(encoding="utf-8"))["sites"]["site-000"]
                kept = first_ten(rows, sorted(site["classes"]))
    return {
        **case._asdict(),
        **kept,
        "site_steps": sum(row["site/optimiser_steps"] for row in rows),
        "server_steps": sum(row["server/optimiser_steps"] for row in rows),
        "seconds": time.perf_counter() - start,
        "bytes_up": sum(row.get("bytes_up", 0) + row.get("bytes_registration", 0) for row in rows),
        "by_round": json.dumps([round(row["accuracy"], 4) for row in rows]),
    }


def steps(settings: Settings) -> list[int]:
    """Optimiser steps of each round of a federation with all sites in every round: of a site plus the server."""
    clips = load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings.cache_dir))
    sizes = [len(each.rows("train")) for each in partition(clips, settings.partition, settings.seed)]
    shape, site, finetune = settings.adapters, settings.site, settings.finetune
    return [
        round(
            statistics.fmean(site_steps(shape, site, finetune, number, size) for size in sizes)
            + finetune.steps_of(number)
        )
        for number in range(1, settings.rounds + 1)
    ]


def first_ten(rows: list[Row], names: list[str]) -> dict[str, float]:
    """Accuracy on the first site's classes when it left and at the end, among all prompts."""
    left = [row for row in rows if row["classes_old"] == 0][-1]
    return {
        "accuracy_first_ten_learned": sum(left["per_class"][name] for name in names) / len(names),
        "accuracy_first_ten": sum(rows[-1]["per_class"][name] for name in names) / len(names),
    }


def key(case: Case) -> tuple[str, ...]:
    return tuple(str(part) for part in case)


def key_of(row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in Case._fields)


def read(path: Path) -> list[Row]:
    """All rows of the CSV; empty if it has other columns."""
    return read_rows(path, COLUMNS)


def append(path: Path, row: Row) -> None:
    """Append a row; two benchmarks may write to the same file."""
    short = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
    with FileLock(f"{path}.lock"):
        mode = "a" if read(path) else "w"
        with path.open(mode, newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if mode == "w":
                writer.writeheader()
            writer.writerow(short)
    Path(f"{path}.lock").unlink(missing_ok=True)


def block(one: Table, rows: list[Row], wanted: Sequence[tuple[int, int]]) -> str:
    """The verdict in a sentence, and the table of its numbers."""
    own = {
        (row["method"], (int(row["fold"]), int(row["seed"]))): row
        for row in rows
        if (row["data"], row["federation"], row["share"]) == (one.data, one.federation, one.share)
    }
    pairs = [pair for pair in wanted if all((method, pair) in own for method in one.methods)]
    if not pairs:
        return "No fold and seed has all of its runs yet."
    runs = {method: [own[method, pair] for pair in pairs] for method in one.methods}
    shared = 1 / (len(FOLDS) - 1) if len({fold for fold, _ in pairs}) > 1 else 0.0
    first, last = (
        summarise(pairs, {method: [as_rows(row, place) for row in of] for method, of in runs.items()}, shared)
        for place in (0, -1)
    )
    count = len(json.loads(runs[one.methods[0]][0]["by_round"]))
    lines = [
        f"| | round 1 | minus prototypes | round {count} | minus prototypes | steps: site + server | MB up |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in one.methods:
        arms = [summary["arms"][method] for summary in (first, last)]
        cells = [text for arm in arms for text in (mean_of(arm), difference_of(arm))]
        taken = " + ".join(f"{mean(runs[method], f'{side}_steps'):.0f}" for side in ("site", "server"))
        megabytes = f"{mean(runs[method], 'bytes_up') / 1e6:.0f}" if METHODS[method] is not None else "-"
        cells += [taken, megabytes]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    prompts = PROMPTS["CLIP" if one.data == "clip" else "random"]
    return "\n\n".join(
        part
        for part in (
            f"**{last['says']}**",
            "\n".join(lines),
            training(runs, shared),
            forgetting(runs),
            f"Differences with 95 % intervals. {last['covers']} {prompts} {machine()}.",
        )
        if part
    )


def as_rows(row: Row, place: int) -> list[dict[str, float]]:
    """A run of the CSV as a run with one round, with the accuracy of the round at `place`."""
    taken = {f"{side}/optimiser_steps": float(row[f"{side}_steps"]) for side in ("site", "server")}
    return [{"accuracy": json.loads(row["by_round"])[place], **taken}]


def mean(rows: Sequence[Row], name: str) -> float:
    return statistics.fmean(float(row[name]) for row in rows)


def mean_of(arm: dict[str, Any]) -> str:
    return f"{arm['mean']:.3f}" + ("" if arm["deviation"] is None else f" ± {arm['deviation']:.3f}")


def difference_of(arm: dict[str, Any]) -> str:
    if "difference" not in arm:
        return "-"
    return str(Interval(arm["difference"], arm.get("low", -float("inf")), arm.get("high", float("inf"))))


def training(runs: dict[str, list[Row]], shared: float) -> str:
    """Gain of the VAE's training: accuracy in the last round minus that of the untrained VAE."""
    found = []
    for twin in runs:
        trained = twin.replace(", untrained", "")
        if trained != twin and trained in runs:
            both = ([json.loads(row["by_round"])[-1] for row in runs[name]] for name in (trained, twin))
            interval = paired_interval([mine - other for mine, other in zip(*both, strict=True)], shared)
            found.append(f'"{trained}" minus "{twin}": {interval}.')
    return " ".join(found)


def forgetting(runs: dict[str, list[Row]]) -> str:
    """Accuracy on the first ten classes in the incremental federation; empty for others."""
    lines = ["| first ten classes | when learned | at the end |", "|---|---|---|"]
    for method, rows in runs.items():
        if all(row["accuracy_first_ten"] for row in rows):
            columns = ("accuracy_first_ten_learned", "accuracy_first_ten")
            learned, kept = (spread([float(row[name]) for row in rows]) for name in columns)
            lines.append(f"| {method} | {learned} | {kept} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def plot(rows: list[Row], path: Path) -> None:
    """Accuracy by round in four of the tables, mean over folds and seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8), sharey=True, layout="constrained")
    styles = ["-", "--", "-.", ":"]
    names = list(METHODS)
    for axis, title in zip(
        axes.flat, ("yamnet 50x1", "yamnet 5x10", "yamnet 50x1 one mean", "incremental"), strict=True
    ):
        one = TABLES[title]
        for method in one.methods:
            own = [
                json.loads(row["by_round"])
                for row in rows
                if (row["data"], row["federation"], row["share"], row["method"]) == (*one[:3], method)
            ]
            if own:
                means = [sum(values) / len(values) for values in zip(*own, strict=True)]
                number = names.index(method)
                look = {"color": f"C{number % 10}", "linestyle": styles[number % 4], "marker": "."}
                axis.plot(range(1, len(means) + 1), means, label=method, **look)
        axis.set(title=title, xlabel="round", ylabel="accuracy@1")
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    found = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), fontsize="small", loc="outside right upper")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
