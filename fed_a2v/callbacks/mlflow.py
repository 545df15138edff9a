"""MLflow: settings, numbers of each round, and at the end the results and the report as artifacts."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fed_a2v.callbacks.base import Callback, RunContext
from fed_a2v.config.tree import dotted_items
from fed_a2v.errors import ConfigError
from fed_a2v.install import install_hint
from fed_a2v.runs.mlflow_store import SQLITE, URI, database
from fed_a2v.storage.files import numbers
from fed_a2v.version import __version__

# MLflow's limits: characters of a value, and parameters of a call.
LONGEST_VALUE, MOST_PARAMETERS = 6000, 100
# What MLflow does unless the user has set it: it sends no telemetry, prints no progress, and gives up early on a server
# that does not answer.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


class MLflow(Callback):
    """One MLflow run in `tracking.mlflow_experiment`, if `tracking.mlflow=true`.

    When a run is resumed, it continues the same MLflow run, and the rounds that MLflow lacks are logged first. Called
    after the report is written, since that is one of the artifacts.
    """

    last = True

    def __init__(self) -> None:
        self.id: str | None = None
        self._client: Any = None

    def state_dict(self) -> dict[str, Any]:
        """The id of the MLflow run."""
        return {} if self.id is None else {"id": self.id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the MLflow run with this id."""
        self.id = state["id"]

    def on_run_start(self, run: RunContext) -> None:
        """Start or continue the MLflow run; after an error, the experiment continues without MLflow.

        Raises:
            ConfigError: MLflow is not installed.
        """
        self.folder, tracking = run.folder, run.config["tracking"]
        if not tracking["mlflow"]:
            return
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        uri = tracking["mlflow_uri"] or os.environ.get(URI) or database(run.folder.path)
        try:
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient

            client = MlflowClient(uri)
        except ImportError as error:  # of MLflow, or of what its database needs
            raise ConfigError(
                f"tracking.mlflow=true needs MLflow and SQLAlchemy ({error}): {install_hint('mlflow')}"
            ) from error
        logged: set[int] = set()
        try:
            if self.id is not None:
                client.update_run(self.id, status="RUNNING")
                logged = {metric.step for metric in client.get_metric_history(self.id, "round")}
        except MlflowException:  # of another store: start again there
            self.id = None
        if self.id is None:
            self.id = self._new_run(client, uri, run)
        self._client = client
        for metrics in run.folder.rows():
            if metrics["round"] not in logged:
                self._log(numbers(metrics), int(metrics["round"]))

    def _new_run(self, client: Any, uri: str, run: RunContext) -> str:
        from mlflow.entities import Param

        name = run.config["tracking"]["mlflow_experiment"]
        found = client.get_experiment_by_name(name)
        # MLflow would put the artifacts into the current folder, wherever the database is.
        beside = Path(uri.removeprefix(SQLITE)).absolute().parent / "mlartifacts" if uri.startswith(SQLITE) else None
        place = None if beside is None else beside.as_uri()
        experiment = client.create_experiment(name, artifact_location=place) if found is None else found.experiment_id
        tags = {"fed_a2v": __version__, "folder": str(run.folder.path)}
        if run.config["wandb"]["group"]:
            tags["group"] = run.config["wandb"]["group"]
        made: str = client.create_run(experiment, run_name=run.folder.path.name, tags=tags).info.run_id
        settings = [
            Param(re.sub(r"[^\w./ :-]", "_", key), str(value)[:LONGEST_VALUE])
            for key, value in dotted_items(run.config)
        ]
        for first in range(0, len(settings), MOST_PARAMETERS):
            client.log_batch(made, params=settings[first : first + MOST_PARAMETERS])
        return made

    def on_round_end(self, metrics: Mapping[str, Any]) -> None:
        """Log the numbers of the round."""
        if self._client is not None:
            self._log(numbers(metrics), int(metrics["round"]))

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self.id, metrics=[Metric(key, float(value), now, step) for key, value in values.items()])

    def on_run_end(self, results: Mapping[str, Any] | None) -> None:
        """Log the results that no round has, and the files; a failed run is marked as failed."""
        if self._client is None:
            return
        try:
            if results is not None:
                self._log_last(results)
        finally:
            self._client.set_terminated(self.id, "FAILED" if results is None else "FINISHED")
            self._client = None

    def _log_last(self, results: Mapping[str, Any]) -> None:
        rows = self.folder.rows()
        known = {key for row in rows for key in row}
        self._log({key: value for key, value in numbers(results).items() if key not in known}, len(rows))
        for path in (self.folder.path / "config.yaml", self.folder.results, self.folder.evaluation, self.folder.report):
            if path.is_file():
                self._client.log_artifact(self.id, str(path))
