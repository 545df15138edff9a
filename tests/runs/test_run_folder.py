import json

import torch

from fed_a2v.runs.checkpoint import load_state, save_state
from fed_a2v.runs.folder import GUIDE_METRICS, RunFolder


def test_a_new_folder_holds_config_and_partition(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start("seed: 0\n", {"0": ["a.wav"], "1": ["b.wav"]})
    assert (tmp_path / "run/config.yaml").read_text() == "seed: 0\n"
    assert json.loads((tmp_path / "run/partition.json").read_text()) == {"0": ["a.wav"], "1": ["b.wav"]}
    assert folder.rows() == []
    assert not folder.results.exists()


def test_each_round_is_a_json_object_with_the_guides_five_names(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start("")
    row = {"round": 1, "server/generator_loss": 0.25, "cosine": float("nan"), "per_class": {"dog": 1.0}}
    folder.append(row | {"rejections": ["site 3: NaN"]})
    (line,) = folder.metrics.read_text().splitlines()
    read = json.loads(line)
    assert read.keys() >= set(GUIDE_METRICS)
    assert read["server/generator_loss"] == 0.25
    assert read["server/generator_validation_l1"] is None
    assert (read["cosine"], read["per_class"], read["rejections"]) == (None, {"dog": 1.0}, ["site 3: NaN"])


def test_resuming_after_a_round_keeps_its_rows_and_drops_later_ones(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start("")
    for number in (1, 2, 3):
        folder.append({"round": number, "accuracy": 0.1 * number})
    before = folder.metrics.read_text().splitlines()
    with folder.metrics.open("a") as file:
        file.write('{"round": 4, "accu')  # a kill in the middle of a line
    folder.write_results({"accuracy": 0.3})

    folder.start("", after_round=2)
    assert folder.metrics.read_text().splitlines() == before[:2]
    assert not folder.results.exists()
    folder.append({"round": 3, "accuracy": 0.1 * 3})
    assert folder.metrics.read_text().splitlines() == before


def test_starting_anew_leaves_no_state_of_the_run_before(tmp_path):
    for number in (9, 10):
        save_state(tmp_path, {"round": number, "config": {}, "weights": torch.zeros(1)})
    RunFolder(tmp_path).start("")
    assert load_state(tmp_path) is None
    save_state(tmp_path, {"round": 1, "config": {}})
    assert load_state(tmp_path)["round"] == 1


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    save_state(tmp_path, {"round": 1, "config": {}})
    for name in (".config.yaml.0a1b.tmp", "checkpoints/.state_round_000002.pt.0a1b.tmp"):
        (tmp_path / name).write_bytes(b"half")
    RunFolder(tmp_path).start("", after_round=1)
    assert not list(tmp_path.rglob("*.tmp"))
    assert load_state(tmp_path)["round"] == 1
