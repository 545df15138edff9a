import json
import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.install import install_hint
from fed_a2v.runs.folder import GUIDE_METRICS
from fed_a2v.runs.wandb_file import logged_rounds
from tests.callbacks.helpers import Tracked
from tests.flower import REPOSITORY, wait_until
from tests.refusals import refused
from tests.wandb_files import rows_at_wandb

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
    """A W&B run that records its calls, and fails in the given ones."""

    def __init__(self, failing=()):
        self.id, self.failing, self.calls, self.summary, self.starting_step = "run-id", failing, [], {}, 0

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
    with Tracked(tmp_path, disabled, {"0": [1, 2]}) as tracker:
        tracker.log_round(ROW)
        assert tracker.folder.rows()[0]["accuracy"] == 0.85  # on disk before the run ends
        tracker.finish({"accuracy": 0.85})
    assert "mode: disabled" in (tmp_path / "config.yaml").read_text()
    assert json.loads((tmp_path / "results.json").read_text()) == {"accuracy": 0.85}
    assert json.loads((tmp_path / "partition.json").read_text()) == {"0": [1, 2]}


def test_each_round_is_one_call_with_its_finite_numbers_and_the_rounds_step(tmp_path, offline, fake_wandb):
    with Tracked(tmp_path, offline) as tracker:
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
    with Tracked(tmp_path, offline) as tracker:
        assert tracker.wandb_id == "run-id"
        for number in (1, 2):
            tracker.log_round({"round": number})
    with Tracked(tmp_path, offline, after_round=1, wandb_id=tracker.wandb_id) as tracker:
        assert [row["round"] for row in tracker.folder.rows()] == [1]
    assert fake_wandb.arguments["id"] == "run-id"
    assert fake_wandb.arguments["resume"] == "allow"


@pytest.mark.parametrize(("starting_step", "lacking"), [(0, [1, 2, 3]), (3, [3]), (4, []), (5, [])])
def test_online_what_the_server_lacks_is_logged_when_a_run_is_resumed(tmp_path, fake_wandb, starting_step, lacking):
    """W&B reports its step and drops earlier ones. The fourth round may have arrived before the kill."""
    online = compose_settings("wandb.mode=online")
    with Tracked(tmp_path, online) as tracker:
        for number in (1, 2, 3):
            tracker.log_round({"round": number})
    fake_wandb.starting_step = starting_step
    fake_wandb.calls.clear()
    with Tracked(tmp_path, online, after_round=3, wandb_id="run-id") as tracker:
        for number in (4, 5):
            tracker.log_round({"round": number})
    logged = [call[1]["round"] for call in fake_wandb.calls if call[0] == "log"]
    assert logged == [*lacking, *(number for number in (4, 5) if number >= starting_step)]


def part_of_a_run(folder, after, last, wandb_id=None, mode="offline"):
    """The rounds after `after`, with 300 figures each; returns the id at W&B."""
    with Tracked(folder, compose_settings(f"wandb.mode={mode}"), after_round=after, wandb_id=wandb_id) as tracker:
        for number in range(after + 1, last + 1):
            tracker.log_round({"round": number, **{f"figure/{key}": number + key / 1000 for key in range(300)}})
        return tracker.wandb_id


def killed_run(folder, last):
    """A run of a process that is killed directly after a round; returns the id at W&B."""
    code = f"""
import os
from pathlib import Path
from tests.callbacks import test_trackers

def killed(tracker, *given):
    print(tracker.wandb_id, flush=True)
    os.kill(os.getpid(), 9)

test_trackers.Tracked.__exit__ = killed
test_trackers.part_of_a_run(Path({str(folder)!r}), 0, {last})
"""
    # Its W&B process must be separate from that of other tests, and end with it.
    own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=own, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        wandb_id, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    wait_until(lambda: not writes_for(process.pid), "the end of W&B's process")
    return wandb_id.strip()


def writes_for(pid):
    """Whether the W&B process of that process, which may have ended, still runs."""
    words = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return any("wandb-core" in " ".join(command) and str(pid) in command for command in words)


def rounds_at_wandb(folder):
    """Round and last figure of each row in W&B's files."""
    rows = rows_at_wandb(folder)
    assert all(row["_step"] == row["round"] for row in rows)
    return [(row["round"], row["figure/299"]) for row in rows]


def written(folder, last):
    """`rounds_at_wandb` once W&B's own process has brought the last round to the disk."""
    wait_until(lambda: last in dict(rounds_at_wandb(folder)), f"round {last} on the disk")
    return rounds_at_wandb(folder)


def figures(numbers):
    return [(number, number + 0.299) for number in numbers]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize("first", [3, 12], ids=["nothing on the disk", "some blocks on the disk"])
def test_wandb_has_every_round_once_after_a_kill(tmp_path, first):
    wandb_id = killed_run(tmp_path, first)
    # The last round is repeated, as after a kill before its state was saved.
    part_of_a_run(tmp_path, first - 1, first + 2, wandb_id)
    assert written(tmp_path, first + 2) == figures(range(1, first + 3))


def test_wandb_is_given_nothing_twice_that_it_has(tmp_path):
    wandb_id = part_of_a_run(tmp_path, 0, 3)
    assert written(tmp_path, 3) == figures([1, 2, 3])
    part_of_a_run(tmp_path, 2, 5, wandb_id)
    assert written(tmp_path, 5) == figures([1, 2, 3, 4, 5])


def test_wandb_is_given_the_rounds_that_were_done_without_it(tmp_path):
    part_of_a_run(tmp_path, 0, 2, mode="disabled")
    part_of_a_run(tmp_path, 2, 3)
    assert written(tmp_path, 3) == figures([1, 2, 3])


def test_the_rounds_in_wandbs_files_are_read_up_to_where_they_were_cut(tmp_path):
    wandb_id = part_of_a_run(tmp_path, 0, 12)
    written(tmp_path, 12)
    (path,) = tmp_path.glob(f"wandb/offline-run-*-{wandb_id}/run-*.wandb")
    content = path.read_bytes()
    assert len(content) > 2 * 32768, "records lie across blocks"
    assert logged_rounds(tmp_path, wandb_id) == set(range(1, 13))
    assert logged_rounds(tmp_path, "another") == set()
    for size in (0, 5, 7, 12, 32768, 32770, len(content) // 2):
        path.write_bytes(content[:size])
        found = logged_rounds(tmp_path, wandb_id)
        assert found == set(range(1, len(found) + 1))
        assert len(found) < 12


def test_an_exception_leaves_no_results_and_marks_the_wandb_run_as_failed(tmp_path, offline, fake_wandb):
    with pytest.raises(ZeroDivisionError), Tracked(tmp_path, offline):
        _ = 1 / 0
    assert fake_wandb.calls == [("finish", 1)]
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("failing", [["init"], ["log"], ["finish"], ["log", "finish"]])
def test_wandb_failing_is_one_warning_and_never_the_end_of_a_run(tmp_path, offline, fake_wandb, caplog, failing):
    fake_wandb.failing = failing
    with caplog.at_level(logging.WARNING, "fed_a2v"), Tracked(tmp_path, offline) as tracker:
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
from pathlib import Path
from fed_a2v.config.compose import compose_settings
from tests.callbacks.helpers import Tracked
with Tracked(Path({str(tmp_path)!r}), compose_settings("wandb.mode=disabled")) as tracker:
    tracker.log_round({{"round": 1}})
assert "wandb" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_wandb_offline_writes_inside_the_run_folder_quietly_and_finishes(tmp_path, offline, capfd, caplog):
    with Tracked(tmp_path / "run", offline) as tracker:
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


# Files of the last round, and TensorBoard


@pytest.fixture
def last_round(tmp_path):
    """A run's folder with the figures by class and the map of the last round."""
    from fed_a2v.core.projection import EmbeddingMap
    from fed_a2v.runs.embedding_map import save_map

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
    with Tracked(tmp_path, offline) as tracker:
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
    with Tracked(tmp_path, compose_settings(f"wandb.mode={mode}")) as tracker:
        last_round(tmp_path)
        tracker.finish({"accuracy": 0.85})
    assert list(fake_wandb.calls[0]) == ["classes"]
    assert [record.levelno for record in caplog.records if install_hint("plots") in record.message] == (
        [logging.WARNING] * warnings
    )


def test_tensorboard_holds_the_numbers_of_every_round_and_the_map(tmp_path, last_round):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    chosen = compose_settings("wandb.mode=disabled tracking.tensorboard=true")
    with Tracked(tmp_path, chosen) as tracker:
        for number in (1, 2, 3):
            tracker.log_round(ROW | {"round": number, "accuracy": number / 10})
    with Tracked(tmp_path, chosen, after_round=2) as tracker:  # the third round is repeated
        tracker.log_round(ROW | {"round": 3, "accuracy": 0.9})
        last_round(tmp_path)
        tracker.finish({"accuracy": 0.9, "rounds": 3})
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    accuracies = [(event.step, round(event.value, 6)) for event in found.Scalars("accuracy")]
    assert accuracies == [(1, 0.1), (2, 0.2), (3, 0.9)]
    assert "loss" not in found.Tags()["scalars"], "NaN makes no curve"
    assert found.Tags()["images"] == ["embeddings"]


def events_in(folder):
    """The step and value of every scalar "accuracy" in the event files, whatever TensorBoard would show of them."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return [
        (event.step, round(value.tensor.float_val[0], 6))
        for path in sorted((folder / "tensorboard").glob("events*"))
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag == "accuracy"
    ]


@pytest.mark.parametrize("before", ["tracked", "untracked", "an older run"])
def test_tensorboard_has_every_round_once_after_a_kill(tmp_path, before):
    with_it, without = (
        compose_settings(f"wandb.mode=disabled tracking.tensorboard={given}") for given in ("true", "false")
    )
    if before == "an older run":
        with Tracked(tmp_path, with_it) as tracker:
            tracker.log_round(ROW | {"round": 1, "accuracy": 0.7})
    with Tracked(tmp_path, without if before == "untracked" else with_it) as tracker:
        for number in (1, 2, 3):
            tracker.log_round(ROW | {"round": number, "accuracy": number / 10})
    with Tracked(tmp_path, with_it, after_round=2) as tracker:
        for number in (3, 4):
            tracker.log_round(ROW | {"round": number, "accuracy": number / 10})
    assert events_in(tmp_path) == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]


def test_tensorboard_that_is_missing_is_an_error_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    chosen = compose_settings("wandb.mode=disabled tracking.tensorboard=true")
    with refused(ConfigError, "tracking.tensorboard=true", install_hint("tensorboard")), Tracked(tmp_path, chosen):
        pass
