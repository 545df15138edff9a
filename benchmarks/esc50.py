"""Does the server step help, and does the generator? ESC-50 in hard federations, on the same seeds.

    FED_A2V_DATA=FOLDER python benchmarks/esc50.py [TABLE ...] [--seeds 0,1,2] [--write]

FOLDER holds `esc50_yamnet.npz` (embeddings of a frozen YAMNet with target and fold) and, for the log-mel tables,
`esc50/` in the official layout. Folds 1 to 3 train, fold 4 tests; 5 rounds, 5 local epochs, and for every method
the same number of optimiser steps. A table of five methods and three seeds takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine, spread, write_block
from rich.console import Console

from fed_a2v.compare import compare

METHODS = ("FedAvg", "prototypes", "gaussian", "vae", "pooled")
# Overrides of each table, and where its data lies.
TABLES: dict[str, tuple[list[str], str]] = {
    "yamnet 50x1": (["experiment=esc50_50x1"], "yamnet"),
    "yamnet 50x1 one mean": (["experiment=esc50_50x1", "share=mean"], "yamnet"),
    "yamnet 5x10": (["experiment=esc50_5x10"], "yamnet"),
    "logmel 50x1": (["experiment=esc50_50x1"], "logmel"),
    "logmel 5x10": (["experiment=esc50_5x10"], "logmel"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"default: all of {', '.join(TABLES)}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/benchmarks.md")
    given = parser.parse_args()
    for name in given.tables or TABLES:
        start = time.perf_counter()
        runs = [run(name, int(seed)) for seed in given.seeds.split(",")]
        text = table(runs) + f"\n{len(runs)} seeds, {time.perf_counter() - start:.0f} s. {machine()}."
        print(f"## {name}\n\n{text}\n", flush=True)
        if given.write:
            write_block(name, text)


def run(name: str, seed: int) -> dict[str, list[dict[str, Any]]]:
    """The rows of every method of a table, for one seed."""
    overrides, kind = TABLES[name]
    with tempfile.TemporaryDirectory() as folder, Console(file=Path(os.devnull).open("w")) as quiet:
        logging.getLogger("flwr").setLevel(logging.ERROR)
        return compare(
            [*overrides, *data(kind), f"seed={seed}", "wandb.mode=disabled"],
            Path(folder),
            [method for method in METHODS if method != "vae"],
            quiet,
        )


def data(kind: str) -> list[str]:
    """Overrides that name the data."""
    root = os.environ.get("FED_A2V_DATA")
    if not root:
        raise SystemExit("set FED_A2V_DATA to the folder that holds esc50_yamnet.npz and esc50/")
    if kind == "yamnet":
        return ["dataset=embeddings", f"dataset.path={Path(root) / 'esc50_yamnet.npz'}"]
    return ["dataset=esc50", f"dataset.root={Path(root) / 'esc50'}"]


def table(runs: list[dict[str, list[dict[str, Any]]]]) -> str:
    """Accuracy by round, and what a run costs, as Markdown."""
    lines = ["| round | " + " | ".join(METHODS) + " |", "|---|" + "---|" * len(METHODS)]
    for position, row in enumerate(runs[0]["vae"]):
        cells = [spread([seed[method][position]["accuracy"] for seed in runs]) for method in METHODS]
        lines.append(f"| {row['round']} | " + " | ".join(cells) + " |")
    for label, key, scale in (("seconds a run", "seconds", 1.0), ("MB up a run", "bytes_up", 1e-6)):
        cells = []
        for method in METHODS:
            values = [sum(row.get(key, 0) for row in seed[method]) * scale for seed in runs]
            cells.append(f"{sum(values) / len(values):.0f}" if sum(values) else "-")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
