"""Checkpoints of generators, alone and in families."""

import logging
import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.runs.checkpoint import save_state
from fed_a2v.runs.generator_files import keyed_path, load_generator_family, own_path, save_generator_family
from fed_a2v.storage.torch_files import CheckpointError, DamagedError
from tests.refusals import refused

DIMENSIONS = {"input_dim": 512, "visual_dim": 768, "latent_dim": 256}


def save(path, round_number, folder=None, **changes):
    """One generator, saved as a run does it."""
    content = {"generator_type": "vae", "dimensions": DIMENSIONS, "generator_state": {"w": torch.ones(2)}}
    (written,) = save_generator_family(path, round_number, {"": content | changes}, folder=folder)
    return written


def load(path, generator_type="vae", dimensions=DIMENSIONS):
    return load_generator_family(path, generator_type, dimensions, [""])[""]


def test_the_guides_snippet_reads_a_generator_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save("checkpoints/vae_generator.pt", 50)

    checkpoint = torch.load("checkpoints/vae_generator_round_50.pt")
    print(f"Round: {checkpoint['round']}")  # noqa: T201
    print(f"Generator type: {checkpoint['generator_type']}")  # noqa: T201

    assert capsys.readouterr().out == "Round: 50\nGenerator type: vae\n"


def test_saving_logs_the_guides_lines(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fed_a2v"):
        path = save("checkpoints/vae_generator.pt", 10, folder=tmp_path)
    assert path == tmp_path / "checkpoints/vae_generator_round_10.pt"
    assert caplog.messages == [
        "Saving generator checkpoint at round 10",
        "Saved generator checkpoint to checkpoints/vae_generator_round_10.pt",
    ]


def test_a_generator_comes_back_with_its_optimiser_and_extras(tmp_path):
    layer = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(layer.parameters()).state_dict()
    path = save(tmp_path / "vae.pt", 10, optimizer_state=optimiser, classes=["dog", "cat"])
    loaded = load(path)
    assert torch.equal(loaded["generator_state"]["w"], torch.ones(2))
    assert loaded["optimizer_state"]["param_groups"] == optimiser["param_groups"]
    assert loaded["dimensions"] == DIMENSIONS
    assert loaded["classes"] == ["dog", "cat"]


def test_the_base_path_gives_the_highest_round_not_the_last_name(tmp_path):
    for round_number in (10, 9):
        save(tmp_path / "vae.pt", round_number)
    save(tmp_path / "other_vae.pt", 11)
    assert load(tmp_path / "vae.pt")["round"] == 10


def aged(path, seconds):
    """The file as if it had been written so many seconds after a fixed time."""
    os.utime(path, (10**9 + seconds,) * 2)
    return path


def numbered(path, round_number, number):
    return save(path, round_number, generator_state={"w": torch.tensor([float(number)])})


def number_in(path, **where):
    return float(load_generator_family(path, "vae", DIMENSIONS, [""], **where)[""]["generator_state"]["w"])


def test_a_relative_path_is_looked_for_in_the_working_directory_then_in_the_runs_beside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, beside = tmp_path / "outputs" / "2025-01-02" / "10-00-00", tmp_path / "outputs" / "2025-01-01"
    path = "checkpoints/vae.pt"
    aged(numbered(run / path, 9, 1), 9)
    with refused(FileNotFoundError, "vae_round_N.pt", run):
        number_in(path, folder=run)  # what a run that was stopped in its first round has saved itself
    aged(numbered(beside / "08-00-00" / path, 10, 2), 1)
    aged(numbered(beside / "09-00-00" / path, 3, 3), 3)  # fewer rounds, and later
    aged(numbered(beside / "09-00-00" / path, 2, 4), 4)
    assert number_in(path, folder=run) == 3
    aged(numbered(tmp_path / path, 1, 5), 0)
    assert number_in(path, folder=run) == 5
    assert number_in(path, folder=run, own=True) == 1


@pytest.mark.parametrize("given", ["outputs/vae.pt", "outputs", "outputs/2025-01-01/09-00-00"])
@pytest.mark.parametrize("absolute", [True, False])
def test_the_newest_file_below_a_path_is_found_in_dated_folders(tmp_path, monkeypatch, given, absolute):
    monkeypatch.chdir(tmp_path)
    for number, moment in enumerate(["2025-01-01/08-00-00", "2025-01-01/09-00-00", "2024-12-31/23-00-00"]):
        for base in ("vae.pt", "vae_generator.pt"):
            path = numbered(tmp_path / "outputs" / moment / "checkpoints" / base, 10 - number, number)
            aged(path, {0: 1, 1: 9, 2: 5}[number])
    assert number_in(tmp_path / given if absolute else given, folder=tmp_path / "run") == 1


def test_of_a_family_the_files_of_one_folder_are_taken_together(tmp_path):
    for number, (moment, keys) in enumerate([("08-00-00", ["cat", "cow"]), ("09-00-00", ["cat", "dog"])]):
        base = tmp_path / "outputs" / moment / "vae.pt"
        for path in save_generator_family(base, 5, family(keys, marks=number)):
            aged(path, number)
    found = load_generator_family(tmp_path / "outputs" / "vae.pt", "vae", DIMENSIONS, ["cat", "cow", "dog"])
    assert {key: checkpoint["marks"] for key, checkpoint in found.items()} == {"cat": 1, "dog": 1}


@pytest.mark.parametrize(
    ("configured", "saved"),
    [
        ("checkpoints/vae_generator.pt", "checkpoints/vae_generator.pt"),
        ("saved/mine.pt", "checkpoints/mine.pt"),
        ("/elsewhere/checkpoints/mine_round_3.pt", "checkpoints/mine.pt"),
        ("../mine_round_3_round_2.pt", "checkpoints/mine.pt"),
        ("outputs", "checkpoints/gmm_generator.pt"),
        ("outputs/2025-01-01", "checkpoints/gmm_generator.pt"),
        ("state_round_000003.pt", "checkpoints/gmm_generator.pt"),
    ],
)
def test_a_run_saves_in_a_folder_of_its_own_under_the_configured_name(configured, saved):
    assert own_path(configured, "gmm") == Path(saved)


def test_another_type_is_refused_with_both_types(tmp_path):
    path = save(tmp_path / "vae.pt", 1)
    with refused(CheckpointError, path, "gaussian", "generator=vae", "generator.checkpoint_path"):
        load(path, "gaussian")


def test_other_dimensions_are_refused_with_both_values_of_each(tmp_path):
    path = save(tmp_path / "vae.pt", 1)
    with refused(CheckpointError, path, "input_dim", 512, 1024, "latent_dim", 256, "(absent)") as caught:
        load(path, dimensions={"input_dim": 1024, "visual_dim": 768})
    assert "visual_dim" not in str(caught.value)


def test_a_missing_checkpoint_is_an_error_that_says_what_was_looked_for(tmp_path):
    looked_for = ("vae.pt", "vae_round_N.pt", tmp_path / "checkpoints")
    with refused(FileNotFoundError, *looked_for, "generator.load_checkpoint=false"):
        load(tmp_path / "checkpoints" / "vae.pt")


def test_a_file_that_is_no_generator_checkpoint_is_refused(tmp_path):
    torch.save({"weights": torch.ones(1)}, tmp_path / "vae.pt")
    with refused(CheckpointError, tmp_path / "vae.pt") as caught:
        load(tmp_path / "vae.pt")
    assert caught.type is CheckpointError, "nothing is damaged"
    of_a_run = save_state(tmp_path, {"round": 1, "config": {"rounds": 1}})
    with refused(CheckpointError, of_a_run, "dimensions", "generator_type", "generator_state"):
        load(of_a_run)
    (tmp_path / "vae.pt").write_bytes(b"text")
    with refused(DamagedError, tmp_path / "vae.pt"):
        load(tmp_path / "vae.pt")


# A family of generators

KEYS = ("dog", "Dog", "a/b", "a.b", "..", "", "räv", "dog_round_3", "x" * 300, "keys")


def family(keys, round_number=10, **changes):
    return {
        key: {
            "generator_type": "vae",
            "dimensions": DIMENSIONS,
            "generator_state": {"weight": torch.full((2,), float(number))},
            "optimizer_state": None,
            "key": key,
            "family": list(keys),
            **changes,
        }
        for number, key in enumerate(keys)
    }


def load_family(folder, keys, **changes):
    return load_generator_family(folder / "checkpoints" / "vae.pt", "vae", {**DIMENSIONS, **changes}, keys)


def test_a_family_has_a_file_a_key_with_a_plain_name_and_none_overwrites_another(tmp_path):
    written = save_generator_family("checkpoints/vae.pt", 10, family(KEYS), folder=tmp_path)
    assert written[0] == tmp_path / "checkpoints" / "vae_dog_round_10.pt"
    names = {path.name.casefold() for path in written}
    assert len(names) == len(KEYS)
    assert all(re.fullmatch(r"vae[a-z0-9_-]*_round_10\.pt", name) and len(name) < 100 for name in names)
    assert {path.parent for path in written} == {tmp_path / "checkpoints"}
    for key, path in zip(KEYS, written, strict=True):
        checkpoint = torch.load(path)
        assert (checkpoint["round"], checkpoint["generator_type"], checkpoint["key"]) == (10, "vae", key)


@given(st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=6, unique=True))
def test_different_keys_never_share_a_file(keys):
    paths = {str(keyed_path("checkpoints/vae.pt", key)).casefold() for key in keys}
    assert len(paths) == len(keys)
    assert all(re.fullmatch(r"checkpoints/vae_[a-z0-9_-]+\.pt", path) for path in paths)


def test_the_newest_round_of_a_family_comes_back_by_key(tmp_path):
    save_generator_family("checkpoints/vae.pt", 9, family(KEYS), folder=tmp_path)
    save_generator_family("checkpoints/vae.pt", 10, family(KEYS), folder=tmp_path)
    loaded = load_family(tmp_path, KEYS)
    assert set(loaded) == set(KEYS)
    assert {key: float(loaded[key]["generator_state"]["weight"][0]) for key in KEYS} == dict(
        zip(KEYS, map(float, range(len(KEYS))), strict=True)
    )
    assert {checkpoint["round"] for checkpoint in loaded.values()} == {10}


def test_a_lost_file_of_a_family_is_an_error_that_names_its_key(tmp_path):
    written = save_generator_family("checkpoints/vae.pt", 10, family(["cat", "dog", "cow"]), folder=tmp_path)
    written[1].unlink()
    with refused(FileNotFoundError, "checkpoints/vae.pt", 3, "'dog'", "vae_dog_round_10.pt") as caught:
        load_family(tmp_path, ["cat", "cow", "dog"])
    assert "cow" not in str(caught.value)


def test_a_family_of_which_one_file_is_older_is_not_mixed_from_two_rounds(tmp_path):
    save_generator_family("checkpoints/vae.pt", 9, family(["cat", "dog"]), folder=tmp_path)
    save_generator_family("checkpoints/vae.pt", 10, family(["cat", "dog"]), folder=tmp_path)[1].unlink()
    with refused(FileNotFoundError, "'dog'", "vae_dog_round_10.pt"):
        load_family(tmp_path, ["cat", "dog"])


def test_keys_that_had_not_appeared_when_a_family_was_saved_are_no_error(tmp_path):
    save_generator_family("checkpoints/vae.pt", 10, family(["cat", "dog"]), folder=tmp_path)
    assert set(load_family(tmp_path, ["cat", "cow", "dog"])) == {"cat", "dog"}


def test_a_missing_family_is_an_error_with_the_searched_keys(tmp_path):
    with refused(FileNotFoundError, "'cat'", "'dog'", "vae_cat_round_N.pt"):
        load_family(tmp_path, ["cat", "dog"])
    with refused(FileNotFoundError, "vae.pt", "vae_round_N.pt"):
        load_family(tmp_path, [""])


def test_a_family_of_other_dimensions_is_refused(tmp_path):
    save_generator_family("checkpoints/vae.pt", 10, family(["cat", "dog"]), folder=tmp_path)
    with refused(CheckpointError, "latent_dim", 256, 4711):
        load_family(tmp_path, ["cat", "dog"], latent_dim=4711)


def test_saving_a_family_says_so_once(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="fed_a2v"):
        save_generator_family("checkpoints/vae.pt", 10, family(["cat", "dog"]), folder=tmp_path)
    assert [record.message for record in caplog.records] == [
        "Saving generator checkpoint at round 10",
        "Saved generator checkpoint to checkpoints/vae_cat_round_10.pt",
        "Saved generator checkpoint to checkpoints/vae_dog_round_10.pt",
    ]
