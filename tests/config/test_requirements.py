"""Files, folders and packages that settings need are missed before anything is loaded."""

import sys

import numpy as np
import pytest

from fed_a2v.config import requirements
from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.requirements import check_requirements
from fed_a2v.install import install_hint
from tests.refusals import refused

SUMS = ("share=statistics", "adapters=closed_form")


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("dataset=folder", "dataset.root=/gone"), "dataset.root=/gone"),
        (("dataset=embeddings", "dataset.path=/gone.npz"), "dataset.path=/gone.npz"),
        (("dataset=mixed", "dataset.sets=[{name: synth}, {name: folder, root: /gone}]"), "dataset.sets.1.root=/gone"),
        (("targets=file", "targets.path=/gone.npz"), "targets.path=/gone.npz"),
        (("targets=clip", "adapters=compact", "targets.captions=/gone.csv"), "targets.captions=/gone.csv"),
        ((*SUMS, "projection=file", "projection.path=/gone.npy"), "projection.path=/gone.npy"),
        ((*SUMS, "prior=labels", "prior.path=/gone.npz"), "prior.path=/gone.npz"),
        ((*SUMS, "prior=labels", "prior.ties=/gone.json"), "prior.ties=/gone.json"),
        (("resume=/gone",), "resume=/gone"),
    ],
)
def test_a_missing_file_is_named_by_its_key(words, key):
    with refused(ConfigError, key):
        check_requirements(compose_settings(words))


def test_a_folder_that_the_data_set_does_not_read_is_refused(tmp_path):
    with refused(ConfigError, f"dataset.root={tmp_path}", "dataset=synth", "dataset=folder"):
        check_requirements(compose_settings([f"dataset.root={tmp_path}"]))
    check_requirements(compose_settings(["dataset=folder", f"dataset.root={tmp_path}"]))
    np.savez(tmp_path / "some.npz", embeddings=np.ones((1, 2)))
    check_requirements(compose_settings(["dataset=embeddings", f"dataset.path={tmp_path / 'some.npz'}"]))


def test_nodes_with_own_data_need_nothing_here():
    check_requirements(
        compose_settings(["partition=own", "dataset=folder", "dataset.root=/gone", "dataset.classes=[dog,rain]"])
    )


@pytest.mark.parametrize(
    ("words", "module", "extra"),
    [
        (("encoder=ast",), "transformers", "hf"),
        (("adapters=sd", "images=sd"), "diffusers", "hf"),
        (("partition=shards",), "flwr_datasets", "partitions"),
        (("tracking.tensorboard=true",), "tensorboard", "tensorboard"),
        (("tracking.mlflow=true",), "mlflow", "mlflow"),
        (
            (*SUMS, "privacy=dp", "projection.columns=64", "dataset.square_root=never"),
            "dp_accounting",
            "privacy",
        ),
    ],
)
def test_a_missing_package_is_named_with_the_command(monkeypatch, words, module, extra):
    settings = compose_settings(words)
    check_requirements(settings)
    monkeypatch.setitem(sys.modules, module, None)
    with refused(ConfigError, words[-1] if len(words) < 3 else "privacy=dp", module, install_hint(extra)):
        check_requirements(settings)


def test_a_build_of_torch_without_cuda_is_named(monkeypatch):
    settings = compose_settings(["device=cuda"])
    monkeypatch.setattr(requirements, "_torch_version", lambda: "2.9.0+cpu")
    with refused(ConfigError, "device=cuda", "2.9.0+cpu"):
        check_requirements(settings)
    monkeypatch.setattr(requirements, "_torch_version", lambda: "2.9.0")
    check_requirements(settings)
