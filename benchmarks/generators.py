"""When does a generator pay? Every method in every hard federation, on the same seeds and optimiser steps.

    FED_A2V_DATA=FOLDER python benchmarks/generators.py [--quick | --standard | --full] [--jobs N] [--write]

One row a run goes into a CSV (`docs/generators.csv`) as soon as it is done; runs that are there already are not done
again, so the benchmark can be stopped and started at will. Folds 1 to 3 train, fold 4 tests.
`--quick`: under 3 minutes, a smoke test. `--standard`: what the table in the docs shows, under an hour
on two cores. `--full`: the whole grid, hours. `--write` makes the tables and the picture from the CSV.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from common import ROOT, machine, spread, write_block
from esc50 import data
from filelock import FileLock
from rich.console import Console

from fed_a2v.compare import pooled_rows
from fed_a2v.config import compose_settings
from fed_a2v.federation.engine import run_in_process
from fed_a2v.storage.files import read_jsonl

FEDERATIONS = {
    "5 sites x 10": ["experiment=esc50_5x10"],
    "50 sites x 1": ["experiment=esc50_50x1"],
    "Dirichlet 0.1": ["experiment=esc50_5x10", "partition=dirichlet", "partition.sites=10", "partition.alpha=0.1"],
    "incremental 5 x 10": ["experiment=class_incremental"],
}
# What a site sends of each class.
SHARES = {
    "8": [],
    "1 + variance": ["share=mean"],
    "1": ["share=mean", "share.variance=false"],
}
METHODS: dict[str, list[str] | None] = {
    "no fine-tuning": ["finetune.enabled=false"],
    "prototypes only": ["generator=none"],
    "noise": ["generator=noise"],
    "gaussian": ["generator=gaussian"],
    "gmm": ["generator=gmm"],
    "vae": ["generator=vae"],
    "gan": ["generator=gan"],
    "flow": ["generator=flow"],
    "kd": ["aggregation.mode=kd", "finetune.enabled=false", "generator=gaussian"],
    "server only": ["aggregation.mode=none", "generator=none"],
    "gaussian, uploads forgotten": ["generator=gaussian", "bank.keep=generator"],
    "vae, uploads forgotten": ["generator=vae", "bank.keep=generator"],
    "pooled": None,
}
SEEDS = (0, 1, 2)
FIGURES = ("tstr", "c2st", "nn_ratio", "variance_ratio")
COLUMNS = (
    "encoder", "federation", "share", "method", "seed", "accuracy_first", "accuracy", "accuracy_first_ten_learned",
    "accuracy_first_ten", *FIGURES, "seconds", "bytes_up", "by_round",
)  # fmt: skip


class Case(NamedTuple):
    """One run."""

    encoder: str
    federation: str
    share: str
    method: str
    seed: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    for name in ("quick", "standard", "full"):
        size.add_argument(f"--{name}", dest="cases", action="store_const", const=globals()[name])
    parser.add_argument("--csv", type=Path, default=ROOT / "docs" / "generators.csv")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, of one thread each")
    parser.add_argument("--write", action="store_true", help="write tables and picture into docs/")
    given = parser.parse_args()
    start = time.perf_counter()
    cases = list((given.cases or quick)())
    wanted = [case for case in cases if key(case) not in {key_of(row) for row in read(given.csv)}]
    print(f"{len(cases)} runs, {len(cases) - len(wanted)} of them done before")
    for encoder in {case.encoder for case in wanted}:
        data(encoder)  # fails here if nobody says where the data lies
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, context, initializer=quietly) as pool:
        for done, future in enumerate(as_completed([pool.submit(run, case) for case in wanted]), start=1):
            row = future.result()
            append(given.csv, row)
            took = time.perf_counter() - start
            print(f"{done}/{len(wanted)} {took:.0f} s: {' | '.join(key_of(row))}: {row['accuracy']}", flush=True)
    rows = read(given.csv)
    text = tables([row for row in rows if key_of(row) in {key(case) for case in cases}])
    print(text)
    if given.write:
        write_block("generators", f"{text}\n{machine()}.")
        plot(rows, ROOT / "docs" / "generators.png")


def full() -> Iterator[Case]:
    """The whole grid."""
    for case in itertools.product(("yamnet", "logmel"), FEDERATIONS, SHARES, METHODS, SEEDS):
        yield Case(*case)


def standard() -> Iterator[Case]:
    """What the docs show, the most telling first."""
    few = ("no fine-tuning", "prototypes only", "gaussian", "vae")
    for seed in SEEDS:
        for federation in FEDERATIONS:
            for method in METHODS:
                yield Case("yamnet", federation, "8", method, seed)
        for share, method in itertools.product(("1 + variance", "1"), few[1:]):
            yield Case("yamnet", "50 sites x 1", share, method, seed)
        for method in few:
            yield Case("logmel", "50 sites x 1", "8", method, seed)


def quick() -> Iterator[Case]:
    """A smoke test."""
    for federation, method in itertools.product(("5 sites x 10",), ("no fine-tuning", "prototypes only", "gaussian")):
        yield Case("yamnet", federation, "8", method, 0)


def quietly() -> None:
    """In a process of the pool: one thread, and no lines of Flower's."""
    os.environ["OMP_NUM_THREADS"] = "1"
    logging.getLogger("flwr").setLevel(logging.ERROR)


def run(case: Case) -> dict[str, Any]:
    """One run, as a row of the CSV."""
    start = time.perf_counter()
    extra = METHODS[case.method]
    overrides = [
        *FEDERATIONS[case.federation],
        *SHARES[case.share],
        *data(case.encoder),
        f"seed={case.seed}",
        "wandb.mode=disabled",
        *(extra or []),
    ]
    settings = compose_settings(overrides)
    kept: dict[str, float] = {}
    if extra is None:
        rows = pooled_rows(settings)
    else:
        with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
            run_in_process(settings, Path(folder), Console(file=nowhere))
            rows = read_jsonl(Path(folder) / "metrics.jsonl")
            if settings.scenario.name == "class_incremental":
                partition = json.loads((Path(folder) / "partition.json").read_text(encoding="utf-8"))
                kept = first_ten(rows, sorted(partition["sites"]["site-000"]["classes"]))
    quality = [row for row in rows if "generator_quality/c2st" in row]
    figures = {name: quality[-1].get(f"generator_quality/{name}") if quality else None for name in FIGURES}
    return {
        **case._asdict(),
        "accuracy_first": rows[0]["accuracy"],
        "accuracy": rows[-1]["accuracy"],
        **kept,
        **figures,
        "seconds": time.perf_counter() - start,
        "bytes_up": sum(row.get("bytes_up", 0) + row.get("bytes_introduction", 0) for row in rows),
        "by_round": json.dumps([round(row["accuracy"], 4) for row in rows]),
    }


def first_ten(rows: list[dict[str, Any]], names: list[str]) -> dict[str, float]:
    """Accuracy on the first site's classes when it left, and at the end; of all prompts."""
    left = [row for row in rows if row["classes_old"] == 0][-1]
    return {
        "accuracy_first_ten_learned": sum(left["per_class"][name] for name in names) / len(names),
        "accuracy_first_ten": sum(rows[-1]["per_class"][name] for name in names) / len(names),
    }


def key(case: Case) -> tuple[str, ...]:
    return tuple(str(part) for part in case)


def key_of(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in Case._fields)


def read(path: Path) -> list[dict[str, Any]]:
    """All rows of the CSV."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row; two benchmarks may write to the same file."""
    short = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
    with FileLock(f"{path}.lock"), path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(short)
    Path(f"{path}.lock").unlink(missing_ok=True)


def tables(rows: list[dict[str, Any]]) -> str:
    """A Markdown table for each encoder and share: methods by federations, accuracy after the first and last round."""
    parts = []
    for encoder, share in dict.fromkeys((row["encoder"], row["share"]) for row in rows):
        here = [row for row in rows if (row["encoder"], row["share"]) == (encoder, share)]
        federations = [name for name in FEDERATIONS if any(row["federation"] == name for row in here)]
        lines = [
            f"{encoder}, {share} a class:\n",
            "| accuracy, first / last round | " + " | ".join(federations) + " | c2st | nn |",
            "|---|" + "---|" * (len(federations) + 2),
        ]
        for method in METHODS:
            cells = []
            own = [row for row in here if row["method"] == method]
            if not own:
                continue
            for federation in federations:
                runs = [row for row in own if row["federation"] == federation]
                first = sum(float(row["accuracy_first"]) for row in runs) / max(1, len(runs))
                last = spread([float(row["accuracy"]) for row in runs]) if runs else "-"
                cells.append(f"{first:.3f} / {last}" if runs else "-")
            for figure in ("c2st", "nn_ratio"):
                found = [float(row[figure]) for row in own if row[figure]]
                cells.append(f"{sum(found) / len(found):.2f}" if found else "-")
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    parts.append(forgetting(rows))
    seeds = sorted({row["seed"] for row in rows})
    seconds = sum(float(row["seconds"]) for row in rows)
    parts.append(f"Seeds {', '.join(seeds)}; {len(rows)} runs, {seconds:.0f} s on one core.")
    return "\n\n".join(part for part in parts if part)


def forgetting(rows: list[dict[str, Any]]) -> str:
    """What becomes of the first ten classes in the incremental federation."""
    lines = ["| incremental: first ten classes | when learned | at the end |", "|---|---|---|"]
    for method in METHODS:
        own = [row for row in rows if row["method"] == method and row["accuracy_first_ten"] and row["share"] == "8"]
        if own:
            learned, kept = (
                spread([float(row[name]) for row in own])
                for name in ("accuracy_first_ten_learned", "accuracy_first_ten")
            )
            lines.append(f"| {method} | {learned} | {kept} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy by round for each federation, mean over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8), sharey=True, layout="constrained")
    styles = ["-", "--", "-.", ":"]
    for axis, federation in zip(axes.flat, FEDERATIONS, strict=True):
        for number, method in enumerate(METHODS):
            own = [
                json.loads(row["by_round"])
                for row in rows
                if (row["encoder"], row["share"], row["federation"], row["method"])
                == ("yamnet", "8", federation, method)
            ]
            if own:
                mean = [sum(values) / len(values) for values in zip(*own, strict=True)]
                rounds = range(1, len(mean) + 1)
                axis.plot(rounds, mean, styles[number % 4], color=f"C{number % 10}", marker=".", label=method)
        axis.set(title=federation, xlabel="round", ylabel="accuracy@1")
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*axes.flat[0].get_legend_handles_labels(), fontsize="small", loc="outside right upper")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
