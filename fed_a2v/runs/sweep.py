"""The end of a Hydra sweep: one table of all its jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from fed_a2v.runs.progress import wanted_output
from fed_a2v.runs.table import summary_table


class SummaryCallback(Callback):
    """Writes `summary.csv` and `summary.md` into the sweep's folder and shows the table."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra when all jobs are done."""
        del kwargs
        folder = Path(config.hydra.sweep.dir).absolute()
        console = Console(stderr=wanted_output() == "json")  # there standard output is for the rounds alone
        console.print(summary_table(folder).rich())
        console.print(f"Summary: {folder / 'summary.md'}", markup=False, highlight=False, soft_wrap=True)
