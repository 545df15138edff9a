"""The command line."""

import contextlib
import csv
import functools
import json
import os
import pty
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from fed_a2v import __version__
from fed_a2v.cli import main
from fed_a2v.commands import COMMANDS
from fed_a2v.commands.train import MAIN_KEYS
from fed_a2v.config.baselines import BASELINES
from fed_a2v.config.compose import compose_settings
from fed_a2v.config.schema import Settings
from fed_a2v.config.tree import options
from tests import command

COMMAND = str(Path(sys.executable).parent / "fed-a2v")
# A run of a second, and one that also takes the second of its report.
FAST = (
    *("experiment=quick", "rounds=1", "report=false", "adapters.hidden_width=64"),
    *("finetune.first_steps=30", "dataset.clips_per_class=4", "share.min_clips=1"),
)
WITH_REPORT = (*FAST, "report=true")


@pytest.fixture
def in_a_process(tmp_path):
    """Run the command in an empty folder, in a process of its own."""

    def run(*words, program=(COMMAND,)):
        return subprocess.run([*program, *words], cwd=tmp_path, capture_output=True, text=True, timeout=280)

    return run


@pytest.fixture
def fed_a2v(tmp_path):
    """Run the command in an empty folder, in this process."""
    return functools.partial(command.fed_a2v, cwd=tmp_path)


@pytest.fixture
def refused(fed_a2v):
    """Run the command, which must end with exit code 2; returns its error output."""

    def run(*words):
        done = fed_a2v(*words)
        assert done.returncode == 2
        assert done.stdout == ""
        return done.stderr.strip()

    return run


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """The built-in sounds as `fed-a2v synth` writes them."""
    folder = tmp_path_factory.mktemp("sounds") / "my sounds"
    done = command.fed_a2v("synth", folder, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    assert f"Wrote 40 clips to {folder / 'audio'}" in done.stdout
    return folder


# train


def test_train_ends_with_a_table_and_the_folder(in_a_process, tmp_path):
    done = in_a_process("train", *WITH_REPORT, "hydra.run.dir=runs/mine")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "mine"
    results = json.loads((folder / "results.json").read_text())
    table, *last = done.stdout.rstrip().rsplit("\n", 2)
    assert last == [f"Results: {folder}", f"Report: {folder / 'report.html'}"]
    assert (folder / "report.html").is_file()
    for figure in ("accuracy", "accuracy_before"):
        assert f"{results[figure]:.3f}" in table
    assert "Round 1/1: accuracy" in done.stderr
    assert "=== Round 1: Training Generator and Global Adapters ===" in done.stderr
    assert "[ROUND 1]" not in done.stderr, "Flower's own lines are for run.log"
    assert not {"Results:", "Report:"} & set(done.stderr.split()), "they are said once, below the table"
    log = (folder / "run.log").read_text()
    assert all(f"INFO {line}\n" in log for line in last)
    assert (folder / "config.yaml").is_file()


def test_a_terminal_shows_once_where_the_report_is(tmp_path):
    folder = tmp_path / "run"
    reader, writer = pty.openpty()
    with os.fdopen(reader, encoding="utf-8", errors="replace") as screen:
        words = [COMMAND, "train", *WITH_REPORT, f"hydra.run.dir={folder}"]
        process = subprocess.Popen(words, cwd=tmp_path, stdout=writer, stderr=writer)
        os.close(writer)
        shown = ""
        with contextlib.suppress(OSError):  # what Linux says when the last writer is gone
            for line in screen:
                shown += line
    assert process.wait(timeout=280) == 0, shown
    assert "Phase" in shown, "no live view"
    assert shown.count("Report: ") == shown.count("Results: ") == 1


def test_the_default_folder_of_a_run_is_under_outputs(fed_a2v, tmp_path):
    done = fed_a2v("train", *FAST, "generator=none")
    assert done.returncode == 0, done.stderr
    (results,) = tmp_path.glob("outputs/*/*/results.json")
    assert f"Results: {results.parent}" in done.stdout.splitlines()


def test_a_wrong_key_ends_in_one_line_that_names_the_nearest(in_a_process, tmp_path):
    done = in_a_process("train", "rouns=3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("fed-a2v: ")
    assert len(done.stderr.splitlines()) == 1
    assert all(name in done.stderr for name in ("'rouns=3'", "rounds"))
    assert not list(tmp_path.iterdir()), "nothing was begun"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["generator=vea"], ("generator=vea", "vae")),
        (["rounds=0"], ("rounds", "0")),
        (["rounds=1,2"], ("'rounds=1,2'", "-m", "KEY=[A,B]")),
        (["seed=${nowhere}"], ("seed", "'nowhere'")),
        (["dataset=null"], ("dataset=null", "synth")),
        (["dataset=esc50"], ("dataset=esc50", "dataset.root=FOLDER")),
        (["targets=file"], ("targets=file", "targets.path=FILE.npz")),
        (["-m", "rouns=1,2"], ("rouns", "rounds")),
        (["-m", "generator=none,vea"], ("generator=vea", "vae")),
        (["-m", "rounds=1,0"], ("rounds", "0")),
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_starts(refused, tmp_path, words, named):
    said = refused("train", *words)
    assert said.startswith("fed-a2v: ")
    assert all(name in said for name in named)
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["dataset=esc50", "dataset.root=/nowhere"], ("dataset.root=/nowhere",)),
        (["dataset=embeddings", "dataset.path=/nowhere.npz"], ("dataset.path", "/nowhere.npz")),
        (["targets=file", "targets.path=/nowhere.npz"], ("targets.path", "/nowhere.npz")),
        (["resume=/nowhere"], ("resume=/nowhere",)),
        (["partition.sites=1000", "partition=iid"], ("partition.sites=1000",)),
        (["generator.latent_dim=0"], ("latent_dim=0",)),
        (
            ["generator.load_checkpoint=true", "generator.checkpoint_path=gone.pt"],
            ("gone.pt", "generator.checkpoint_path"),
        ),
    ],
)
def test_an_error_about_a_missing_file_names_it_without_a_traceback(refused, words, named):
    said = refused("train", *FAST, *words)
    last = said.splitlines()[-1]
    assert last.startswith("fed-a2v: ")
    assert all(name in last for name in named)
    assert "Traceback" not in said


def test_training_again_in_the_same_folder_resumes_the_run(fed_a2v, tmp_path):
    words = ("train", *FAST, "generator=none", f"hydra.run.dir={tmp_path / 'run'}")
    assert fed_a2v(*words).returncode == 0
    again = fed_a2v(*words, "rounds=2")
    assert again.returncode == 0, again.stderr
    assert "Resuming after round 1 of 2" in again.stderr
    refused = fed_a2v(*words, "rounds=3", "site.epochs=9")
    assert refused.returncode == 2
    assert "site.epochs" in refused.stderr
    assert "Traceback" not in refused.stderr


# Sounds from a folder


def test_the_written_sounds_train_like_any_other_folder(fed_a2v, sounds, tmp_path):
    done = fed_a2v("train", *FAST, "dataset=esc50", f"dataset.root='{sounds}'", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test_clips"] == 10
    assert results["accuracy"] > 0.2


def test_a_broken_sound_is_named_or_skipped_and_counted(fed_a2v, sounds, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(sounds, broken)
    victim = sorted((broken / "audio").iterdir())[3]
    victim.write_bytes(b"RIFF and then nothing")
    words = ("train", *FAST, "dataset=esc50", f"dataset.root={broken}")
    done = fed_a2v(*words)
    assert done.returncode == 2
    assert victim.name in done.stderr.splitlines()[-1]
    assert "dataset.skip_bad=true" in done.stderr
    assert "Traceback" not in done.stderr
    skipped = fed_a2v(*words, "dataset.skip_bad=true", "hydra.run.dir=run")
    assert skipped.returncode == 0, skipped.stderr
    assert any({"1", "40"} <= set(line.split()) for line in skipped.stderr.splitlines())
    assert victim.name not in (tmp_path / "run" / "partition.json").read_text()


# Sweeps


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    words = ("train", "-m", *FAST, "generator=none,gaussian", "seed=0,1", f"hydra.sweep.dir={folder}")
    done = command.fed_a2v(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_sweep_runs_every_combination_into_a_folder_of_its_own(sweep):
    folder, _ = sweep
    found = [json.loads(path.read_text()) for path in folder.glob("*/results.json")]
    assert sorted((results["generator"], results["seed"]) for results in found) == [
        *(("gaussian", 0), ("gaussian", 1), ("none", 0), ("none", 1)),
    ]
    start = {(results["generator"], results["seed"]): results["accuracy_before"] for results in found}
    assert start["none", 0] == start["gaussian", 0], "the same seed starts the same"


def test_every_job_of_a_sweep_has_its_own_log(sweep):
    folder, _ = sweep
    logs = [path.read_text() for path in folder.glob("*/run.log")]
    assert len(logs) == 4
    assert all("=== Round 1: Training Generator and Global Adapters ===" in log for log in logs)


def test_a_sweep_ends_with_a_table_of_all_its_jobs(sweep):
    folder, done = sweep
    with (folder / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["generator"], row["seed"]) for row in rows] == [
        *(("gaussian", "0"), ("gaussian", "1"), ("none", "0"), ("none", "1")),
    ]
    results = [json.loads((folder / row["job"] / "results.json").read_text()) for row in rows]
    assert [float(row["accuracy"]) for row in rows] == [result["accuracy"] for result in results]
    assert (folder / "summary.md").read_text().count("\n|") >= 5
    assert done.stdout.rstrip().endswith(f"Summary: {folder / 'summary.md'}")


# what train shows


def test_quiet_prints_the_result_and_nothing_else(fed_a2v, tmp_path):
    done = fed_a2v("train", *WITH_REPORT, "--quiet", "hydra.run.dir=runs/quiet")
    results = json.loads((tmp_path / "runs" / "quiet" / "results.json").read_text())
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith(f"accuracy {results['accuracy']:.4f} (95 % {results['accuracy_low']:.3f} to ")
    assert f"on {results['test_clips']} test clips after 1 round (" in done.stdout
    assert done.stdout.endswith(f": {tmp_path / 'runs' / 'quiet'}\n")
    assert done.stdout.count("\n") == 1
    assert (tmp_path / "runs" / "quiet" / "report.html").is_file()


def test_json_prints_an_object_a_round_and_nothing_else(fed_a2v, tmp_path):
    done = fed_a2v("train", *WITH_REPORT, "rounds=2", "--json", "hydra.run.dir=runs/json")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "json"
    assert done.stderr.splitlines()[-2:] == [f"Report: {folder / 'report.html'}", f"Results: {folder}"]
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    for printed, row in zip(done.stdout.splitlines(), rows, strict=True):
        assert json.loads(printed).items() <= json.loads(row).items()


def test_quiet_and_json_together_are_refused(refused):
    said = refused("train", "--quiet", "--json")
    assert all(option in said for option in ("--quiet", "--json"))


# compare


def test_compare_shows_the_experiment_with_its_baselines(fed_a2v, tmp_path):
    done = fed_a2v("compare", *WITH_REPORT, "generator=gaussian", "--out", "side by side")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "side by side"
    names = ["FedAvg", "prototypes", "pooled", "gaussian"]
    rows = json.loads((folder / "comparison.json").read_text())
    assert list(rows) == names
    final = ", ".join(f"{name} {rows[name][-1]['accuracy']:.3f}" for name in names)
    assert f"Final accuracy: {final}" in done.stdout
    results = json.loads((folder / "gaussian" / "results.json").read_text())
    told = " ".join(done.stdout.split())
    assert f"adds {results['gain_first_round']:+.3f} in round 1" in told
    assert f"{results['gain_over_fedavg']:+.3f} over FedAvg" in told
    assert done.stdout.rstrip().endswith(f"Results: {folder}\nReport: {folder / 'report.html'}")
    assert (folder / "report.html").is_file()
    assert all(name in (folder / "comparison.md").read_text() for name in names)


def test_compare_takes_folds_and_seeds_anywhere_among_the_overrides(fed_a2v, tmp_path):
    arms = "prototypes,pooled, as many steps"
    own = ("--seeds=0", "--jobs=1", "--with", arms, "--out", "crossed")
    words = ("--folds", *FAST, "generator=gaussian", *own)
    done = fed_a2v("compare", *words)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "crossed"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [f"fold-{n}_seed-0" for n in (1, 2, 3, 4)]
    summary = json.loads((folder / "comparison.json").read_text())["cross_validation"]
    assert list(summary["arms"]) == ["prototypes", "pooled, as many steps", "gaussian"]
    told = " ".join(done.stdout.split())
    assert len(summary["sentences"]) == 2
    assert all(sentence in told for sentence in summary["sentences"])
    for name, arm in summary["arms"].items():
        assert f"{name} " in done.stdout
        assert f"{arm['mean']:.3f} ± {arm['deviation']:.3f}" in done.stdout
    assert done.stdout.rstrip().endswith(f"Results: {folder}")


@pytest.mark.parametrize("words", [("--folds", "2,x"), ("--seeds", "one"), ("--folds", "7"), ("--jobs", "0")])
def test_compare_refuses_wrong_values_of_folds_and_seeds(refused, words):
    assert "=".join(words) in refused("compare", *FAST, *words)


def test_an_unknown_baseline_is_refused(refused):
    assert "did you mean 'FedAvg'" in refused("compare", "--with", "fedavg")
    said = refused("compare", "--with", "FedAvg,magic")
    assert said.startswith("fed-a2v: ")
    assert all(name in said for name in ("--with=magic", *BASELINES))


def test_compare_refuses_a_wrong_key_like_train(refused):
    said = refused("compare", "rouns=1")
    assert all(name in said for name in ("'rouns=1'", "rounds"))


# synth


def test_synth_writes_a_folder_in_esc50s_layout(sounds):
    with (sounds / "meta" / "esc50.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    assert len({row["category"] for row in rows}) == 10
    assert {row["fold"] for row in rows} == {"1", "2", "3", "4"}
    assert {row["filename"] for row in rows} == {path.name for path in (sounds / "audio").iterdir()}
    assert all(path.read_bytes()[:4] == b"RIFF" for path in (sounds / "audio").iterdir())


# The rest


def test_the_module_is_the_command(in_a_process):
    done = in_a_process("--version", program=(sys.executable, "-m", "fed_a2v"))
    assert (done.returncode, done.stdout.strip()) == (0, __version__)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_the_commands(capsys, words):
    main(words)
    said = capsys.readouterr().out
    summaries = dict(line.split(maxsplit=1) for line in said.splitlines() if line.startswith("  "))
    assert tuple(summaries) == COMMANDS


@pytest.mark.parametrize("words", [["train", "--help"], ["help", "train"]])
def test_the_help_of_train_describes_the_main_settings(capsys, words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code
    said = " ".join(capsys.readouterr().out.split())
    assert all(f" {key}= " in said for key in MAIN_KEYS)
    for key in ("rounds", "seed"):
        assert f"{key}= {str(Settings.model_fields[key].description).capitalize()}" in said
    assert all(f" {option}" in said for option in options("generator"))


def test_every_example_of_the_help_composes():
    usages = [import_module(f"fed_a2v.commands.{command}").USAGE for command in COMMANDS]
    lines = [line.split("#")[0].split() for usage in usages for line in usage.splitlines() if line.startswith("  fed-")]
    assert len(lines) >= 15
    for words in lines:
        assert words[1] in COMMANDS
        overrides = [word for word in words[2:] if "=" in word and not word.startswith(("-", "hydra"))]
        overrides = [word for word in overrides if not word.endswith(".wav")]  # generate's NAME=SOUND
        first_of_each = [word.split(",")[0] for word in overrides]
        compose_settings(first_of_each)


def test_an_unknown_command_is_refused(refused):
    said = refused("trian")
    assert said.startswith("fed-a2v: ")
    assert all(name in said for name in ("'trian'", "train"))
    assert all(name in refused("xyz") for name in ("'xyz'", *COMMANDS))
