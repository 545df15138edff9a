"""The files of a run: settings and environment at its start, one row per round, and the results at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_a2v.callbacks.base import Callback, RunContext
from fed_a2v.config.compose import to_yaml
from fed_a2v.core.server_step import ServerStep
from fed_a2v.encoders.targets_file import save_targets
from fed_a2v.runs.environment import environment
from fed_a2v.storage.files import write_json


class MetricsFile(Callback):
    """Writes `config.yaml`, `partition.json`, `targets.npz`, `environment.json`, `metrics.jsonl`, `evaluation.json`
    (after the last round) and last `results.json`, which marks the run as finished.
    """  # noqa: D205

    essential = True

    def on_run_start(self, run: RunContext) -> None:
        """Prepare the folder; rows of later rounds than the last finished one are removed."""
        self.folder, self.rounds = run.folder, run.config["rounds"]
        run.folder.start(to_yaml(run.config), run.partition, run.rounds_done)
        save_targets(run.prompts, run.folder.targets)
        write_json(run.folder.environment, environment())

    def on_evaluate_end(self, round_number: int, step: ServerStep, evaluation: Mapping[str, Any]) -> None:
        """Write the figures by class after the last round."""
        if round_number == self.rounds:
            write_json(self.folder.evaluation, evaluation)

    def on_round_end(self, metrics: Mapping[str, Any]) -> None:
        """Append the row."""
        self.folder.append(metrics)

    def on_run_end(self, results: Mapping[str, Any] | None) -> None:
        """Write the results of a finished run."""
        if results is not None:
            self.folder.write_results(results)
