"""Images during a run."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fed_a2v.cli import main as command
from fed_a2v.config.compose import compose_settings
from fed_a2v.encoders.pretrained import ModelError
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.images.gallery import read_gallery
from fed_a2v.images.pipelines import ImageModel
from fed_a2v.images.subjects import of_classes
from fed_a2v.load import load_run
from fed_a2v.runs.speed import without_clock
from fed_a2v.storage.torch_files import tensor_bytes
from tests.images.conftest import FAST
from tests.refusals import refused

BOTH = ("generate_global_images_frequency=2", "generate_nodes_images_frequency=1", "rounds=2")


@pytest.fixture(scope="module")
def illustrated(trained, image_words):
    """Two rounds: the sites' pictures in each, the global adapters' in the second."""
    return trained("flux", "images=flux", *image_words("flux"), *BOTH)


def test_each_frequency_has_its_rounds(illustrated):
    assert sorted(path.name for path in (illustrated / "images").iterdir()) == ["round_1", "round_2"]
    sites = {"site-000": "site-000", "site-001": "site-001"}
    assert read_gallery(illustrated / "images/round_1")["columns"] == sites
    second = read_gallery(illustrated / "images/round_2")
    assert second["columns"] == {"global": "Global adapters"} | sites
    assert (second["run"], second["round"]) == (illustrated.name, 2)
    shown = {subject["name"]: set(subject["pictures"]) for subject in second["subjects"]}
    held = json.loads((illustrated / "partition.json").read_text())["sites"]
    assert shown == {
        name: {"global", *(site for site in held if name in held[site]["classes"])}
        for name in ("dog", "rain", "sea_waves")
    }


def test_the_global_pictures_are_those_of_the_saved_adapters(illustrated, image_settings, trained, tmp_path):
    """`fed-a2v generate RUN --classes ...` draws the very same of the last round's state."""
    from fed_a2v.images.gallery import Column, draw_gallery
    from fed_a2v.images.pipelines import load_image_model
    from fed_a2v.images.subjects import of_classes

    run = load_run(illustrated)
    known = of_classes(run.step, run.classes)
    column = Column("global", "", range(3), run.adapt(known.embeddings))
    facts = {"run": "", "round": 2, "classes": run.classes}
    draw_gallery(tmp_path / "again", load_image_model(image_settings("flux")), known.subjects, [column], facts)
    for subject in read_gallery(tmp_path / "again")["subjects"]:
        drawn = np.array(Image.open(tmp_path / "again" / subject["pictures"]["global"]))
        in_training = np.array(Image.open(illustrated / "images/round_2" / subject["pictures"]["global"]))
        assert np.array_equal(drawn, in_training)


def test_pictures_change_no_figure_but_the_bytes_of_the_outputs_that_they_are_made_of(illustrated, trained):
    plain = trained("flux", "rounds=2")
    with_pictures, without = (
        [without_clock(row) for row in load_run(folder).metrics] for folder in (illustrated, plain)
    )
    targets, held = load_run(plain).targets, json.loads((plain / "partition.json").read_text())["sites"]
    outputs = (
        2 * sum(len(site["classes"]) for site in held.values()) * (targets.clip[0].numel() + targets.t5[0].numel())
    )
    assert [row.pop("bytes_up") - other.pop("bytes_up") for row, other in zip(with_pictures, without, strict=True)] == [
        outputs,
        outputs,
    ]
    assert with_pictures == without


def test_without_pictures_nothing_is_loaded_and_nothing_left(tmp_path):
    """Neither diffusers nor anything of `fed_a2v.images` is imported where both frequencies are 0."""
    code = f"""
import sys
from pathlib import Path
from fed_a2v.config.compose import compose_settings
from fed_a2v.federation.simulation import run_in_process
run_in_process(compose_settings({[*FAST, "adapters=sd"]!r}), Path({str(tmp_path / "run")!r}))
loaded = [name for name in sys.modules if name.split(".")[0] == "diffusers" or name.startswith("fed_a2v.images")]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200, capture_output=True)
    assert not (tmp_path / "run" / "images").exists()


def test_a_missing_model_is_found_before_the_first_round(tmp_path):
    words = ["adapters=sd", "images=sd", "images.model=/nowhere", "generate_global_images_frequency=1"]
    with refused(ModelError, "images.model=/nowhere"):
        run_in_process(compose_settings([*FAST, *words]), tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_failure_while_drawing_costs_the_pictures_only(tmp_path, image_words, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(ImageModel, "draw", fail)
    words = ["adapters=sd", "images=sd", *image_words("sd"), "generate_global_images_frequency=1"]
    results = run_in_process(compose_settings([*FAST, *words]), tmp_path / "run")
    assert results["rounds"] == 1
    assert "CUDA out of memory" in (tmp_path / "run" / "run.log").read_text()
    assert list((tmp_path / "run" / "images").iterdir()) == []


def test_a_round_done_again_draws_its_pictures_again(illustrated, tmp_path):
    """What a stopped round left is replaced."""
    copy = shutil.copytree(illustrated, tmp_path / "flux")
    (copy / "checkpoints/state_round_000002.pt").unlink()
    (copy / "results.json").unlink()
    before = (copy / "images/round_2/global/0000-dog.png").read_bytes()
    (copy / "images/round_2/global/0000-dog.png").write_bytes(b"half")
    (copy / "images/.round_2.abc.tmp").mkdir()
    run_in_process(load_run(copy).settings, copy)
    assert (copy / "images/round_2/global/0000-dog.png").read_bytes() == before
    assert sorted(path.name for path in (copy / "images").iterdir()) == ["round_1", "round_2"]


def test_pictures_go_to_wandb(tmp_path, image_words, monkeypatch):
    shown = {}

    def log(self, values, step=None):
        shown.setdefault(step, {}).update(values)

    import wandb

    monkeypatch.setattr(wandb.Run, "log", log)
    words = ["adapters=sd", "images=sd", *image_words("sd"), "generate_global_images_frequency=1", "wandb.mode=offline"]
    run_in_process(compose_settings([*FAST, *words]), tmp_path / "run")
    pictures = {name: value for name, value in shown[1].items() if isinstance(value, wandb.Image)}
    assert set(pictures) == {"images/global/dog", "images/global/rain", "images/global/sea_waves"}
    assert "accuracy" in shown[1], "in the same step as the round's figures"


SUMS = ("share=statistics", "projection.columns=8", "site.epochs=0", "images=flux", "generator=gaussian")


@pytest.mark.parametrize("closed_form", ["true", "false"])
def test_a_run_with_sums_has_pictures_of_its_class_means_of_its_sites_and_of_sounds(
    trained, image_words, tmp_path, closed_form
):
    """With T5, in closed form and with trained adapters; neither state nor messages have T5 prompts."""
    words = (*SUMS, f"adapters.closed_form={closed_form}", *image_words("flux"))
    folder = trained("flux", *words, "generate_global_images_frequency=1", "generate_nodes_images_frequency=1")
    gallery = read_gallery(folder / "images/round_1")
    assert gallery["columns"] == {"global": "Global adapters", "site-000": "site-000", "site-001": "site-001"}
    assert all("global" in subject["pictures"] for subject in gallery["subjects"])
    run = load_run(folder)
    expected = run.adapt(of_classes(run.step, run.classes).embeddings)
    assert expected.t5.shape[1:] == run.targets.t5.shape[1:]
    if closed_form == "true":
        posterior = torch.linalg.lstsq(run.targets.t5.flatten(1).T, expected.t5.flatten(1).T).solution.T
        torch.testing.assert_close(posterior.sum(dim=1), torch.ones(3), rtol=1e-3, atol=1e-3)
        assert tensor_bytes(run.adapters.state_dict()) < run.targets.t5.nbytes / 2
        (row,) = run.metrics
        assert row["bytes_down"] < run.targets.t5.nbytes
    command(["generate", str(folder), "--classes=dog", "--synthetic=1", "--test=1", f"--out={tmp_path / 'drawn'}"])
    names = [subject["name"] for subject in read_gallery(tmp_path / "drawn")["subjects"]]
    assert names[0] == "dog, synthetic 1"
    assert len(names) == 2
