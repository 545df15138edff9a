import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fed_a2v.config.compose import compose_settings
from fed_a2v.encoders.text import TargetsError, load_targets
from tests.refusals import refused

ANCHORS = compose_settings().targets
NAMES = ("dog", "crying_baby", "sea_waves")


def file_settings(path):
    return compose_settings(["targets=file", f"targets.path={path}"]).targets


def from_file(path, **arrays):
    np.savez(path, **arrays)
    return file_settings(path)


def test_random_prompts_have_the_shapes_of_the_adapters():
    targets = load_targets(ANCHORS, NAMES, (77, 768), (17, 4096))
    assert targets.clip.shape == (3, 77, 768)
    assert targets.clip.dtype == torch.float32
    assert targets.t5 is not None
    assert targets.t5.shape == (3, 17, 4096)
    assert load_targets(ANCHORS, NAMES, (1, None), None).clip.shape == (3, 1, 768)
    assert load_targets(ANCHORS, NAMES, (1, None), None).t5 is None


def test_a_random_prompt_depends_on_its_own_name_only():
    several = load_targets(ANCHORS, NAMES, (1, 64), (2, 32))
    alone = load_targets(ANCHORS, ["Crying baby"], (1, 64), (2, 32))
    assert torch.equal(several.clip[1], alone.clip[0])
    assert torch.equal(several.t5[1], alone.t5[0])


def test_random_prompts_never_change():
    # Trained adapters and shared results rely on these very numbers.
    anchor = load_targets(ANCHORS, ["dog"], (1, 768), None).clip[0, 0, :4]
    assert torch.allclose(anchor, torch.tensor([-0.533445, 0.594735, -0.185004, -0.090502]), atol=1e-6)


def test_random_prompts_have_the_mean_cosine_of_text_vectors_and_unit_variance():
    names = [f"class {i}" for i in range(20)]
    clip = load_targets(ANCHORS, names, (1, 768), None).clip[:, 0]
    cosines = torch.nn.functional.cosine_similarity(clip[:, None], clip[None], dim=-1)
    between = cosines[~torch.eye(20, dtype=torch.bool)]
    assert 0.75 < between.mean() < 0.85
    assert between.max() < 0.9
    assert 0.85 < clip.var() < 1.15


def test_the_tokens_of_a_random_prompt_differ():
    clip = load_targets(ANCHORS, ["dog"], (77, 64), None).clip[0]
    assert torch.unique(clip, dim=0).shape[0] == 77


def test_a_class_named_twice_is_an_error():
    for names in (["dog", "dog"], ["crying_baby", "crying baby"]):
        with refused(TargetsError, *map(repr, names)):
            load_targets(ANCHORS, names, (1, 8), None)
    with pytest.raises(TargetsError):
        load_targets(ANCHORS, [], (1, 8), None)


def test_a_file_gives_the_rows_asked_for_in_their_order(tmp_path):
    vectors = np.arange(15, dtype=np.float16).reshape(3, 5)
    settings = from_file(tmp_path / "t.npz", category=np.array(["Sea waves", "dog", "cat"]), vectors=vectors)
    targets = load_targets(settings, ["dog", "sea_waves"], (1, None), None)
    assert targets.names == ("dog", "sea_waves")
    assert torch.equal(targets.clip[:, 0], torch.tensor(vectors[[1, 0]]).float())


def test_a_file_of_token_sequences_and_t5(tmp_path):
    settings = from_file(
        tmp_path / "t.npz",
        category=np.array(["dog", "cat"]),
        vectors=np.ones((2, 77, 6)),
        t5_vectors=np.ones((2, 17, 8)),
    )
    targets = load_targets(settings, ["cat"], (77, 6), (17, 8))
    assert targets.clip.shape == (1, 77, 6)
    assert targets.t5 is not None
    assert targets.t5.shape == (1, 17, 8)


def test_missing_classes_are_listed_with_the_remedy(tmp_path):
    settings = from_file(tmp_path / "t.npz", category=np.array(["dog"]), vectors=np.ones((1, 5)))
    with refused(TargetsError, tmp_path / "t.npz", "2 of 3", "crying_baby", "sea_waves", "dataset.classes"):
        load_targets(settings, NAMES, (1, None), None)


@pytest.mark.parametrize(
    ("arrays", "clip_shape", "t5_shape", "named"),
    [
        ({"vectors": np.ones((1, 5))}, (77, None), None, ["vectors", "adapters.clip_tokens=1", "77"]),
        ({"vectors": np.ones((1, 76, 5))}, (77, None), None, ["vectors", "adapters.clip_tokens=76", "77"]),
        ({"vectors": np.ones((1, 5))}, (1, 768), None, ["vectors", "adapters.clip_width=5", "768"]),
        ({"vectors": np.ones((1007, 5))}, (1, None), None, ["vectors", "1007", "category"]),
        ({"vectors": np.full((1, 5), np.nan)}, (1, None), None, ["vectors", "'dog'", "NaN"]),
        ({"vectors": np.array([["x"]])}, (1, None), None, ["vectors", "<U1"]),
        ({"vectors": np.ones((1, 5))}, (1, None), (17, 8), ["t5_vectors", "adapters.t5_tokens=17", "adapters=compact"]),
        (
            {"vectors": np.ones((1, 5)), "t5_vectors": np.ones((1, 8))},
            (1, None),
            (17, 8),
            ["t5_vectors", "adapters.t5_tokens=1", "17"],
        ),
        ({}, (1, None), None, ["targets.path", "vectors", "category"]),
    ],
)
def test_a_file_that_does_not_fit_is_an_error_that_says_why(tmp_path, arrays, clip_shape, t5_shape, named):
    settings = from_file(tmp_path / "t.npz", category=np.array(["dog"]), **arrays)
    with refused(TargetsError, tmp_path / "t.npz", *named):
        load_targets(settings, ["dog"], clip_shape, t5_shape)


def test_a_file_that_names_a_class_twice_is_an_error(tmp_path):
    settings = from_file(tmp_path / "t.npz", category=np.array(["dog", "Dog"]), vectors=np.ones((2, 5)))
    with refused(TargetsError, tmp_path / "t.npz", "'dog'", "'Dog'"):
        load_targets(settings, ["dog"], (1, None), None)


def test_a_missing_file_is_named(tmp_path):
    with refused(TargetsError, "targets.path", tmp_path / "t.npz"):
        load_targets(file_settings(tmp_path / "t.npz"), NAMES, (1, None), None)


@pytest.mark.real_data
@pytest.mark.skipif("FED_A2V_DATA" not in os.environ, reason="FED_A2V_DATA names no folder of real data")
def test_real_text_vectors_are_read():
    path = Path(os.environ["FED_A2V_DATA"]) / "clip_vitb32_text.npz"
    targets = load_targets(file_settings(path), ["Church Bells", "dog"], (1, None), None)
    assert targets.clip.shape == (2, 1, 512)
