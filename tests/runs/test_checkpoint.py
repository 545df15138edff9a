import logging
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.runs.checkpoint import (
    check_same_experiment,
    drop_states_after,
    fingerprint,
    load_state,
    read_state,
    save_state,
)
from fed_a2v.runs.generator_files import save_generator_family
from fed_a2v.storage.torch_files import CheckpointError, DamagedError
from tests.refusals import refused

CONFIG = {"rounds": 5, "seed": 0, "device": "cpu", "generator": {"name": "vae", "hidden_dim": 256}}


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
    (generator,) = save_generator_family(tmp_path / "vae_generator.pt", 1, {"": {"generator_state": {}}})
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


def test_rounds_paths_and_output_may_differ_on_resume():
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
