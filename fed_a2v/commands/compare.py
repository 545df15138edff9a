"""`fed-a2v compare`: an experiment beside its yardsticks."""

from __future__ import annotations

import argparse
import re
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
    from fed_a2v.runs.table import comparison_table, rounds_table

    # A comma also stands in names such as "FedAvg, as many steps".
    yardsticks = [name.strip() for name in re.split(r",(?! as many)", given.yardsticks) if name.strip()]
    if unknown := [name for name in yardsticks if name not in YARDSTICKS]:
        raise ConfigError(f"--with={unknown[0]}: choose from {'; '.join(YARDSTICKS)}")
    folder = (given.out or Path("outputs/compare") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}").absolute()
    rows = compare(given.overrides, folder, yardsticks)
    label = list(rows)[-1]
    console = Console()
    console.print(rounds_table(rows[label], f"{label}, round by round").rich())
    console.print(comparison_table(rows, "Accuracy after each round, from the same seed").rich())
    final = {name: run[-1].get("accuracy") for name, run in rows.items()}
    console.print(
        "Final accuracy: " + ", ".join(f"{name} {value:.3f}" for name, value in final.items() if value is not None)
    )
    console.print(f"Results: {folder}", markup=False, highlight=False, soft_wrap=True)
    if (report := folder / "report.html").is_file():
        console.print(f"Report: {report}", markup=False, highlight=False, soft_wrap=True)
