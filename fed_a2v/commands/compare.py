"""`fed-a2v compare`: an experiment beside its yardsticks."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from rich.console import Console

from fed_a2v.config import ConfigError

USAGE = """\
fed-a2v compare [KEY=VALUE ...]    the same experiment beside plain FedAvg, prototypes only and pooled training
"""


def run(words: list[str]) -> None:
    """Run the experiment and its yardsticks, and show both tables."""
    parser = argparse.ArgumentParser("fed-a2v compare", description="An experiment beside its yardsticks.")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="folder for the runs; default outputs/compare/DATE_TIME")
    parser.add_argument("--with", dest="yardsticks", default="FedAvg,prototypes,pooled", help="default: %(default)s")
    given = parser.parse_args(words)

    from fed_a2v.compare import YARDSTICKS, compare
    from fed_a2v.runs.folder import RunFolder
    from fed_a2v.runs.rounds import closing_lines
    from fed_a2v.runs.table import accuracy_cell, comparison_table, rounds_table

    yardsticks = [name for name in given.yardsticks.split(",") if name]
    if unknown := [name for name in yardsticks if name not in YARDSTICKS]:
        raise ConfigError(f"--with={unknown[0]}: choose from {', '.join(YARDSTICKS)}")
    folder = (given.out or Path("outputs/compare") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}").absolute()
    rows = compare(given.overrides, folder, yardsticks)
    label = list(rows)[-1]
    console = Console()
    console.print(rounds_table(rows[label], f"{label}, round by round").rich())
    for line in closing_lines(rows[label], RunFolder(folder / label).read_results()):
        console.print(line, markup=False, highlight=False)
    console.print(comparison_table(rows, "Accuracy after each round, same seed and same optimiser steps").rich())
    if any("t5/accuracy" in row for run in rows.values() for row in run):
        console.print(comparison_table(rows, "T5 accuracy after each round", "t5/accuracy").rich())
    final = {name: accuracy_cell(run[-1], 3) for name, run in rows.items()}
    console.print("Final accuracy: " + ", ".join(f"{name} {shown}" for name, shown in final.items() if shown != "-"))
    console.print(f"Results: {folder}", markup=False, highlight=False, soft_wrap=True)
    if (report := folder / "report.html").is_file():
        console.print(f"Report: {report}", markup=False, highlight=False, soft_wrap=True)
