import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.runs.checkpoint import (
    CheckpointError,
    DamagedError,
    check_same_experiment,
    drop_states_after,
    fingerprint,
    keyed_path,
    load_generator_checkpoint,
    load_generator_family,
    load_state,
    own_path,
    read_state,
    save_generator_checkpoint,
    save_generator_family,
    save_state,
)
from tests.refusals import refused

CONFIG = {"rounds": 5, "seed": 0, "device": "cpu", "generator": {"name": "vae", "hidden_dim": 256}}
DIMENSIONS = {"input_dim": 512, "visual_dim": 768, "latent_dim": 256}


def state(round_number):
    """A run's state with all that it really holds: modules, optimisers, a bank, text."""
    torch.manual_seed(round_number)
    layer = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    return {
        "round": round_number,
        "config": CONFIG,
        "adapters": layer.state_dict(),
        "optimiser": optimiser.state_dict(),
        "bank": {"sites": {"0": {"dog": {"count": 3, "clip": torch.randn(1, 4), "t5": None}}}},
        "wandb_id": "abc",
    }


def files(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_state_comes_back_bit_for_bit(tmp_path):
    saved = state(3)
    save_state(tmp_path, saved)
    loaded = load_state(tmp_path)
    assert torch.equal(loaded["adapters"]["weight"], saved["adapters"]["weight"])
    for key, value in saved["optimiser"]["state"][0].items():
        assert torch.equal(loaded["optimiser"]["state"][0][key], value)
    assert loaded["optimiser"]["param_groups"] == saved["optimiser"]["param_groups"]
    assert torch.equal(loaded["bank"]["sites"]["0"]["dog"]["clip"], saved["bank"]["sites"]["0"]["dog"]["clip"])
    assert (loaded["round"], loaded["wandb_id"], loaded["config"]) == (3, "abc", CONFIG)
    assert loaded["fingerprint"] == fingerprint(CONFIG)


def test_a_folder_without_states_gives_none(tmp_path):
    assert load_state(tmp_path) is None
    assert load_state(tmp_path / "absent") is None


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_last_states_are_kept(tmp_path, keep):
    for round_number in range(7, 12):
        save_state(tmp_path, state(round_number), keep=keep)
    assert files(tmp_path) == [f"state_round_{number:06d}.pt" for number in range(12 - keep, 12)]


@pytest.mark.parametrize("links", [True, False])
def test_the_best_state_is_kept_beside_the_last(tmp_path, monkeypatch, links):
    if not links:  # as on a FAT disk
        monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(PermissionError("no links here")))
    for round_number in range(1, 6):
        save_state(tmp_path, state(round_number), keep=1, best=round_number in (1, 3))
    assert files(tmp_path) == ["best_round_000003.pt", "state_round_000005.pt"]
    best = read_state(tmp_path / "checkpoints" / "best_round_000003.pt")
    assert best["round"] == 3
    assert torch.equal(best["adapters"]["weight"], state(3)["adapters"]["weight"])


def test_the_newest_state_is_found_by_number_not_by_name(tmp_path):
    for round_number in (9, 10):
        path = save_state(tmp_path, state(round_number))
        path.rename(path.with_name(f"state_round_{round_number}.pt"))
    assert load_state(tmp_path)["round"] == 10


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_state_gives_way_to_the_one_before_with_a_warning(tmp_path, caplog, share):
    save_state(tmp_path, state(1))
    torn = save_state(tmp_path, state(2))
    torn.write_bytes(torn.read_bytes()[: int(share * torn.stat().st_size)])
    with caplog.at_level(logging.WARNING, "fed_a2v"):
        assert load_state(tmp_path)["round"] == 1
    assert str(torn) in caplog.text


def test_a_changed_byte_in_a_tensor_is_noticed(tmp_path, caplog):
    save_state(tmp_path, state(1))
    path = save_state(tmp_path, state(2) | {"large": torch.full((1000,), 7.0)})
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((100,), 7.0).numpy().tobytes()) + 50] ^= 1
    path.write_bytes(content)
    assert torch.load(path)["round"] == 2  # torch itself does not see it
    assert load_state(tmp_path)["round"] == 1
    assert str(path) in caplog.text


@pytest.mark.parametrize(
    "tamper",
    [
        lambda saved: saved["adapters"]["weight"].add_(1e-3),
        lambda saved: saved.update(round=7),
        lambda saved: saved["bank"]["sites"]["0"]["dog"].update(count=10**6),
        lambda saved: saved["config"].update(seed=1),
        lambda saved: saved.pop("digest"),
        lambda saved: saved.update(more=1),
        lambda saved: saved.update(adapters=dict(reversed(saved["adapters"].items()))),
        lambda saved: saved["adapters"].update(bias=saved["adapters"]["bias"].double()),
    ],
    ids=["weight", "round", "count", "setting", "no digest", "entry", "order", "type"],
)
def test_a_state_that_was_changed_and_packed_anew_gives_way_to_the_one_before(tmp_path, caplog, tamper):
    save_state(tmp_path, state(1))
    path = save_state(tmp_path, state(2) | {"config": dict(CONFIG)})
    saved = torch.load(path)
    tamper(saved)
    torch.save(saved, path)
    assert load_state(tmp_path)["round"] == 1
    assert str(path) in caplog.text


def test_one_saved_state_is_read_by_its_own_name_or_refused(tmp_path):
    path = save_state(tmp_path, state(1))
    save_state(tmp_path, state(2))
    assert read_state(path)["round"] == 1
    path.write_bytes(path.read_bytes()[:100])
    with refused(DamagedError, path):
        read_state(path)
    generator = save(tmp_path / "vae_generator.pt", 1)
    with refused(CheckpointError, generator, "state_round_N.pt"):
        read_state(generator)


@given(data=st.data())
def test_whatever_byte_is_damaged_a_state_is_either_refused_or_right(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("run")
    content = bytearray(save_state(folder, state(2)).read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    (folder / "checkpoints" / "state_round_000002.pt").write_bytes(content)
    try:
        loaded = load_state(folder)
    except CheckpointError:
        return
    assert loaded["round"] == 2
    assert torch.equal(loaded["adapters"]["weight"], state(2)["adapters"]["weight"])


def test_a_run_with_only_damaged_states_does_not_start_anew_in_silence(tmp_path):
    save_state(tmp_path, state(1)).write_bytes(b"torn")
    with refused(CheckpointError, tmp_path / "checkpoints", "resume=never"):
        load_state(tmp_path)


def test_a_kill_while_saving_leaves_the_state_before(tmp_path, monkeypatch):
    save_state(tmp_path, state(1))

    def killed(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path, state(2))
    assert load_state(tmp_path)["round"] == 1


def test_a_state_of_another_schema_version_is_refused(tmp_path):
    path = save_state(tmp_path, state(1))
    torch.save(torch.load(path) | {"schema": 4711}, path)
    with refused(CheckpointError, path, 4711, "resume=never"):
        load_state(tmp_path)


@pytest.mark.parametrize("value", [np.float64(1.0), np.zeros(2), object(), {1, 2}])
def test_a_value_that_safe_loading_refuses_is_refused_when_saving_and_its_place_named(tmp_path, value):
    with refused(TypeError, "state_round_000001.pt", "bank", "dog[1]", type(value).__name__):
        save_state(tmp_path, state(1) | {"bank": {"dog": [0, value]}})
    assert load_state(tmp_path) is None


def test_a_view_does_not_drag_its_storage_onto_the_disk(tmp_path):
    path = save_state(tmp_path, state(1) | {"view": torch.zeros(1_000_000)[:3]})
    assert path.stat().st_size < 100_000


def test_states_of_later_rounds_can_be_dropped(tmp_path):
    for round_number in (9, 10):
        save_state(tmp_path, state(round_number))
    save_state(tmp_path, state(11), best=True)
    drop_states_after(tmp_path, 10)
    assert load_state(tmp_path)["round"] == 10
    assert files(tmp_path) == ["state_round_000010.pt"]


def test_the_same_experiment_may_go_on_for_longer_elsewhere_and_less_loudly():
    new = CONFIG | {"rounds": 10, "device": "cuda", "wandb": {"mode": "disabled"}, "resume": "auto"}
    assert [str(difference) for difference in check_same_experiment(CONFIG, new)] == [
        "device: cpu -> cuda",
        "resume: (absent) -> auto",
        "rounds: 5 -> 10",
        "wandb.mode: (absent) -> disabled",
    ]
    assert fingerprint(CONFIG) == fingerprint(new)


def test_another_experiment_is_refused_with_every_difference_and_both_values():
    new = {"rounds": 3, "seed": 1, "device": "cpu", "generator": {"name": "gaussian", "shrinkage": 0.3}}
    differences = [
        "generator.hidden_dim: 256 -> (absent)",
        "generator.name: vae -> gaussian",
        "generator.shrinkage: (absent) -> 0.3",
        "rounds: 5 -> 3",
        "seed: 0 -> 1",
    ]
    with refused(CheckpointError, *differences, "resume=never") as caught:
        check_same_experiment(CONFIG, new)
    assert str(caught.value).count(" -> ") == len(differences)
    assert fingerprint(CONFIG) != fingerprint(new)


def save(path, round_number, **changes):
    arguments = {"generator_type": "vae", "dimensions": DIMENSIONS, "state": {"w": torch.ones(2)}} | changes
    return save_generator_checkpoint(path, round_number=round_number, **arguments)


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
    optimiser = state(1)["optimiser"]
    path = save(tmp_path / "vae.pt", 10, optimiser=optimiser, classes=["dog", "cat"])
    loaded = load_generator_checkpoint(path, "vae", DIMENSIONS)
    assert torch.equal(loaded["generator_state"]["w"], torch.ones(2))
    assert loaded["optimizer_state"]["param_groups"] == optimiser["param_groups"]
    assert loaded["dimensions"] == DIMENSIONS
    assert loaded["classes"] == ["dog", "cat"]


def test_the_base_path_gives_the_highest_round_not_the_last_name(tmp_path):
    for round_number in (10, 9):
        save(tmp_path / "vae.pt", round_number)
    save(tmp_path / "other_vae.pt", 11)
    assert load_generator_checkpoint(tmp_path / "vae.pt", "vae", DIMENSIONS)["round"] == 10


def aged(path, seconds):
    """The file as if it had been written so many seconds after a fixed time."""
    os.utime(path, (10**9 + seconds,) * 2)
    return path


def numbered(path, round_number, number):
    return save(path, round_number, state={"w": torch.tensor([float(number)])})


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
        load_generator_checkpoint(path, "gaussian", DIMENSIONS)


def test_other_dimensions_are_refused_with_both_values_of_each(tmp_path):
    path = save(tmp_path / "vae.pt", 1)
    with refused(CheckpointError, path, "input_dim", 512, 1024, "latent_dim", 256, "(absent)") as caught:
        load_generator_checkpoint(path, "vae", {"input_dim": 1024, "visual_dim": 768})
    assert "visual_dim" not in str(caught.value)


def test_a_missing_checkpoint_is_an_error_that_says_what_was_looked_for(tmp_path):
    looked_for = ("vae.pt", "vae_round_N.pt", tmp_path / "checkpoints")
    with refused(FileNotFoundError, *looked_for, "generator.load_checkpoint=false"):
        load_generator_checkpoint(tmp_path / "checkpoints" / "vae.pt", "vae", DIMENSIONS)


def test_a_file_that_is_no_generator_checkpoint_is_refused(tmp_path):
    torch.save({"weights": torch.ones(1)}, tmp_path / "vae.pt")
    with refused(CheckpointError, tmp_path / "vae.pt") as caught:
        load_generator_checkpoint(tmp_path / "vae.pt", "vae", DIMENSIONS)
    assert caught.type is CheckpointError, "nothing is damaged"
    of_a_run = save_state(tmp_path, state(1))
    with refused(CheckpointError, of_a_run, "dimensions", "generator_type", "generator_state"):
        load_generator_checkpoint(of_a_run, "vae", DIMENSIONS)
    (tmp_path / "vae.pt").write_bytes(b"text")
    with refused(DamagedError, tmp_path / "vae.pt"):
        load_generator_checkpoint(tmp_path / "vae.pt", "vae", DIMENSIONS)


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


def test_a_family_of_which_there_is_nothing_says_which_keys_were_looked_for(tmp_path):
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
