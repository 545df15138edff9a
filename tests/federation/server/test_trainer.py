"""A run and its folder: its files, and resuming after a stop."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import wandb
import yaml

from fed_a2v.callbacks import checkpoint as checkpoint_callback
from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.schema import Settings
from fed_a2v.federation.client.flower_client import A2VClient
from fed_a2v.federation.server import strategy as strategy_module
from fed_a2v.federation.server import trainer as trainer_module
from fed_a2v.federation.server.trainer import Trainer
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.load import load_run
from fed_a2v.runs.checkpoint import CheckpointError, read_state
from fed_a2v.runs.embedding_map import load_map
from fed_a2v.runs.folder import GUIDE_METRICS
from fed_a2v.runs.lock import FolderInUseError, hold
from fed_a2v.storage.files import read_jsonl
from tests.federation.helpers import FAST, Finished, assert_same, assert_same_run, without_seconds
from tests.flower import wait_until
from tests.refusals import refused
from tests.wandb_files import rows_at_wandb

GUIDE_NAMES = {
    "server/generator_loss",
    "server/adapter_finetuning_loss",
    "server/generator_validation_similarity",
    "server/generator_validation_mse",
    "server/generator_validation_l1",
}
VALIDATED = ("rounds=2", "generator.validation_frequency=1", "generator.holdout=0.34")


@pytest.fixture(scope="session")
def validated(finished_run):
    return finished_run(*VALIDATED)


# Files of a run


def test_the_folder_holds_these_files_and_no_others(validated):
    files = {str(path.relative_to(validated.folder)) for path in validated.folder.rglob("*") if path.is_file()}
    best = max(validated.rows, key=lambda row: (row["accuracy"], -row["round"]))["round"]
    assert files == {
        "config.yaml",
        "partition.json",
        "targets.npz",
        "environment.json",
        "metrics.jsonl",
        "evaluation.json",
        "map.npz",
        "results.json",
        "run.log",
        ".lock",
        "checkpoints/state_round_000001.pt",
        "checkpoints/state_round_000002.pt",
        f"checkpoints/best_round_{best:06d}.pt",
        "checkpoints/vae_generator_round_2.pt",
    }


def test_the_evaluation_file_has_the_confusions_and_the_sites_of_each_class(validated):
    evaluation = json.loads((validated.folder / "evaluation.json").read_text())
    last = validated.rows[-1]
    figures = evaluation["classes"]
    assert evaluation["round"] == last["round"]
    assert {name: each["accuracy"] for name, each in figures.items()} == last["per_class"]
    assert sum(each["test_clips"] for each in figures.values()) == last["test_clips"]
    assert all(each["sites"] == 1 and each["clips"] == 9 for each in figures.values())
    for name, predicted in evaluation["confusion"].items():
        assert sum(predicted.values()) == figures[name]["test_clips"]
        assert predicted.get(name, 0) == pytest.approx(figures[name]["accuracy"] * figures[name]["test_clips"])


def test_it_records_a_map_of_prototypes_and_samples(validated):
    found = load_map(validated.folder / "map.npz")
    prototypes = sum(len(each.audio.counts) for _, each in validated.bank)
    assert (~found.synthetic).sum() == prototypes
    assert found.synthetic.sum() == 20 * len(found.classes)
    assert found.counts.sum() == 9 * len(found.classes)


def test_every_row_says_how_each_site_answered(validated):
    assert [row["sites"] for row in validated.rows] == [{f"site-00{k}": "replied" for k in range(5)}] * 2


def test_the_saved_settings_are_those_of_the_run(validated):
    saved = yaml.safe_load((validated.folder / "config.yaml").read_text())
    assert Settings.model_validate(saved) == compose_settings([*FAST, *VALIDATED])


def test_the_partition_names_every_sites_classes_and_clips(validated):
    sites = json.loads((validated.folder / "partition.json").read_text())["sites"]
    assert list(sites) == [f"site-00{number}" for number in range(5)]
    assert all(len(site["classes"]) == 2 for site in sites.values())
    clips = [key for site in sites.values() for keys in site["clips"].values() for key in keys]
    assert len(clips) == len(set(clips)) == 120


def test_the_metrics_have_one_row_per_round_with_the_documented_names(validated):
    assert [row["round"] for row in validated.rows] == [1, 2]
    promised = {
        *("accuracy", "accuracy_before", "accuracy_at_5", "cosine", "loss", "test_clips", "per_class"),
        *(f"{name}_{end}" for name in ("accuracy", "accuracy_before", "accuracy_at_5") for end in ("low", "high")),
        *("server_step/better", "server_step/worse", "server_step/p"),
        *("bytes_up", "bytes_down", "rejected", "rejections", "failures", "replies", "rolled_back"),
        *("seconds", "seconds/sites", "seconds/generator", "seconds/finetune", "seconds/evaluate"),
        *("generator/reconstruction", "generator/kl", "generator/similarity"),
        *("finetune/mse", "finetune/cosine", "finetune/contrastive"),
        *("site/loss", "site/mse", "site/cosine", "site/contrastive"),
        *("machine/site_clips_per_second", "machine/site_steps_per_second", "machine/site_matrix_share"),
        *("machine/server_steps_per_second", "machine/server_matrix_share", "machine/matrix_rate"),
        *("machine/bytes_per_second", "machine/peak_memory"),
    }
    assert set(GUIDE_METRICS) == GUIDE_NAMES
    for row in validated.rows:
        assert row.keys() >= GUIDE_NAMES | promised
        assert all(isinstance(row[name], float) for name in GUIDE_NAMES)


def test_a_row_without_validation_still_has_the_guides_names(finished_run):
    for row in finished_run("generator=none").rows:
        assert row.keys() >= GUIDE_NAMES
        assert row["server/generator_validation_mse"] is None


def test_the_results_are_those_of_the_last_round(validated):
    results = json.loads((validated.folder / "results.json").read_text())
    assert results == validated.results
    last = validated.rows[-1]
    for figure in ("accuracy", "accuracy_at_5", "accuracy_before", "cosine", "loss", "test_clips"):
        assert results[figure] == last[figure]
    for figure in ("accuracy_low", "accuracy_high", "accuracy_before_low", "server_step/better", "server_step/p"):
        assert results[figure] == last[figure]
    assert results["accuracy_low"] < results["accuracy"] < results["accuracy_high"] <= 1
    gained = (last["server_step/better"] - last["server_step/worse"]) / last["test_clips"]
    assert gained == pytest.approx(results["gain_last_round"])
    assert 0 <= results["accuracy"] <= results["accuracy_at_5"] <= 1
    assert (
        results["bytes_up"] == sum(row["bytes_up"] for row in validated.rows) + validated.rows[0]["bytes_registration"]
    )
    assert (results["rounds"], results["sites"], results["generator"], results["seed"]) == (2, 5, "vae", 0)


# Sites that fail in the evaluation


class Unsteady(A2VClient):
    """Its sites fail in the evaluation of the rounds in `missing`: by round, the sites."""

    missing: ClassVar = {}

    def evaluate(self, parameters, config):
        if config["site"] in self.missing.get(config["round"], ()):
            raise OSError("its disk is gone")
        return super().evaluate(parameters, config)


@pytest.fixture
def unsteady(tmp_path, monkeypatch):
    def run(missing, *overrides):
        monkeypatch.setattr(Unsteady, "missing", missing)
        settings = compose_settings([*FAST, "rounds=2", *overrides])
        return Finished(tmp_path, run_in_process(settings, tmp_path, make_client=lambda: Unsteady({})))

    return run


def best_states(run):
    return sorted(path.name for path in (run.folder / "checkpoints").glob("best_*"))


@pytest.fixture(scope="session")
def others_than_the_most_accurate(finished_run):
    """All sites but one that has only classes that are found without fault in the second round."""
    run = finished_run("rounds=2")
    sites = json.loads((run.folder / "partition.json").read_text())["sites"]
    accuracies = {name: sum(run.rows[1]["per_class"][each] for each in site["classes"]) for name, site in sites.items()}
    best = max(accuracies, key=accuracies.get)
    assert accuracies[best] / 2 > run.rows[0]["accuracy"]
    return sorted(set(sites) - {best})


def test_a_round_without_some_sites_is_not_the_best_however_accurate(unsteady, others_than_the_most_accurate):
    run = unsteady({2: others_than_the_most_accurate})
    first, second = run.rows
    assert second["accuracy"] > first["accuracy"]
    assert best_states(run) == ["best_round_000001.pt"]
    assert {name: run.results[name] for name in ("best_round", "best_accuracy", "best_fully_evaluated")} == {
        "best_round": 1,
        "best_accuracy": first["accuracy"],
        "best_fully_evaluated": True,
    }


def test_results_and_log_say_which_clips_the_last_figures_rest_on(unsteady):
    run = unsteady({2: ["site-000", "site-003"]})
    assert [run.results[name] for name in ("test_clips", "test_clips_total")] == [18, 30]
    assert [run.results[name] for name in ("sites_evaluated", "sites_total")] == [3, 5]
    classes = json.loads((run.folder / "evaluation.json").read_text())["classes"]
    assert {(each["test_clips"], each["test_clips_total"]) for each in classes.values()} == {(0, 3), (3, 3)}
    warnings = [line for line in run.log.splitlines() if "WARNING" in line]
    assert "18 of 30 test clips, 3 of 5 sites" in warnings[-1]
    assert any("site-000, site-003" in line for line in warnings)


def test_if_no_round_evaluated_all_sites_the_best_round_has_the_most_clips_and_a_remark(
    unsteady, others_than_the_most_accurate
):
    run = unsteady({1: ["site-004"], 2: others_than_the_most_accurate})
    assert best_states(run) == ["best_round_000001.pt"]
    assert (run.results["best_round"], run.results["best_fully_evaluated"]) == (1, False)
    assert "24 of 30 test clips, 4 of 5 sites" in [line for line in run.log.splitlines() if "WARNING" in line][-1]


def test_a_run_that_is_resumed_knows_how_many_clips_its_sites_have(unsteady):
    first = unsteady({}, "rounds=1")
    assert first.results["test_clips_total"] == 30
    down = {2: ["site-001"]}
    assert [unsteady(down).results[name] for name in ("test_clips", "test_clips_total")] == [24, 30]


def test_the_results_have_the_gain_of_the_first_round_beside_that_of_the_last(validated):
    first, last = validated.rows
    assert validated.results["gain_first_round"] == first["accuracy"] - first["accuracy_before"] > 0
    assert validated.results["gain_last_round"] == last["accuracy"] - last["accuracy_before"]
    assert validated.results["gain_over_fedavg"] is None


def test_a_run_without_a_server_step_has_no_gain(finished_run):
    assert "gain_first_round" not in finished_run("finetune.enabled=false").results


def test_the_log_has_the_guides_lines(validated):
    number = r"-?\d+\.\d"
    wanted = [
        r"=== Round 1: Training Generator and Global Adapters ===",
        r"Training generator for 2 epochs with augmentation=True",
        rf"  Epoch 1 Class 'dog': VAE Loss={number}{{4}} \(Recon={number}{{4}}, KL={number}{{4}}, Sim={number}{{4}}\)",
        rf"Generator training completed. Average loss: {number}{{4}}",
        r"Validating generator at round 1",
        r"=== Generator Validation Metrics ===",
        rf"Average Cosine Similarity: {number}{{4}} \(real rows: {number}{{4}}, class-blind: {number}{{4}}\)",
        rf"Average MSE Loss: {number}{{6}} \(real rows: {number}{{6}}, class-blind: {number}{{6}}\)",
        rf"Average L1 Loss: {number}{{6}} \(real rows: {number}{{6}}, class-blind: {number}{{6}}\)",
        r"Classes validated: 10, on 10 held-out averages",
        rf"  - dog: {number}{{4}}",
        r"=== Round 2: Training Generator and Global Adapters ===",
        r"Saving generator checkpoint at round 2",
        r"Saved generator checkpoint to checkpoints/vae_generator_round_2.pt",
    ]
    place = 0
    for line in wanted:
        found = re.compile(rf"^[\d-]+ [\d:,]+ INFO {line}$", re.MULTILINE).search(validated.log, place)
        assert found, f"not there, or not in this order: {line}"
        place = found.end()


def test_training_without_augmentation_is_logged(finished_run):
    assert "with augmentation=False" in finished_run("generator.augmentation=false", "rounds=1").log


def test_the_row_has_the_figures_of_the_log(validated):
    for row in validated.rows:
        assert f"Average loss: {row['server/generator_loss']:.4f}" in validated.log
        assert f"Average MSE Loss: {row['server/generator_validation_mse']:.6f}" in validated.log


# Checkpoints of the generator


def test_the_guides_snippet_reads_the_generators_checkpoint(validated):
    checkpoint = torch.load(validated.folder / "checkpoints" / "vae_generator_round_2.pt")
    assert checkpoint["round"] == 2
    assert checkpoint["generator_type"] == "vae"
    assert_same(dict(checkpoint["generator_state"]), dict(validated.state["generator"]["generator_state"]))


def test_the_generator_is_saved_every_so_many_rounds_and_after_the_last(run_in):
    run = run_in("saves", "rounds=3", "generator.checkpoint_frequency=2", "generator.checkpoint_path=saved/mine.pt")
    saved = sorted(str(path.relative_to(run.folder)) for path in run.folder.rglob("mine*"))
    assert saved == ["checkpoints/mine_round_2.pt", "checkpoints/mine_round_3.pt"]


def test_the_generator_is_not_saved_if_the_settings_disable_it(run_in):
    run = run_in("none", "rounds=1", "generator.save_checkpoint=false")
    assert not list(run.folder.rglob("*generator*"))


def loading(path):
    return ("generator.load_checkpoint=true", f"generator.checkpoint_path={path}")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_loaded_generator_continues_from_its_state(finished_run, run_in, validated):
    path = validated.folder / "checkpoints" / "vae_generator.pt"
    loaded = run_in("loaded", "rounds=1", *loading(path))
    fresh = finished_run("rounds=1")
    assert loaded.rows[0]["generator/reconstruction"] < fresh.rows[0]["generator/reconstruction"]
    assert f"Loaded generator checkpoint from {path.with_name('vae_generator_round_2.pt')} (round 2)" in loaded.log


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (("generator=vae",), {"vae_generator"}),
        (("generator=vae_closed_form",), {"vae_generator"}),
        (("generator=multimodal", "adapters=flux", "adapters.t5_width=8"), {"multimodal_generator"}),
        (
            ("generator.granularity=per_class", "dataset.classes=[dog,rain]", "partition.sites=2"),
            {"vae_generator_dog", "vae_generator_rain"},
        ),
        (
            ("generator=vae_t5", "adapters=flux", "adapters.t5_width=8"),
            {"vae_t5_generator_clip", "vae_t5_generator_t5"},
        ),
    ],
)
@pytest.mark.parametrize("round_in_path", [True, False])
def test_a_run_that_starts_from_anothers_generator_saves_its_own_and_leaves_that_alone(
    finished_run, run_in, kind, names, round_in_path
):
    if len(names) > 1 and round_in_path:
        pytest.skip("a family is named without its round")
    first = finished_run("rounds=3", *kind)
    before = contents(first.folder)
    (name, *_) = sorted(names)
    base = f"{name}_round_3" if round_in_path else name.removesuffix("_dog").removesuffix("_clip")
    second = run_in("second", "rounds=2", *kind, *loading(first.folder / "checkpoints" / f"{base}.pt"))
    assert contents(first.folder) == before
    saved = {str(path.relative_to(second.folder)) for path in second.folder.rglob("*generator*")}
    assert saved == {f"checkpoints/{name}_round_2.pt" for name in names}
    for name in names:
        checkpoint = torch.load(second.folder / "checkpoints" / f"{name}_round_2.pt")
        assert checkpoint["round"] == 2
    assert second.log.count("(round 3)") == len(names), "the last ones are loaded"


def test_a_run_stopped_in_its_first_round_starts_from_the_same_generator_again(run_in, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    often = ("rounds=2", "generator.checkpoint_frequency=1")
    run_in("first", *often)
    from_first = (*often, *loading("checkpoints/vae_generator.pt"))

    def die(*given):
        raise KilledError

    whole = run_in("whole", *from_first)
    shutil.rmtree(whole.folder / "checkpoints")  # else it would be the newest run beside the next one
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluated", die)
        with pytest.raises(KilledError):
            run_in("stopped", *from_first)
    assert (tmp_path / "stopped" / "checkpoints" / "vae_generator_round_1.pt").exists()
    stopped = run_in("stopped", *from_first)
    assert [without_seconds(row) for row in stopped.rows] == [without_seconds(row) for row in whole.rows]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("generator.latent_dim=16", ("latent_dim", 32, 16)),
        ("adapters.clip_width=512", ("visual_dim", 768, 512)),
        ("generator=gaussian", ("gaussian", "generator=vae", "generator.checkpoint_path")),
    ],
)
def test_a_generator_that_does_not_fit_is_refused_and_both_values_are_named(run_in, validated, override, named):
    path = validated.folder / "checkpoints" / "vae_generator_round_2.pt"
    with refused(CheckpointError, path, *named):
        run_in("refused", override, *loading(path))


def test_a_generator_that_is_not_there_is_refused_by_name(run_in):
    with refused(FileNotFoundError, "nothing.pt", "generator.checkpoint_path", "generator.load_checkpoint=false"):
        run_in("missing", *loading("checkpoints/nothing.pt"))


# A generator for each adapter of FLUX

TWO_SIDES = ("adapters=flux", "adapters.t5_tokens=4", "adapters.t5_width=64", "generator=vae_t5")


@pytest.fixture(scope="session")
def two_sides(finished_run):
    return finished_run(*TWO_SIDES, *VALIDATED)


def test_a_run_with_two_vaes_trains_both_validates_them_and_saves_each(two_sides):
    for row in two_sides.rows:
        assert all(isinstance(row[name], float) for name in GUIDE_NAMES)
        parts = [row[f"generator/{side}{name}"] for side in ("", "t5_") for name in ("reconstruction", "kl")]
        assert len(set(parts)) >= 3  # the first round's KL has no weight yet
    assert sorted(path.name for path in (two_sides.folder / "checkpoints").glob("vae_t5*")) == [
        "vae_t5_generator_clip_round_2.pt",
        "vae_t5_generator_t5_round_2.pt",
    ]
    saved = torch.load(two_sides.folder / "checkpoints" / "vae_t5_generator_t5_round_2.pt")
    assert (saved["round"], saved["generator_type"], saved["dimensions"]["t5_dim"]) == (2, "vae_t5", 64)
    run = load_run(two_sides.folder)
    samples = run.generator.sample("dog", 4)
    assert samples.shape == (4, 1, 512)
    assert run.adapt(samples).t5.shape == (4, 4, 64)


def test_two_loaded_vaes_continue_from_their_states(finished_run, run_in, two_sides, tmp_path):
    path = shutil.copytree(two_sides.folder / "checkpoints", tmp_path / "loaded from") / "vae_t5_generator.pt"
    loaded, fresh = run_in("loaded", *TWO_SIDES, "rounds=1", *loading(path)), finished_run(*TWO_SIDES, "rounds=1")
    for name in ("generator/reconstruction", "generator/t5_reconstruction"):
        assert loaded.rows[0][name] < fresh.rows[0][name]
    with refused(CheckpointError, "t5_dim", 64, 32):
        run_in("narrow", *TWO_SIDES, "adapters.t5_width=32", *loading(path))
    path.with_name("vae_t5_generator_t5_round_2.pt").unlink()
    with refused(FileNotFoundError, "'t5'", "vae_t5_generator_t5_round_2.pt", "generator.load_checkpoint=false"):
        run_in("half", *TWO_SIDES, *loading(path))


def test_a_resumed_run_with_two_vaes_gives_the_same_bits(run_in, two_sides):
    run_in("parts", *TWO_SIDES, *VALIDATED, "rounds=1")
    assert_same_run(run_in("parts", *TWO_SIDES, *VALIDATED), two_sides)


# Resuming


@pytest.fixture(scope="session")
def three_rounds(finished_run):
    return finished_run("rounds=3")


def test_one_round_and_then_two_more_equal_three_at_once(run_in, three_rounds):
    assert run_in("run", "rounds=1").results["rounds"] == 1
    resumed = run_in("run", "rounds=3")
    assert "Resuming after round 1 of 3" in resumed.log
    assert_same_run(resumed, three_rounds)
    assert without_seconds(resumed.results) == without_seconds(three_rounds.results)


@pytest.mark.parametrize(
    "override",
    ["generator=gaussian", "finetune.enabled=false", "aggregation.max_age=1", "share=statistics generator=none"],
)
def test_every_kind_of_run_gives_the_same_bits_after_a_resume(run_in, override):
    whole = run_in("whole", "rounds=2", *override.split())
    run_in("parts", "rounds=1", *override.split())
    assert_same_run(run_in("parts", "rounds=2", *override.split()), whole)


def test_a_resumed_run_with_sampled_sites_continues_with_those_of_the_next_round(run_in):
    share = "federation.sites_per_round=0.4"
    whole = run_in("whole", "rounds=3", share)
    run_in("parts", "rounds=2", share)
    assert_same_run(run_in("parts", "rounds=3", share), whole)


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("moment", ["server_step_done", "before the state", "after the state"])
def test_a_run_that_is_killed_anywhere_in_a_round_ends_with_the_same_results_after_a_resume(
    run_in, three_rounds, monkeypatch, moment
):
    with monkeypatch.context() as patch:
        if moment == "server_step_done":
            name, module = "server_step_done", Trainer
        else:
            name, module = "save_state", checkpoint_callback
        honest = getattr(module, name)

        def die(*given, **options):
            round_number = given[1] if moment == "server_step_done" else given[1]["round"]
            if moment == "after the state" or round_number < 2:
                honest(*given, **options)
            if round_number == 2:
                raise KilledError

        patch.setattr(module, name, die)
        with pytest.raises(KilledError):
            run_in("run", "rounds=3")
    assert_same_run(run_in("run", "rounds=3"), three_rounds)


def test_a_finished_run_returns_its_results_without_training(copied_run, run_in, monkeypatch):
    first = copied_run("run", "rounds=1")
    metrics = (first.folder / "metrics.jsonl").read_bytes()
    monkeypatch.setattr("fed_a2v.federation.simulation.Server.fit", None)  # nobody trains
    again = run_in("run", "rounds=1")
    assert again.results == first.results
    assert (again.folder / "metrics.jsonl").read_bytes() == metrics
    assert json.loads((again.folder / "results.json").read_text()) == first.results


def test_other_settings_are_refused_and_the_key_is_named_with_both_values(copied_run, run_in):
    before = copied_run("run", "rounds=1")
    metrics = (before.folder / "metrics.jsonl").read_bytes()
    with refused(CheckpointError, "site.learning_rate", "0.001", "0.01", "resume=never"):
        run_in("run", "rounds=2", "site.learning_rate=0.01")
    with refused(CheckpointError, "generator.latent_dim", "32", "8", "resume=never"):
        run_in("run", "rounds=2", "generator.latent_dim=8")
    assert (before.folder / "metrics.jsonl").read_bytes() == metrics, "what is there stays"
    assert (before.folder / "results.json").exists()


def test_fewer_rounds_than_are_finished_are_refused(copied_run, run_in, three_rounds, tmp_path):
    copied_run("run", "rounds=2")
    with refused(CheckpointError, "rounds", 2, 1, "resume=never"):
        run_in("run", "rounds=1")


def test_a_run_may_be_resumed_in_another_folder(copied_run, run_in, three_rounds):
    first = copied_run("first", "rounds=1")
    resumed = run_in("second", "rounds=3", f"resume={first.folder}")
    assert [without_seconds(row) for row in resumed.rows] == [without_seconds(row) for row in three_rounds.rows]
    assert_same(resumed.state, three_rounds.state)
    assert len(first.rows) == 1, "the first run's folder stays as it was"


def test_a_run_to_resume_that_is_not_there_is_refused_by_name(run_in, tmp_path):
    with refused(FileNotFoundError, f"resume={tmp_path / 'nothing'}", tmp_path / "nothing" / "checkpoints"):
        run_in("run", f"resume={tmp_path / 'nothing'}")


def test_with_resume_never_a_run_starts_again_in_any_folder(copied_run, run_in, finished_run):
    copied_run("run", "rounds=3", "seed=0", "generator=none")
    anew = run_in("run", "rounds=1", "generator=gaussian", "resume=never")
    assert [row["round"] for row in anew.rows] == [1]
    fresh = finished_run("rounds=1", "generator=gaussian")
    assert [without_seconds(row) for row in anew.rows] == [without_seconds(row) for row in fresh.rows]
    assert not list(anew.folder.glob("checkpoints/state_round_000003.pt"))


def test_a_damaged_state_sends_the_run_back_to_the_one_before(copied_run, run_in, three_rounds):
    run = copied_run("run", "rounds=2")
    newest = run.folder / "checkpoints" / "state_round_000002.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed = run_in("run", "rounds=3")
    assert "Resuming after round 1" in resumed.log
    assert_same_run(resumed, three_rounds)


def test_a_run_may_be_resumed_from_any_saved_state(run_in, three_rounds):
    saved = three_rounds.folder / "checkpoints" / "state_round_000002.pt"
    resumed = run_in("second", "rounds=3", f"resume={saved}")
    assert "Resuming after round 2 of 3" in resumed.log
    assert_same_run(resumed, three_rounds)


def test_harmless_differences_of_settings_are_logged_on_resume(copied_run, run_in):
    copied_run("run", "rounds=1")
    resumed = run_in("run", "rounds=2", "checkpoint.keep=3")
    assert "Resuming with another checkpoint.keep: 2 -> 3" in resumed.log
    assert "Resuming with another rounds: 1 -> 2" in resumed.log


def test_states_are_saved_at_the_chosen_frequency_and_the_best_is_kept(run_in, three_rounds):
    run = run_in("run", "rounds=5", "checkpoint.frequency=2", "checkpoint.keep=2")
    names = {path.name for path in (run.folder / "checkpoints").glob("*_round_0*.pt")}
    best = max((row for row in run.rows if row["round"] in (2, 4, 5)), key=lambda row: (row["accuracy"], -row["round"]))
    assert names == {"state_round_000004.pt", "state_round_000005.pt", f"best_round_{best['round']:06d}.pt"}
    kept = read_state(run.folder / "checkpoints" / f"best_round_{best['round']:06d}.pt")
    assert kept["round"] == best["round"]


def test_the_best_round_is_chosen_on_validation_clips_where_there_are_any(run_in, monkeypatch):
    tested, validated = [0.1, 0.9, 0.5], [0.2, 0.1, 0.8]
    honest = strategy_module.compute_metrics

    def figures(metrics, evaluation, taken):
        found = honest(metrics, evaluation, taken)
        assert found["validation_clips"] == evaluation.scores["after"].clips == 30
        return found | {"accuracy": tested.pop(0), "accuracy_validation": validated.pop(0)}

    monkeypatch.setattr(strategy_module, "compute_metrics", figures)
    run = run_in("run", "rounds=3", "generator=none", "dataset.validation_folds=[3]")
    assert [path.name for path in run.folder.glob("checkpoints/best*")] == ["best_round_000003.pt"]
    assert (run.results["accuracy"], run.results["accuracy_validation"]) == (0.5, 0.8)
    assert (run.results["best_round"], run.results["best_accuracy"]) == (3, 0.5)


def test_a_run_that_saves_seldom_repeats_what_was_not_saved(run_in, three_rounds, monkeypatch):
    with monkeypatch.context() as patch:

        def die(run, round_number, step):
            if round_number == 3:
                raise KilledError

        patch.setattr(Trainer, "server_step_done", die)
        with pytest.raises(KilledError):
            run_in("run", "rounds=3", "checkpoint.frequency=2")
    assert_same_run(run_in("run", "rounds=3"), three_rounds)


def test_a_disk_without_room_for_the_states_stops_the_run_before_it_trains(run_in, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    with refused(OSError, tmp_path / "run", "1.0 MB") as caught:
        run_in("run", "rounds=1")
    assert caught.value.errno == errno.ENOSPC
    assert not read_jsonl(tmp_path / "run" / "metrics.jsonl")


def test_the_size_of_a_state_is_estimated_closely_before_training(run_in, monkeypatch):
    reckoned = []
    monkeypatch.setattr(
        trainer_module, "require_space", lambda folder, needed, what: reckoned.append((what, needed / 4))
    )
    run = run_in("run", "rounds=2")
    size = (run.folder / "checkpoints" / "state_round_000002.pt").stat().st_size
    ((what, of_each),) = reckoned
    assert "4" in what
    assert size <= of_each < 1.5 * size


def test_a_run_that_fails_leaves_no_results(run_in, tmp_path, monkeypatch):
    def fail(*given, **options):
        raise OSError("disk full")

    monkeypatch.setattr("fed_a2v.callbacks.checkpoint.save_state", fail)
    with refused(OSError, "disk full"):
        run_in("run", "rounds=1")
    assert not (tmp_path / "run" / "results.json").exists()


def test_settings_that_no_generator_can_take_fail_before_the_first_round(run_in, tmp_path):
    with refused(ConfigError, "latent_dim=0"):
        run_in("run", "generator.latent_dim=0")
    assert not read_jsonl(tmp_path / "run" / "metrics.jsonl")


def test_a_resumed_run_is_one_run_at_wandb(run_in, monkeypatch, tmp_path):
    given = []

    class WandbRun:
        id = "the-first-id"
        summary = {}

        def log(self, row, step):
            given.append((step, row["accuracy"]))

        def finish(self, exit_code):
            given.append(("finish", exit_code))

    def init(**arguments):
        given.append(("init", arguments["id"]))
        return WandbRun()

    monkeypatch.setattr("wandb.init", init)
    run_in("run", "rounds=1", "wandb.mode=offline")
    rows = run_in("run", "rounds=2", "wandb.mode=offline").rows
    assert given == [
        *(("init", None), (1, rows[0]["accuracy"]), ("finish", 0)),
        # This W&B writes no files: it lacks the first round.
        *(("init", "the-first-id"), (1, rows[0]["accuracy"]), (2, rows[1]["accuracy"]), ("finish", 0)),
    ]
    given.clear()
    run_in("elsewhere", "rounds=3", "wandb.mode=offline", f"resume={tmp_path / 'run'}")
    assert [call[0] for call in given] == ["init", 1, 2, 3, "finish"]
    assert given[0] == ("init", None), "another folder's run is another run"


# Another process, another accident, other data


def test_the_folder_of_a_run_in_progress_is_not_touched(copied_run, run_in, tmp_path):
    run = copied_run("run", "rounds=1")
    before = contents(run.folder)
    with hold(run.folder):
        for resume in ("auto", "never"):
            with refused(FolderInUseError, run.folder):
                run_in("run", "rounds=2", f"resume={resume}")
    assert contents(run.folder) == before


def test_a_failed_run_releases_the_lock_of_its_folder(run_in, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "round_done", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_in("run", "rounds=1")
    assert run_in("run", "rounds=1").results["rounds"] == 1


def rewritten(folder, change):
    """Change the list of lines in a run's `metrics.jsonl`."""
    file = folder / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    change(lines)
    file.write_bytes(b"".join(lines))


def torn(lines):
    lines[1] = lines[1][:50] + b"\n"


@pytest.mark.parametrize(
    "change",
    [torn, lambda lines: lines.pop(), lambda lines: lines.insert(1, lines[0])],
    ids=["torn", "missing", "twice"],
)
def test_a_lost_row_makes_the_run_resume_from_the_state_before_it(copied_run, run_in, three_rounds, change):
    run = copied_run("run", "rounds=2")
    rewritten(run.folder, change)
    resumed = run_in("run", "rounds=3")
    assert f"{run.folder / 'metrics.jsonl'}" in resumed.log
    assert "Resuming after round 1 of 3" in resumed.log
    assert_same_run(resumed, three_rounds)


@pytest.mark.parametrize("source", ["run", "elsewhere", "a state"])
def test_a_lost_row_without_an_earlier_state_is_an_error(copied_run, run_in, source):
    run = copied_run("run", "rounds=3", "checkpoint.keep=1")
    state = run.folder / "checkpoints" / "state_round_000003.pt"
    more = {"run": [], "elsewhere": [f"resume={run.folder}"], "a state": [f"resume={state}"]}[source]
    rewritten(run.folder, torn)
    before = (run.folder / "metrics.jsonl").read_bytes()
    with refused(CheckpointError, run.folder / "metrics.jsonl", "line 2", "resume=never"):
        run_in("run" if source == "run" else "other", "rounds=4", "checkpoint.keep=1", *more)
    assert (run.folder / "metrics.jsonl").read_bytes() == before


def test_rounds_without_a_saved_state_are_repeated_with_a_warning(run_in, three_rounds, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_callback, "save_state", lambda *given, **options: None)
        patch.setattr(Trainer, "_finish", lambda run: run._exit.close())
        run_in("run", "rounds=2")
    resumed = run_in("run", "rounds=3")
    (warning,) = [line for line in resumed.log.splitlines() if "WARNING" in line and "checkpoints" in line]
    assert "2 rounds" in warning
    assert_same_run(resumed, three_rounds)


def test_a_finished_run_is_not_touched_though_its_data_states_and_rows_are_gone(run_in, tmp_path, some_embeddings):
    data = shutil.copy(some_embeddings(), tmp_path / "data.npz")
    words = ("rounds=1", "dataset=embeddings", "partition.sites=2", f"dataset.path={data}")
    first = run_in("run", *words)
    data.unlink()
    shutil.rmtree(first.folder / "checkpoints")
    rewritten(first.folder, lambda lines: lines.clear())
    before = contents(first.folder)
    assert run_in("run", *words).results == first.results
    with refused(CheckpointError, first.folder, "resume=never"):
        run_in("run", *words, "rounds=2")
    assert contents(first.folder) == before


@pytest.fixture(scope="session")
def some_embeddings(tmp_path_factory):
    """Write a file of embeddings of some classes, 12 clips each in three folds; equal seeds give equal clips."""
    folder = tmp_path_factory.mktemp("embeddings")

    def write(classes=4, seed=0):
        random, path = np.random.default_rng(seed), folder / f"{classes}-{seed}.npz"
        embeddings = [row for label in range(classes) for row in label + random.normal(0, 0.1, (12, 6))]
        names = [f"class {label}" for label in range(classes) for _ in range(12)]
        np.savez(path, embeddings=np.float32(embeddings), category=names, fold=[1, 2, 3] * 4 * classes)
        return path

    return write


def test_a_resumed_run_accepts_the_same_data_elsewhere_and_refuses_other_data(run_in, some_embeddings, tmp_path):
    words = ("dataset=embeddings", "partition.sites=2", "generator=none")
    first, moved = some_embeddings(), shutil.copy(some_embeddings(), tmp_path / "moved.npz")
    whole = run_in("whole", *words, f"dataset.path={first}", "rounds=2")
    run_in("run", *words, f"dataset.path={first}", "rounds=1")
    before = contents(tmp_path / "run")
    less = some_embeddings(3)
    with refused(CheckpointError, "class 3", "accept_new_data=true"):
        run_in("run", *words, f"dataset.path={less}", "rounds=2")
    with refused(CheckpointError, "row-00000", "accept_new_data=true"):
        run_in("run", *words, f"dataset.path={some_embeddings(seed=1)}", "rounds=2")
    after = contents(tmp_path / "run")
    assert {path.name for path in after if after[path] != before.get(path)} <= {"run.log"}
    assert_same_run(run_in("run", *words, f"dataset.path={moved}", "rounds=2"), whole)
    accepted = run_in("run", *words, f"dataset.path={less}", "rounds=3", "accept_new_data=true")
    assert accepted.results["rounds"] == 3
    assert "class 3" in accepted.log


def test_a_resumed_run_accepts_the_same_prompts_elsewhere_and_refuses_other_prompts(run_in, tmp_path):
    random = np.random.default_rng(0)
    for name in ("first.npz", "other.npz"):
        names = ["dog", "rain", "sneezing", "rooster"]
        np.savez(tmp_path / name, category=names, vectors=np.float32(random.normal(size=(4, 1, 64))))
    shutil.copy(tmp_path / "first.npz", tmp_path / "moved.npz")
    words = ("dataset.classes=[dog,rain,sneezing,rooster]", "partition.sites=2", "targets=file")
    words = (*words, "adapters.clip_width=null")
    run_in("run", *words, f"targets.path={tmp_path / 'first.npz'}", "rounds=1")
    with refused(CheckpointError, "dog"):
        run_in("run", *words, f"targets.path={tmp_path / 'other.npz'}", "rounds=2")
    assert run_in("run", *words, f"targets.path={tmp_path / 'moved.npz'}", "rounds=2").results["rounds"] == 2


# A real kill

STUCK_IN_ROUND_3 = """
import sys, time
from pathlib import Path
from fed_a2v.cli import main
from fed_a2v.federation.server.trainer import Trainer

honest = Trainer.round_done

def round_done(run, row):
    while row["round"] == 3:
        Path("stuck").touch()
        time.sleep(1)
    honest(run, row)

Trainer.round_done = round_done
main(sys.argv[1:])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize("shares_service", [False, True])
def test_a_killed_and_resumed_run_ends_like_an_uninterrupted_one(tmp_path, finished_run, monkeypatch, shares_service):
    """Also if both processes inherit W&B's service, to which the killed run is still in use."""
    if shares_service:
        wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True)).finish()
        assert "WANDB_SERVICE" in os.environ
    else:
        monkeypatch.delenv("WANDB_SERVICE", raising=False)
    folder = tmp_path / "killed"
    words = ["train", *FAST, "rounds=3", "wandb.mode=offline", f"hydra.run.dir={folder}"]
    with (tmp_path / "shown").open("w") as shown:
        process = subprocess.Popen(
            [sys.executable, "-c", STUCK_IN_ROUND_3, *words], cwd=tmp_path, stdout=shown, stderr=subprocess.STDOUT
        )
        try:
            wait_until(lambda: (tmp_path / "stuck").exists() or process.poll() is not None, "the third round")
        finally:
            process.kill()
            process.wait()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "shown").read_text()
    assert len(read_jsonl(folder / "metrics.jsonl")) == 2
    assert not (folder / "results.json").exists()

    command = [Path(sys.executable).parent / "fed-a2v", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    killed = Finished(folder, json.loads((folder / "results.json").read_text()))
    whole = finished_run("rounds=3")
    assert_same_run(killed, whole)
    assert without_seconds(killed.results) == without_seconds(whole.results)
    assert not list(folder.rglob("*.tmp"))
    assert "callbacks.wandb" not in done.stderr + (folder / "run.log").read_text(), "W&B failed"
    # W&B's own process may put the bytes on the disk a moment later.
    wait_until(lambda: any(row.get("round") == 3 for row in rows_at_wandb(folder)), "the last round at W&B")
    tracked = [(row["_step"], row["accuracy"]) for row in rows_at_wandb(folder) if "accuracy" in row]
    if (
        shares_service
    ):  # which may put rows of the killed run on the disk only after the resumed one has looked for them
        tracked = sorted(set(tracked))
    assert tracked == [(row["round"], row["accuracy"]) for row in killed.rows]


def test_one_folder_has_one_run_after_the_other_and_not_two_logs(copied_run, run_in):
    copied_run("run", "rounds=1")
    log = run_in("run", "rounds=2").log
    assert log.count("=== Round 1:") == log.count("=== Round 2:") == 1
