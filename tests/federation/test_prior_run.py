"""A run with class sums, a label prior and classes that no site has recorded."""

import json

import numpy as np
import pytest
import torch

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.data.site import class_names
from fed_a2v.load import load_run
from tests.refusals import refused

SUMS = ("share=statistics", "adapters=closed_form", "projection.columns=12", "generator=none")
WIDTH = 512  # of the log-mel encoder


@pytest.fixture
def head(tmp_path):
    """Overrides for a head with a label for each class, and its file."""
    classes = class_names(compose_settings(["experiment=quick"]).dataset)
    random = np.random.default_rng(0)
    path, ties = tmp_path / "head.npz", tmp_path / "ties.json"
    np.savez(
        path,
        weight=random.normal(size=(len(classes), WIDTH)).astype(np.float32),
        labels=np.array([f"label {number}" for number in range(len(classes))]),
    )
    ties.write_text(json.dumps({name: [f"label {number}"] for number, name in enumerate(classes)}))
    return ["prior=labels", f"prior.path={path}", f"prior.ties={ties}"], path


def test_the_prior_is_in_the_state_so_that_a_resumed_or_loaded_run_needs_no_head(run_in, head):
    words, path = head
    whole = run_in("whole", *SUMS, *words, "rounds=2")
    run_in("parts", *SUMS, *words, "rounds=1")
    path.unlink()
    resumed = run_in("parts", *SUMS, *words, "rounds=2", "resume=auto")
    prior = whole.state["sums"]["prior"]
    assert prior.shape == (len(load_run(whole.folder).classes), 12)
    assert torch.equal(resumed.state["sums"]["prior"], prior)
    assert torch.equal(resumed.state["adapters"]["clip.weight"], whole.state["adapters"]["clip.weight"])


def test_unseen_classes_get_scores_with_and_without_a_prior(run_in, head):
    words, _ = head
    for name, more in (("prior", words), ("none", [])):
        run = run_in(name, *SUMS, *more, "dataset.unseen=2", "rounds=1")
        bias = run.state["adapters"]["clip.bias"]
        assert (bias > -1e3).all()  # no class has probability 0
        assert run.state["server_step"]["calibration"] == 0  # the constant is in the weights
        assert any(key.startswith("unseen/") for key in run.rows[0])


def test_a_head_of_another_width_is_refused(run_in, head):
    words, path = head
    with np.load(path) as file:
        np.savez(path, weight=file["weight"][:, :10], labels=file["labels"])
    with refused(ConfigError, "prior=labels", "10", str(WIDTH), "prior.path"):
        run_in("other", *SUMS, *words, "rounds=1")
