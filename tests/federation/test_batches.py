"""`engine=batched`: sites train together, and the run has the result that it has one by one."""

import pytest
import torch

from fed_a2v.config.compose import compose_settings
from fed_a2v.core.stacked_adapters import StackedAdapters
from fed_a2v.federation import batches
from fed_a2v.federation.client.flower_client import A2VClient
from fed_a2v.federation.client.local_training import Site
from fed_a2v.federation.simulation import run_in_process
from tests.federation.helpers import PLAIN, SITES, SMALL, Finished

# Weights in full precision: half of it rounds a difference of 1e-8 to one of 1e-4 at times.
WORDS = (*SMALL, PLAIN, "rounds=2", "wandb.mode=disabled", "share.dtype=float32")


@pytest.fixture
def groups(monkeypatch):
    """The sites of every group that has trained together; at most three a group."""
    found = []

    def train(self, tasks, *rest, _train=StackedAdapters.train):
        found.append(len(tasks))
        return _train(self, tasks, *rest)

    monkeypatch.setattr(StackedAdapters, "train", train)
    monkeypatch.setattr(batches, "sites_at_once", lambda adapters, rows: 3)
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return Finished(folder, run_in_process(compose_settings(WORDS), folder))


def batched(folder, *words, **options):
    return Finished(folder, run_in_process(compose_settings([*WORDS, "engine=batched", *words]), folder, **options))


def test_a_run_has_the_adapters_and_accuracy_of_one_by_one(tmp_path, groups, alone):
    run = batched(tmp_path)
    assert groups == [3, 2] * 2  # five sites, two rounds: memory for three sites at once
    for name, weight in alone.state["adapters"].items():
        assert torch.allclose(run.state["adapters"][name], weight, rtol=0, atol=1e-5), name
    for row, expected in zip(run.rows, alone.rows, strict=True):
        assert row["accuracy"] == expected["accuracy"]
        assert row["replies"] == len(SITES)
        assert row["bytes_up"] == pytest.approx(expected["bytes_up"], rel=0.01)
    assert (run.config.engine, alone.config.engine) == ("batched", "one_by_one")


def test_a_site_that_cannot_train_fails_alone(tmp_path, groups, monkeypatch):
    def task(self, round_number, adapters, _task=Site.training_task):
        if self.name == SITES[0]:
            raise OSError("its disk is gone")
        return _task(self, round_number, adapters)

    monkeypatch.setattr(Site, "training_task", task)
    (row, _) = batched(tmp_path).rows
    assert (row["replies"], row["failures"]) == (len(SITES) - 1, 1)
    assert groups == [3, 1] * 2


@pytest.mark.parametrize("case", ["nothing to train", "own clients"])
def test_sites_that_cannot_train_together_work_one_after_the_other(tmp_path, groups, case):
    words = ["site.epochs=0", "finetune.enabled=true"] if case == "nothing to train" else []
    options = {"make_client": lambda: A2VClient({})} if case == "own clients" else {}
    run = batched(tmp_path, "rounds=1", *words, **options)
    assert not groups
    assert run.log.count("engine=batched") == 1
    assert run.rows[0]["replies"] == len(SITES)
