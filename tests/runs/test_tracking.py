import json
import logging
import subprocess
import sys
import time

import numpy as np
import pytest

from fed_a2v.config import ConfigError, compose_settings
from fed_a2v.runs.folder import GUIDE_METRICS
from fed_a2v.runs.tracking import Tracker
from tests.refusals import refused

ROW = {
    "round": 1,
    "accuracy": 0.85,
    "server/generator_loss": 0.25,
    "server/adapter_finetuning_loss": None,
    "loss": float("nan"),
    "bytes_up": 1000,
    "rolled_back": False,
    "rejections": ["site 3: NaN"],
    "per_class": {"dog": 1.0},
}


@pytest.fixture(scope="module")
def offline():
    return compose_settings("wandb.mode=offline wandb.project=tests")


@pytest.fixture(scope="module")
def disabled():
    return compose_settings("wandb.mode=disabled")


class FakeRun:
    """A W&B run that records what it is told, and fails where it is told to."""

    def __init__(self, failing=()):
        self.id, self.failing, self.calls, self.summary = "run-id", failing, [], {}

    def log(self, row, step):
        self.calls.append(("log", row, step))
        if "log" in self.failing:
            raise ConnectionError("no network")

    def finish(self, exit_code):
        self.calls.append(("finish", exit_code))
        if "finish" in self.failing:
            raise BrokenPipeError("service gone")


@pytest.fixture
def fake_wandb(monkeypatch):
    import wandb

    run = FakeRun()
    run.arguments = {}

    def init(**arguments):
        if "init" in run.failing:
            raise wandb.errors.CommError("no service")
        run.arguments = arguments
        return run

    monkeypatch.setattr(wandb, "init", init)
    return run


def test_a_run_leaves_config_partition_rows_and_results(tmp_path, disabled):
    with Tracker(tmp_path, disabled, {"0": [1, 2]}) as tracker:
        tracker.log_round(ROW)
        assert tracker.folder.rows()[0]["accuracy"] == 0.85  # on disk before the run ends
        tracker.finish({"accuracy": 0.85})
    assert "mode: disabled" in (tmp_path / "config.yaml").read_text()
    assert json.loads((tmp_path / "results.json").read_text()) == {"accuracy": 0.85}
    assert json.loads((tmp_path / "partition.json").read_text()) == {"0": [1, 2]}


def test_each_round_is_one_call_with_its_finite_numbers_and_the_rounds_step(tmp_path, offline, fake_wandb):
    with Tracker(tmp_path, offline) as tracker:
        tracker.log_round(ROW)
        tracker.log_round(dict.fromkeys(GUIDE_METRICS, 0.5) | {"round": 2})
        tracker.finish({"accuracy": 0.9})
    assert fake_wandb.calls == [
        (
            "log",
            {"round": 1, "accuracy": 0.85, "server/generator_loss": 0.25, "bytes_up": 1000, "rolled_back": False},
            1,
        ),
        ("log", dict.fromkeys(GUIDE_METRICS, 0.5) | {"round": 2}, 2),
        ("finish", 0),
    ]
    assert fake_wandb.summary == {"accuracy": 0.9}


def test_a_resumed_run_goes_on_with_its_wandb_id_and_its_earlier_rows(tmp_path, offline, fake_wandb):
    with Tracker(tmp_path, offline) as tracker:
        assert tracker.wandb_id == "run-id"
        for number in (1, 2):
            tracker.log_round({"round": number})
    with Tracker(tmp_path, offline, after_round=1, wandb_id=tracker.wandb_id) as tracker:
        assert [row["round"] for row in tracker.folder.rows()] == [1]
    assert fake_wandb.arguments["id"] == "run-id"
    assert fake_wandb.arguments["resume"] == "allow"


def test_an_exception_leaves_no_results_and_marks_the_wandb_run_as_failed(tmp_path, offline, fake_wandb):
    with pytest.raises(ZeroDivisionError), Tracker(tmp_path, offline):
        _ = 1 / 0
    assert fake_wandb.calls == [("finish", 1)]
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("failing", [["init"], ["log"], ["finish"], ["log", "finish"]])
def test_wandb_failing_is_one_warning_and_never_the_end_of_a_run(tmp_path, offline, fake_wandb, caplog, failing):
    fake_wandb.failing = failing
    with caplog.at_level(logging.WARNING, "fed_a2v"), Tracker(tmp_path, offline) as tracker:
        for number in (1, 2, 3):
            tracker.log_round({"round": number})
        tracker.finish({"accuracy": 0.5})
    assert len(tracker.folder.rows()) == 3
    assert tracker.folder.results.exists()
    (message,) = caplog.messages
    assert {"init": "CommError", "log": "ConnectionError", "finish": "BrokenPipeError"}[failing[0]] in message
    assert len([call for call in fake_wandb.calls if call[0] == "log"]) <= (1 if "log" in failing else 3)
    assert fake_wandb.calls[-1:] == ([] if "init" in failing else [("finish", 0)])


def test_wandb_is_not_imported_where_it_is_disabled(tmp_path):
    code = f"""
import sys
import time
from pathlib import Path
from fed_a2v.config import compose_settings
from fed_a2v.runs.tracking import Tracker
with Tracker(Path({str(tmp_path)!r}), compose_settings("wandb.mode=disabled")) as tracker:
    tracker.log_round({{"round": 1}})
assert "wandb" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wandb_offline_writes_inside_the_run_folder_quietly_and_finishes(tmp_path, offline, capfd, caplog):
    with Tracker(tmp_path / "run", offline) as tracker:
        tracker.log_round(ROW)
        tracker.finish({"accuracy": 0.85})
    (written,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert tracker.wandb_id in written.name
    # W&B's own process may put the bytes on the disk a moment after `finish` returns.
    until = time.monotonic() + 240
    while b"server/generator_loss" not in (content := written.read_bytes()) and time.monotonic() < until:
        time.sleep(0.02)
    assert b"server/generator_loss" in content
    ours = [record for record in caplog.records if record.name == "fed_a2v"]
    assert [record for record in ours if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")


# What the last round leaves, and TensorBoard


@pytest.fixture
def last_round(tmp_path):
    """A run's folder with figures by class and a map, as the last round leaves them."""
    from fed_a2v.core.projection import EmbeddingMap
    from fed_a2v.runs.maps import save_map

    def write(folder):
        rows = {"dog": {"accuracy": 1.0, "cosine": float("nan")}, "rain": {"accuracy": 0.5, "clips": 3}}
        (folder / "evaluation.json").write_text(json.dumps({"classes": rows}))
        points = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
        names, sites = np.array(["dog", "rain"]), np.array(["site-000"] * 4 + [""] * 2)
        synthetic = np.arange(6) >= 4
        counts = np.where(synthetic, 0, 3)
        save_map(
            folder / "map.npz",
            EmbeddingMap(points, np.ones(3, np.float32) / 3, np.arange(6) % 2, synthetic, counts, sites, names),
        )

    return write


def test_figures_by_class_and_the_map_are_media_at_wandb(tmp_path, offline, fake_wandb, last_round, monkeypatch):
    monkeypatch.setattr(fake_wandb, "log", lambda media, step=None: fake_wandb.calls.append(media))
    with Tracker(tmp_path, offline) as tracker:
        last_round(tmp_path)
        tracker.finish({"accuracy": 0.85})
    media = fake_wandb.calls[0]
    assert media["classes"].columns == ["class", "accuracy", "cosine", "clips"]
    assert media["classes"].data == [["dog", 1.0, None, None], ["rain", 0.5, None, 3]]
    assert media["embeddings"].image.size == (700, 600)


@pytest.mark.parametrize(("mode", "warnings"), [("offline", 0), ("online", 1)])
def test_a_missing_matplotlib_is_a_warning_to_those_who_watch_wandb(
    tmp_path, fake_wandb, last_round, monkeypatch, caplog, mode, warnings
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(fake_wandb, "log", lambda media, step=None: fake_wandb.calls.append(media))
    with Tracker(tmp_path, compose_settings(f"wandb.mode={mode}")) as tracker:
        last_round(tmp_path)
        tracker.finish({"accuracy": 0.85})
    assert list(fake_wandb.calls[0]) == ["classes"]
    assert [record.levelno for record in caplog.records if "fed-a2v[plots]" in record.message] == (
        [logging.WARNING] * warnings
    )


def test_tensorboard_holds_the_numbers_of_every_round_and_the_map(tmp_path, last_round):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    chosen = compose_settings("wandb.mode=disabled tracking.tensorboard=true")
    with Tracker(tmp_path, chosen) as tracker:
        for number in (1, 2, 3):
            tracker.log_round(ROW | {"round": number, "accuracy": number / 10})
    with Tracker(tmp_path, chosen, after_round=2) as tracker:  # the third round is repeated
        tracker.log_round(ROW | {"round": 3, "accuracy": 0.9})
        last_round(tmp_path)
        tracker.finish({"accuracy": 0.9, "rounds": 3})
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    accuracies = [(event.step, round(event.value, 6)) for event in found.Scalars("accuracy")]
    assert accuracies == [(1, 0.1), (2, 0.2), (3, 0.9)]
    assert "loss" not in found.Tags()["scalars"], "NaN makes no curve"
    assert found.Tags()["images"] == ["embeddings"]


def test_tensorboard_that_is_missing_is_an_error_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    chosen = compose_settings("wandb.mode=disabled tracking.tensorboard=true")
    with refused(ConfigError, "tracking.tensorboard=true", "fed-a2v[tensorboard]"), Tracker(tmp_path, chosen):
        pass
