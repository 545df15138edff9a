"""MLflow with its real library, offline."""

import logging
import sys

import pytest

from fed_a2v.config.compose import compose_settings
from fed_a2v.errors import ConfigError
from tests.callbacks.helpers import Tracked
from tests.refusals import refused

NAMES = ("metrics_file", "mlflow")
ROW = {"round": 1, "accuracy": 0.5, "server/generator_loss": 0.25, "loss": float("nan"), "rejections": ["site 3"]}


def settings(*words):
    return compose_settings(["wandb.mode=disabled", "tracking.mlflow=true", *words])


@pytest.fixture
def _no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def store(folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fed_a2v")
    return client, client.search_runs([experiment.experiment_id])


@pytest.mark.usefixtures("_no_server")
def test_a_resumed_run_goes_on_in_the_same_mlflow_run(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    chosen = settings("wandb.group=those")
    with Tracked(folder, chosen, names=NAMES) as tracker:
        for number in (1, 2):
            tracker.log_round(ROW | {"round": number, "accuracy": number / 10})
    state = tracker.callbacks.state_dict()
    client, (run,) = store(folder)
    assert run.info.status == "FAILED", "it has no results yet"

    tracker = Tracked(folder, chosen, after_round=1, names=NAMES)  # the second round is repeated
    tracker.callbacks.load_state_dict(state)
    with tracker:
        for number in (2, 3):
            tracker.log_round(ROW | {"round": number, "accuracy": number / 10})
        (folder / "report.html").write_text("<p>")
        tracker.finish({"accuracy": 0.3, "best_round": 3, "generator": "vae"})
    client, (run,) = store(folder)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "mine"
    assert run.data.tags["group"] == "those"
    history = client.get_metric_history(run.info.run_id, "accuracy")
    assert sorted({(metric.step, metric.value) for metric in history}) == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert run.data.metrics["best_round"] == 3
    assert "loss" not in run.data.metrics, "NaN is no figure"
    assert run.data.params["generator.name"] == "vae"
    artifacts = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"config.yaml", "results.json", "report.html"}
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}, "nothing in the current folder"


def test_without_it_mlflow_is_not_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with Tracked(tmp_path, compose_settings(["wandb.mode=disabled"]), names=NAMES) as tracker:
        tracker.log_round(ROW)
        tracker.finish({"accuracy": 0.5})
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("missing", ["mlflow.tracking", "sqlalchemy"])
@pytest.mark.usefixtures("_no_server")
def test_a_missing_package_is_named_before_the_first_round(tmp_path, monkeypatch, missing):
    pytest.importorskip("mlflow")
    for name in [name for name in sys.modules if name.startswith("mlflow.store.tracking.sqlalchemy")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with refused(ConfigError, "tracking.mlflow", "pip install", "[mlflow]"), Tracked(tmp_path, settings(), names=NAMES):
        pass


class Broken:
    """A client whose server is gone."""

    def __init__(self, uri):
        self.uri = uri

    def __getattr__(self, name):
        raise ConnectionError(f"{self.uri} does not answer")


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", None])
def test_a_server_that_is_gone_is_one_warning_and_not_the_end_of_a_run(tmp_path, monkeypatch, caplog, uri):
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setattr(tracking, "MlflowClient", Broken)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:10")
    chosen = settings(f"tracking.mlflow_uri={uri or 'null'}")
    with caplog.at_level(logging.WARNING, "fed_a2v"), Tracked(tmp_path, chosen, names=NAMES) as tracker:
        tracker.log_round(ROW)
        tracker.finish({"accuracy": 0.5})
    (message,) = [record.getMessage() for record in caplog.records if record.name == "fed_a2v"]
    assert "ConnectionError" in message
    assert (uri or "http://127.0.0.1:10") in message
    assert tracker.folder.results.exists()
