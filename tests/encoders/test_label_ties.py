"""The weights of classes in a label head: where the head, its labels and the ties come from."""

import json

import numpy as np
import pytest
import torch

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.federation.factory import prompt_set
from fed_a2v.federation.server.step_factory import make_prior
from tests.models import tiny_ast, tiny_clip_text
from tests.refusals import refused

LABELS = ["Dog", "Bark", "Rain", "Rain on surface", "Siren"]
CLASSES = ("dog", "rain", "engine")
WIDTH = 6


def weight():
    return np.random.default_rng(0).normal(size=(len(LABELS), WIDTH)).astype(np.float32)


@pytest.fixture
def head(tmp_path):
    """A file of a head whose first three labels have text vectors."""
    path = tmp_path / "head.npz"
    vectors = np.eye(3, 4, dtype=np.float32)
    np.savez(path, weight=weight(), labels=np.array(LABELS), label_index=np.array([0, 2, 4]), label_vectors=vectors)
    return path


def found(*overrides, classes=CLASSES):
    settings = compose_settings(["share=statistics", "prior=labels", *overrides])
    return make_prior(settings, prompt_set(settings, classes))


def expected(rows):
    """The class weights for lists of labels."""
    centred = weight() - weight().mean(axis=0)
    return torch.from_numpy(np.stack([centred[row].mean(axis=0) if row else np.zeros(WIDTH) for row in rows])).float()


def test_classes_have_the_labels_that_share_their_words(head):
    torch.testing.assert_close(found(f"prior.path={head}"), expected([[0], [2], []]))
    path = [f"projection.path={head}", "projection=head"]
    torch.testing.assert_close(found(*path), expected([[0], [2], []]))


def test_a_file_names_the_labels_and_excluded_ones_do_not_count(head, tmp_path):
    ties = tmp_path / "ties.json"
    ties.write_text(json.dumps({"Dog": ["Dog", "Bark"], "rain": ["Rain on surface"], "another": ["Siren"]}))
    given = [f"prior.path={head}", f"prior.ties={ties}"]
    torch.testing.assert_close(found(*given), expected([[0, 1], [3], []]))
    torch.testing.assert_close(found(*given, "prior.exclude=[Rain,Bar]"), expected([[0], [], []]))


def test_text_vectors_tie_with_prompts_from_a_file(head, tmp_path):
    targets = tmp_path / "targets.npz"
    vectors = np.eye(3, 4, dtype=np.float32)[[2, 0, 1]]
    np.savez(targets, category=np.array(CLASSES), vectors=vectors)
    given = [f"prior.path={head}", "targets=file", f"targets.path={targets}"]
    torch.testing.assert_close(found(*given), expected([[4], [0], [2]]), rtol=0, atol=1e-2)
    np.savez(targets, category=np.array(CLASSES), vectors=np.eye(3, 5, dtype=np.float32))  # of another model: by name
    torch.testing.assert_close(found(*given), expected([[0], [2], []]))


def test_asts_own_labels_and_clips_text_model(model_folder, tmp_path):
    """The labels' texts are embedded as the classes'; a class that is a label is tied to it most."""
    folder = tmp_path / "ast"
    tiny_ast(folder, labels=5)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(row): label for row, label in enumerate(LABELS)}
    config["label2id"] = {label: row for row, label in enumerate(LABELS)}
    (folder / "config.json").write_text(json.dumps(config))
    clip = model_folder(tiny_clip_text)
    given = ["encoder=ast", f"encoder.model={folder}", "targets=clip", f"targets.clip.model={clip}"]
    given += ["targets.clip.subfolder=''", "targets.clip.revision=null", "adapters.clip_width=64"]
    all_labels = found(*given, classes=("dog", "siren"))
    assert all_labels.shape == (2, 32)
    only = found(*given, "prior.exclude=[Dog,Bark,Rain]", classes=("dog", "siren"))
    torch.testing.assert_close(only[0], only[1])  # one label is left
    assert not torch.allclose(all_labels[0], all_labels[1])


def test_a_file_of_embeddings_has_its_own_head_and_labels(tmp_path):
    path = tmp_path / "clips.npz"
    np.savez(path, embeddings=weight(), head=weight(), head_labels=np.array(LABELS))
    given = ["dataset=embeddings", f"dataset.path={path}"]
    torch.testing.assert_close(found(*given), expected([[0], [2], []]))


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"labels": np.array(LABELS[:4]), "label_index": np.arange(3)}, ["5", "4"]),
        ({"labels": np.arange(5)}, ["labels", "head.npz"]),
        ({"label_index": np.array([0, 5, 1])}, ["label_index", "head.npz"]),
        ({"label_index": np.array([0, 1])}, ["label_index", "3"]),
        ({"label_vectors": np.ones(3)}, ["label_vectors"]),
    ],
)
def test_a_head_that_does_not_fit_its_labels_is_refused(head, arrays, named):
    with np.load(head) as file:
        np.savez(head, **({name: file[name] for name in file} | arrays))
    with refused(ConfigError, *named):
        found(f"prior.path={head}")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", ["prior.ties", "ties.json"]),
        ('["Dog"]', ["prior.ties"]),
        ('{"dog": "Dog"}', ["prior.ties"]),
        ('{"dog": ["Dogs"]}', ["prior.ties", "'Dogs'", "'Dog'"]),
    ],
)
def test_ties_that_cannot_be_used_are_refused(head, tmp_path, text, named):
    (tmp_path / "ties.json").write_text(text)
    with refused(ConfigError, *named):
        found(f"prior.path={head}", f"prior.ties={tmp_path / 'ties.json'}")


def test_a_prior_for_no_class_and_for_other_statistics_is_refused(head):
    with refused(ConfigError, "prior.ties"):
        found(f"prior.path={head}", classes=("engine", "cat"))
    with refused(ConfigError, "prior=labels", "share=statistics"):
        compose_settings(["prior=labels"])


def test_a_missing_head_is_named_by_the_key_of_the_prior(tmp_path):
    with refused(ConfigError, f"prior.path: {tmp_path / 'gone.npz'}"):
        found(f"prior.path={tmp_path / 'gone.npz'}")
    with refused(ConfigError, "prior: ", "prior.path", "prior=none"):
        found("projection=random")
