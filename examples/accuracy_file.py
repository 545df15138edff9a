"""A custom callback: the accuracy of each round as a CSV file in the run's folder.

PYTHONPATH=examples fed-a2v train +callbacks.accuracy_file._target_=accuracy_file.AccuracyFile
"""

import csv
from collections.abc import Mapping
from typing import Any

from fed_a2v.callbacks.base import Callback, RunContext


class AccuracyFile(Callback):
    """Writes `accuracy.csv`.

    Args:
        digits: number of decimals of an accuracy.
    """

    def __init__(self, digits: int = 4) -> None:
        self.digits = digits

    def on_run_start(self, run: RunContext) -> None:
        """Read the rows of a resumed run from its folder."""
        self.path = run.folder.path / "accuracy.csv"
        self.rows = [self._row(metrics) for metrics in run.folder.rows()]

    def on_round_end(self, metrics: Mapping[str, Any]) -> None:
        """Write the accuracies of all rounds."""
        self.rows.append(self._row(metrics))
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerows([("round", "accuracy"), *self.rows])

    def _row(self, metrics: Mapping[str, Any]) -> tuple[int, str]:
        accuracy = metrics.get("accuracy")
        return metrics["round"], "" if accuracy is None else f"{accuracy:.{self.digits}f}"
