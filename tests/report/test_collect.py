import json
import shutil

import pytest

from fed_a2v.report.collect import ReportError, collect
from fed_a2v.runs.folder import RunFolder
from tests.refusals import refused
from tests.report.conftest import CLASSES, written_run


def test_a_run_is_read_whole(run_folder):
    (run,) = collect([run_folder]).runs
    assert run.label == "mine"
    assert [row["round"] for row in run.rows] == [1, 2, 3, 4]
    assert run.finished
    assert run.config["partition"]["sites"] == 5
    assert set(run.evaluation["classes"]) == set(CLASSES)
    assert list(run.map.classes) == list(CLASSES)
    assert run.environment["python"]


def test_a_comparison_stands_for_its_runs_the_experiment_first(comparison):
    found = collect([comparison])
    assert [run.label for run in found.runs] == ["vae", "FedAvg", "prototypes"]
    assert [each.label for each in found.baselines] == ["pooled"]


def test_a_run_of_a_comparison_has_the_others_as_baselines(comparison):
    found = collect([comparison / "vae"])
    assert [run.label for run in found.runs] == ["vae"]
    assert [each.label for each in found.baselines] == ["FedAvg", "prototypes", "pooled"]


def test_a_sweep_stands_for_its_jobs_in_numeric_order(run_folder, tmp_path):
    for name in ("10", "9", "0"):
        shutil.copytree(run_folder, tmp_path / name)
    (tmp_path / "11").mkdir()  # a job that never began
    assert [run.label for run in collect([tmp_path]).runs] == ["0", "9", "10"]


def test_runs_of_the_same_name_are_told_apart_by_their_folders(run_folder, tmp_path):
    for parent in ("one", "two"):
        shutil.copytree(run_folder, tmp_path / parent / "mine")
    assert [run.label for run in collect([tmp_path / "one", tmp_path / "two"]).runs] == ["one/mine", "two/mine"]


def test_a_run_that_is_named_twice_counts_once(run_folder):
    assert len(collect([run_folder, run_folder / ".." / run_folder.name]).runs) == 1


def test_a_run_in_progress_has_its_files_so_far(tmp_path):
    folder = RunFolder(tmp_path / "young")
    folder.start("rounds: 5\n")
    folder.append({"round": 1})
    (run,) = collect([folder.path]).runs
    assert not run.finished
    assert (run.evaluation, run.environment, run.map) == ({}, {}, None)


@pytest.mark.parametrize("name", ["evaluation.json", "environment.json", "map.npz", "metrics.jsonl", "config.yaml"])
@pytest.mark.parametrize("content", [b"{]\n{]\n", b"PK\x03\x04 no archive\n\n", b"[1]\n[1]\n"])
def test_a_damaged_file_is_named(name, content, tmp_path):
    run = written_run(tmp_path / "run")
    (run / name).write_bytes(content)
    if (name, content) == ("config.yaml", b"[1]\n[1]\n"):
        content = b"- : ["
        (run / name).write_bytes(content)
    with refused(ReportError, run):
        collect([run])


def test_places_without_a_run_are_named(tmp_path):
    with refused(ReportError, tmp_path / "nowhere"):
        collect([tmp_path / "nowhere"])
    with refused(ReportError, tmp_path, "metrics.jsonl"):
        collect([tmp_path])
    (tmp_path / "metrics.jsonl").write_text("")
    with refused(ReportError, tmp_path / "metrics.jsonl"):
        collect([tmp_path])
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"loss": 1}) + "\n")
    with refused(ReportError, tmp_path / "metrics.jsonl"):
        collect([tmp_path])
