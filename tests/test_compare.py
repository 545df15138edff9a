"""An experiment beside its yardsticks."""

import json
import shutil

import pytest

from fed_a2v.compare import YARDSTICKS, compare, pooled_rows
from fed_a2v.config import ConfigError, compose_settings
from fed_a2v.federation.engine import run_in_process
from tests.refusals import refused

OVERRIDES = (
    *("experiment=quick", "rounds=2", "adapters.hidden_width=64"),
    *("finetune.first_steps=30", "finetune.steps=10", "site.epochs=5"),
)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    return folder, compare([*OVERRIDES, "generator=gaussian"], folder, ("FedAvg", "prototypes", "pooled"))


def results(folder, name):
    return json.loads((folder / name / "results.json").read_text())


def test_the_experiment_comes_last_after_the_yardsticks_asked_for(compared):
    _, rows = compared
    assert list(rows) == ["FedAvg", "prototypes", "pooled", "gaussian"]
    assert all([row["round"] for row in run] == [1, 2] for run in rows.values())


def test_every_run_differs_from_the_experiment_in_the_yardstick_alone(compared):
    folder, _ = compared
    settings = {
        name: dict(compose_settings([*OVERRIDES, "generator=gaussian", *extra]).model_dump(by_alias=True))
        for name, extra in (
            ("FedAvg", YARDSTICKS["FedAvg"]),
            ("prototypes", YARDSTICKS["prototypes"]),
            ("gaussian", []),
        )
    }
    mine = settings["gaussian"]
    assert {key for key in mine if settings["FedAvg"][key] != mine[key]} == {"finetune"}
    assert {key for key in mine if settings["prototypes"][key] != mine[key]} == {"generator"}
    for name in settings:
        assert results(folder, name)["seed"] == 0


def test_all_start_from_the_same_average(compared):
    _, rows = compared
    first = {name: run[0]["accuracy_before"] for name, run in rows.items() if name != "pooled"}
    assert len(set(first.values())) == 1


def test_the_yardsticks_are_what_they_say(compared):
    folder, rows = compared
    assert all(row["accuracy"] == row["accuracy_before"] for row in rows["FedAvg"])
    assert results(folder, "prototypes")["generator"] == "none"
    assert results(folder, "FedAvg")["generator"] == "no fine-tuning"
    assert not (folder / "pooled").exists()


def test_plain_averaging_is_the_lower_and_pooled_training_the_upper_bound(compared):
    _, rows = compared
    final = {name: run[-1]["accuracy"] for name, run in rows.items()}
    assert final["FedAvg"] < final["prototypes"]
    assert final["pooled"] > final["FedAvg"] + 0.1


def test_each_runs_results_have_its_gain_over_fedavg(compared):
    folder, rows = compared
    fedavg = rows["FedAvg"][-1]["accuracy"]
    for name in ("prototypes", "gaussian"):
        last, found = rows[name][-1], results(folder, name)
        assert found["gain_over_fedavg"] == last["accuracy"] - fedavg > 0
        assert found["gain_first_round"] == rows[name][0]["accuracy"] - rows[name][0]["accuracy_before"] > 0
    assert "gain_over_fedavg" not in results(folder, "FedAvg")


def test_a_run_beside_fedavg_with_other_settings_is_not_compared_with_it(compared, tmp_path):
    folder, _ = compared
    shutil.copytree(folder / "FedAvg", tmp_path / "FedAvg")
    for name, words in (("same", ()), ("other", ("seed=1",))):
        settings = compose_settings([*OVERRIDES, "report=false", "generator=none", *words])
        run_in_process(settings, tmp_path / name)
    assert results(tmp_path, "same")["gain_over_fedavg"] == results(folder, "prototypes")["gain_over_fedavg"]
    assert results(tmp_path, "other")["gain_over_fedavg"] is None


def test_pooled_training_with_a_t5_adapter_has_t5s_figures():
    t5 = ("adapters=flux", "adapters.t5_width=16", "adapters.t5_tokens=2", "rounds=1")
    (row,) = pooled_rows(compose_settings([*OVERRIDES, *t5]))
    assert 0 <= row["t5/accuracy"] <= 1
    assert 0 < row["t5/cosine"] < 1
    assert "t5/cosine" not in pooled_rows(compose_settings([*OVERRIDES, "rounds=1"]))[0]


def test_the_comparison_is_written_down(compared):
    folder, rows = compared
    assert json.loads((folder / "comparison.json").read_text()) == rows
    table = (folder / "comparison.md").read_text()
    for name, run in rows.items():
        assert name in table
        assert f"{run[-1]['accuracy']:.3f}" in table


def test_an_experiment_that_is_itself_a_yardstick_runs_once(tmp_path):
    rows = compare([*OVERRIDES, "rounds=1", "finetune.enabled=false"], tmp_path, ("FedAvg",))
    assert list(rows) == ["FedAvg"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["FedAvg"]


def test_pooled_training_is_seeded_and_leaves_no_test_clip_in_the_training():
    settings = compose_settings([*OVERRIDES, "site.epochs=40"])
    rows = pooled_rows(settings)
    assert rows == pooled_rows(settings)
    assert 0.5 < rows[-1]["accuracy"] <= rows[-1]["accuracy_at_5"]
    other = pooled_rows(compose_settings([*OVERRIDES, "site.epochs=40", "dataset.train_folds=[1]"]))
    assert other[-1]["accuracy"] <= rows[-1]["accuracy"]


def test_wrong_settings_are_refused_before_anything_runs(tmp_path):
    with refused(ConfigError, "rouns", "rounds"):
        compare(["rouns=1"], tmp_path)
    assert not list(tmp_path.iterdir())
