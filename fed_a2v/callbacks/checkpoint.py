"""Saves the complete state of a run, so that it can be resumed after a stop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_a2v.callbacks.base import Callback, RunContext
from fed_a2v.config.sections.output import CheckpointSettings
from fed_a2v.runs.checkpoint import save_state
from fed_a2v.runs.rounds import best_row


class Checkpoint(Callback):
    """Saves `checkpoints/state_round_N.pt` every `checkpoint.frequency` rounds and after the last.

    It is called after the other callbacks, whose states it saves, and after `metrics_file`: a run that is killed
    between the two repeats the round.
    """

    essential = True
    last = True

    def on_run_start(self, run: RunContext) -> None:
        """Read the section `checkpoint`."""
        self.run, self.settings = run, CheckpointSettings(**run.config["checkpoint"])

    def on_round_end(self, metrics: Mapping[str, Any]) -> None:
        """Save the state if it is due, and delete older ones."""
        if self._is_due(metrics):
            best = self.settings.keep_best and self._is_best(metrics)
            save_state(self.run.folder.path, self.run.state(), keep=self.settings.keep, best=best)

    def _is_due(self, metrics: Mapping[str, Any]) -> bool:
        number = int(metrics["round"])
        return number % self.settings.frequency == 0 or number == self.run.config["rounds"]

    def _is_best(self, metrics: Mapping[str, Any]) -> bool:
        """Whether the round is better than all rounds saved before it; see `best_row`."""
        best = best_row(row for row in self.run.folder.rows() if self._is_due(row))
        return best is not None and best["round"] == metrics["round"]
