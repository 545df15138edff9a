"""Comparison of an experiment with its baselines."""

import csv
import json
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from fed_a2v import arms
from fed_a2v import pooled as pooled_module
from fed_a2v.arms import ArmError, Run, usual_jobs
from fed_a2v.compare import Comparison, compare, cross_validate
from fed_a2v.config.baselines import BASELINES
from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.schema import Settings, cache_dir
from fed_a2v.core import training
from fed_a2v.core.statistics import PrototypeBatch
from fed_a2v.core.zero_shot import BilinearMap
from fed_a2v.data.errors import DataError
from fed_a2v.data.site import load_clips
from fed_a2v.federation.client import local_training as site_module
from fed_a2v.federation.factory import prompt_set
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.pooled import pooled_rows
from fed_a2v.report.collect import collect
from fed_a2v.runs.folder import RunFolder
from fed_a2v.runs.intervals import crossed_table, paired_interval
from fed_a2v.runs.speed import without_clock
from fed_a2v.storage.files import read_jsonl
from tests.refusals import refused

OVERRIDES = (
    *("experiment=quick", "rounds=2", "adapters.hidden_width=64"),
    *("finetune.first_steps=30", "finetune.steps=10", "site.epochs=5"),
)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    words = [*OVERRIDES, "generator=gaussian", "report=false"]
    return folder, compare(words, folder, ("FedAvg", "prototypes", "pooled"))


def results(folder, name):
    return json.loads((folder / name / "results.json").read_text())


def test_the_experiment_comes_last_after_the_requested_baselines(compared):
    _, rows = compared
    assert list(rows) == ["FedAvg", "prototypes", "pooled", "gaussian"]
    assert all([row["round"] for row in run] == [1, 2] for run in rows.values())


def test_every_baseline_differs_from_the_experiment_in_its_own_settings_only(compared):
    folder, _ = compared
    settings = {
        name: dict(compose_settings([*OVERRIDES, "generator=gaussian", *extra]).model_dump(by_alias=True))
        for name, extra in (
            ("FedAvg", BASELINES["FedAvg"]),
            ("prototypes", BASELINES["prototypes"]),
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


def test_the_baselines_have_their_settings(compared):
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
    latex = (folder / "comparison.tex").read_text()
    for name, run in rows.items():
        assert name in table
        assert f"{run[-1]['accuracy']:.3f}" in table
        assert f"{run[-1]['accuracy']:.3f}" in latex
    with (folder / "comparison.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    wanted = [(name, str(row["round"]), row["accuracy"]) for name, run in rows.items() for row in run]
    assert [(row["arm"], row["round"], float(row["accuracy"])) for row in found] == wanted


def test_an_experiment_that_is_itself_a_baseline_runs_once(tmp_path):
    rows = compare([*OVERRIDES, "rounds=1", "report=false", "finetune.enabled=false"], tmp_path, ("FedAvg",))
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


def test_the_fedavg_arm_averages_whatever_the_experiments_aggregation_is(tmp_path):
    words = [*OVERRIDES, "rounds=1", "report=false", "aggregation.mode=kd", "finetune.enabled=false"]
    rows = compare([*words, "generator=gaussian"], tmp_path, ("FedAvg",))
    assert list(rows) == ["FedAvg", "kd"]
    assert RunFolder(tmp_path / "FedAvg").read_config()["aggregation"]["mode"] == "avg"
    assert [rows[name][0]["server/optimiser_steps"] for name in rows] == [0, 30]


# Baselines where sites send sums


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=one_shot"],
        ["experiment=one_shot", "privacy=dp", "projection.columns=16", "dataset.square_root=never"],
        ["experiment=one_shot", "secure_sums=secagg"],
        ["share=statistics", "site.epochs=0"],
    ],
)
def test_where_sites_train_nothing_fedavg_is_that_of_usual_sites(words, tmp_path):
    found = Comparison.of(["dataset=synth", *words], tmp_path)
    assert list(found.arms) == [name for name in ("FedAvg", "sums", "pooled") if name != found.label] + [found.label]
    fedavg = found.arms["FedAvg"]
    assert fedavg.site_trains
    assert not fedavg.has_server_step
    assert (fedavg.share.kind, fedavg.privacy.name, fedavg.secure_sums.name) == ("prototypes", "none", "none")
    assert (fedavg.rounds, fedavg.site.epochs) == (5, 5)
    assert found.arms["pooled"] is None
    own = Comparison.of(["dataset=synth", *words], tmp_path, ["prototypes"]).arms["prototypes"]
    assert (own.share.kind, own.generator.target, own.site_trains) == ("prototypes", None, True)


def test_an_experiment_of_sums_without_a_generator_is_its_own_baseline(tmp_path):
    found = Comparison.of(["dataset=synth", "experiment=one_shot"], tmp_path)
    assert (found.label, found.arms["sums"]) == ("sums", found.settings)
    trains = Comparison.of(["dataset=synth", "share=statistics", "generator=gaussian"], tmp_path)
    assert list(trains.arms) == ["FedAvg", "sums", "pooled", "gaussian"]
    assert trains.arms["FedAvg"].shares_sums, "sites that train go on as they do"


def test_a_baseline_that_does_not_fit_is_refused(tmp_path):
    with refused(ConfigError, "--with=sums", "share=statistics"):
        Comparison.of(["dataset=synth"], tmp_path, ["sums"])


def test_a_generator_that_replaces_the_prototypes_has_the_baseline_of_prototypes(tmp_path):
    found = Comparison.of(["dataset=synth", "bank.keep=generator"], tmp_path, ["prototypes"])
    assert found.arms["prototypes"].bank.keep == "prototypes"


@pytest.mark.parametrize("run", [compare, cross_validate])
def test_data_that_is_not_there_is_refused_before_anything_runs(run, tmp_path):
    with refused(DataError, "nowhere"):
        run(["experiment=esc50_5x10", f"dataset.root={tmp_path}/nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Several processes


def test_two_processes_give_the_figures_of_one(tmp_path):
    words = [*OVERRIDES, "rounds=1", "generator=none", "report=false"]
    baselines = ("prototypes", "pooled", "pooled, as many steps")
    one, two = (cross_validate(words, tmp_path / f"{n}", baselines, seeds=[0, 3], jobs=n) for n in (1, 2))
    assert one == two
    first, second = (read_jsonl(tmp_path / f"{n}" / "seed-3" / "prototypes" / "metrics.jsonl")[0] for n in (1, 2))
    assert without_clock(first) == without_clock(second)


def test_what_fails_in_a_process_names_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(arms.signal, "signal", lambda *given: None)
    (tmp_path / "seed-0").write_text("a file where the folder should be")
    run = Run(compose_settings(OVERRIDES), tmp_path / "seed-0" / "FedAvg")
    with refused(ArmError, "seed-0/FedAvg"):
        arms._in_worker(0, run)


def test_the_number_of_processes_follows_cores_memory_and_device(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    monkeypatch.setattr(arms.psutil, "virtual_memory", lambda: SimpleNamespace(available=int(3.5 * arms.MEMORY)))
    settings = compose_settings("threads=1")
    assert [usual_jobs(settings, runs) for runs in (1, 2, 12)] == [1, 2, 3]
    assert usual_jobs(settings.model_copy(update={"threads": 4}), 12) == 2
    assert usual_jobs(settings.model_copy(update={"device": "cuda"}), 12) == 1
    monkeypatch.setattr(arms.psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    assert usual_jobs(settings, 12) == 1


# The same adapters in one place


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["dataset.unseen=4", "site.epochs=20"],
        ["loss.temperature=0.05", "site.learning_rate=0.003", "site.batch_size=7", "adapters.hidden_width=24"],
        ["site.server_steps=true"],
        ["adapters.standardise=false"],
        ["share=statistics", "projection.columns=16", "site.epochs=20"],
    ],
)
def test_pooled_training_is_that_of_a_site_that_has_every_clip(overrides, tmp_path, monkeypatch):
    for module in (pooled_module, site_module):
        # Both shuffle alike, whatever they call it.
        monkeypatch.setattr(module, "torch_generator", lambda *purpose: torch.Generator().manual_seed(purpose[-1]))
    alone = ("partition=iid", "partition.sites=1", "aggregation.min_replies=1", "share.dtype=float32", "report=false")
    settings = compose_settings([*OVERRIDES, *alone, "finetune.enabled=false", *overrides])
    run_in_process(settings, tmp_path)
    rows, pooled = read_jsonl(tmp_path / "metrics.jsonl"), pooled_rows(settings)
    for key in ("accuracy", "accuracy_at_5", "site/optimiser_steps", "server/optimiser_steps"):
        assert [row[key] for row in pooled] == pytest.approx([row[key] for row in rows], abs=1e-6), key
    assert pooled[-1]["accuracy"] > 0.2  # chance is 0.1


def test_pooled_training_in_a_public_space_is_one_exchange_of_sums(tmp_path):
    """The closed form of all clips: the federation reaches it exactly, however the clips are divided."""
    words = ["dataset=synth", "experiment=one_shot", "share.dtype=float32", "share.min_clips=1", "report=false"]
    settings = compose_settings([*words, "dataset.clips_per_class=10", "projection.columns=24"])
    run_in_process(settings, tmp_path)
    (row,), (pooled,) = read_jsonl(tmp_path / "metrics.jsonl"), pooled_rows(settings)
    for key in ("accuracy", "accuracy_at_5"):
        assert pooled[key] == pytest.approx(row[key]), key
    assert pooled["accuracy"] > 0.5
    assert pooled["site/optimiser_steps"] == 0


def test_where_sites_do_not_train_pooled_training_takes_the_steps_of_the_server():
    words = [*OVERRIDES, "share=statistics", "projection.columns=16", "site.epochs=0", "finetune.learning_rate=0.002"]
    rows = pooled_rows(compose_settings(words))
    assert [row["site/optimiser_steps"] for row in rows] == [30, 10]
    assert rows[-1]["accuracy"] > 0.2  # chance is 0.1


def test_pooled_training_of_a_closed_form_solves_for_it_on_every_clip():
    settings = compose_settings([*OVERRIDES, "adapters=bilinear"])
    clips = load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings.cache_dir))
    train, test = (torch.from_numpy(clips.rows(split)) for split in ("train", "test"))
    rows = as_rows(clips, train)
    vectors = prompt_set(settings, clips.classes).clip.flatten(1)
    scores = BilinearMap.fit(rows, vectors)(clips.embeddings[test], vectors)
    wanted = float((scores.argmax(dim=1) == clips.labels[test]).float().mean())
    pooled = pooled_rows(settings)
    assert [row["accuracy"] for row in pooled] == pytest.approx([wanted] * settings.rounds)
    assert [row["site/optimiser_steps"] for row in pooled] == [0] * settings.rounds


def as_rows(clips, train):
    """Single clips, as if each were a prototype of its own."""
    audio = clips.embeddings[train]
    return PrototypeBatch(audio, clips.labels[train], torch.ones(len(train)), torch.zeros_like(audio), clips.classes)


# Steps

# Five sites of 18 clips, 90 in all, batches of 32: an epoch is one step at a site, three in one place.
STEPS = {
    "FedAvg": [(5, 0), (5, 0)],
    "FedAvg, as many steps": [(35, 0), (15, 0)],
    "prototypes": [(5, 30), (5, 10)],
    "pooled": [(15, 0), (15, 0)],
    "pooled, as many steps": [(35, 0), (15, 0)],
    "gaussian": [(5, 30), (5, 10)],
}


def test_every_arm_says_how_many_steps_it_takes_and_takes_them(tmp_path, monkeypatch):
    taken = []
    step = training.AdamW.step
    monkeypatch.setattr(training.AdamW, "step", lambda self: (taken.append(1), step(self))[1])
    baselines = [name for name in BASELINES if name not in ("gaussian", "sums")]
    rows = compare([*OVERRIDES, "generator=gaussian", "report=false"], tmp_path, baselines)
    told = {
        name: [(row["site/optimiser_steps"], row["server/optimiser_steps"]) for row in run]
        for name, run in rows.items()
    }
    assert told == STEPS
    sites = {name: 1 if name.startswith("pooled") else 5 for name in STEPS}
    assert len(taken) == sum(sites[name] * site + server for name, run in STEPS.items() for site, server in run)
    of_run = results(tmp_path, "FedAvg, as many steps")
    assert (of_run["site_steps"], of_run["server_steps"]) == (50, 0)
    table = [line.split("|") for line in (tmp_path / "comparison.md").read_text().splitlines()]
    shown = dict(zip(map(str.strip, table[0]), zip(*table[-2:], strict=True), strict=True))
    for name, run in STEPS.items():
        assert tuple(map(int, shown[name])) == tuple(map(sum, zip(*run, strict=True))), name


# On several folds and seeds


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crossed")
    words = [*OVERRIDES, "rounds=1", "generator=gaussian"]
    return folder, cross_validate(words, folder, ("prototypes", "pooled"), folds=[], seeds=[0, 3])


def test_every_fold_tests_once_with_every_seed_and_all_others_train(crossed):
    folder, summary = crossed
    pairs = [(pair["fold"], pair["seed"]) for pair in summary["pairs"]]
    assert pairs == [(fold, seed) for fold in (1, 2, 3, 4) for seed in (0, 3)]
    for fold, seed in pairs:
        config = RunFolder(folder / f"fold-{fold}_seed-{seed}" / "gaussian").read_config()
        assert (config["dataset"]["test_fold"], config["seed"]) == (fold, seed)
        clips = load_clips(*clips_of(config))
        assert Counter(clips.splits) == {"train": 90, "test": 30}
    assert summary["test_per_training"] == pytest.approx(30 / 90)


def clips_of(config):
    settings = Settings.model_validate(config)
    return settings.dataset, settings.encoder, settings.seed, cache_dir(settings.cache_dir)


def test_the_differences_are_those_of_the_runs_on_the_same_fold_and_seed(crossed):
    folder, summary = crossed
    of_pairs = {
        name: [
            json.loads((folder / f"fold-{pair['fold']}_seed-{pair['seed']}" / "comparison.json").read_text())[name][-1]
            for pair in summary["pairs"]
        ]
        for name in ("prototypes", "pooled", "gaussian")
    }
    accuracies = {name: [row["accuracy"] for row in last] for name, last in of_pairs.items()}
    assert {name: arm["accuracy"] for name, arm in summary["arms"].items()} == accuracies
    assert len(set(accuracies["gaussian"])) > 1
    wanted = paired_interval(
        [mine - other for mine, other in zip(accuracies["gaussian"], accuracies["prototypes"], strict=True)], 1 / 3
    )
    arm = summary["arms"]["gaussian"]
    assert (arm["difference"], arm["low"], arm["high"]) == pytest.approx((wanted.mean, wanted.low, wanted.high))
    assert json.loads((folder / "comparison.json").read_text()) == {"cross_validation": summary}
    text = (folder / "comparison.md").read_text()
    assert str(wanted) in text
    assert summary["sentences"] == [text.splitlines()[number].removeprefix("* ") for number in (0, 1)]
    assert summary["covers"] in (folder / "comparison.tex").read_text()
    with (folder / "comparison.csv").open(newline="") as file:
        (mine,) = [row for row in csv.DictReader(file) if row["arm"] == "gaussian"]
    assert (mine["runs"], float(mine["low"])) == ("8", arm["low"])


def test_the_report_of_a_cross_validation_has_the_experiments_runs_and_the_table_of_all(crossed):
    folder, summary = crossed
    found = collect([folder])
    labels = [f"fold-{pair['fold']}_seed-{pair['seed']}/gaussian" for pair in summary["pairs"]]
    assert [run.label for run in found.runs] == labels
    assert [run.label for run in found.baselines] == ["prototypes", "pooled"], "each the mean of its runs"
    assert {len(run.members) for run in found.baselines} == {len(summary["pairs"])}
    page = (folder / "report.html").read_text()
    shown = crossed_table(summary).rows
    assert [row[0] for row in shown] == ["prototypes", "pooled", "gaussian"]
    assert all(cell in page for row in shown for cell in row)
    assert [run.label for run in collect([folder / "fold-1_seed-0"]).baselines] == ["pooled"]


def test_seeds_alone_leave_the_folds_of_the_experiment(tmp_path):
    words = [*OVERRIDES, "rounds=1", "generator=none", "report=false"]
    summary = cross_validate(words, tmp_path, ("prototypes",), seeds=[1, 2])
    assert (summary["pairs"], summary["test_per_training"]) == (
        [{"fold": None, "seed": 1}, {"fold": None, "seed": 2}],
        0,
    )
    assert list(summary["arms"]) == ["prototypes"], "the experiment itself"
    assert RunFolder(tmp_path / "seed-2" / "prototypes").read_config()["dataset"]["test_fold"] is None


def test_one_fold_covers_seeds_only(tmp_path):
    words = [*OVERRIDES, "rounds=1", "generator=none", "report=false"]
    summary = cross_validate(words, tmp_path, ("prototypes",), folds=[2])
    assert ([pair["fold"] for pair in summary["pairs"]], summary["test_per_training"]) == ([2], 0)


def test_a_fold_that_is_not_there_is_refused_before_anything_runs(tmp_path):
    with refused(ConfigError, "--folds=2,9", "[1, 2, 3, 4]"):
        cross_validate(OVERRIDES, tmp_path, folds=[2, 9])
    assert not list(tmp_path.iterdir())
