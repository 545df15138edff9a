"""Public directions: heads of encoders and of files, text vectors, matrices."""

import numpy as np
import pytest
import torch

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.encoders.label_head import given_matrix, head_weight, text_vectors
from fed_a2v.encoders.pretrained import ModelError
from tests.models import tiny_ast, tiny_clap
from tests.refusals import refused


def head_of(*overrides):
    settings = compose_settings(["share=statistics", "projection=head", *overrides])
    return head_weight(settings.projection.path, settings.dataset, settings.encoder)


def weight(rows=7, width=5, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def test_the_head_of_ast_is_its_classifier_as_a_linear_map_of_the_class_token(model_folder):
    from transformers import ASTForAudioClassification

    folder = model_folder(tiny_ast, labels=9)
    with torch.no_grad():
        network = ASTForAudioClassification.from_pretrained(folder)
        network.classifier.layernorm.weight.uniform_(0.5, 2.0)
    found = head_of("encoder=ast", f"encoder.model={folder}")
    assert found.shape == (9, 32)
    tokens = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)) + 3
    with torch.no_grad():
        logits = ASTForAudioClassification.from_pretrained(folder).classifier(tokens)
    deviation = tokens.std(dim=1, correction=0, keepdim=True)
    logits = logits - logits.mean(dim=0)  # without the biases
    linear = tokens @ found.T / deviation
    torch.testing.assert_close(linear - linear.mean(dim=0), logits, rtol=0, atol=1e-4)


def test_a_model_without_a_classifier_has_no_head(model_folder):
    folder = model_folder(tiny_ast)
    with refused(ModelError, "ASTForAudioClassification", str(folder)):
        head_of("encoder=ast", f"encoder.model={folder}")


def test_a_file_of_embeddings_has_a_head_of_its_own_and_a_path_comes_first(tmp_path):
    np.savez(tmp_path / "clips.npz", embeddings=weight(), head=weight(seed=1))
    np.savez(tmp_path / "head.npz", weight=weight(seed=2))
    dataset = ["dataset=embeddings", f"dataset.path={tmp_path / 'clips.npz'}"]
    assert np.array_equal(head_of(*dataset), weight(seed=1))
    assert np.array_equal(head_of(*dataset, f"projection.path={tmp_path / 'head.npz'}"), weight(seed=2))


@pytest.mark.parametrize(
    "arrays", [{"weight": np.arange(4)}, {"weight": np.ones(3)}, {"weight": np.ones((0, 3))}, {"weigth": weight()}]
)
def test_a_file_without_a_matrix_of_numbers_is_refused_by_name(tmp_path, arrays):
    np.savez(tmp_path / "head.npz", **arrays)
    with refused(ConfigError, "projection.path", "head.npz"):
        head_of(f"projection.path={tmp_path / 'head.npz'}")


def test_an_encoder_without_labels_has_no_head(tmp_path):
    with refused(ConfigError, "encoder=logmel", "projection.path", "projection=random"):
        head_of()
    np.savez(tmp_path / "clips.npz", embeddings=weight())
    words = ["dataset=embeddings", f"dataset.path={tmp_path / 'clips.npz'}"]
    with refused(ConfigError, "dataset=embeddings", "projection.path"):
        head_of(*words)


@pytest.fixture
def clap(model_folder):
    return ["share=statistics", "projection=text", "encoder=clap", f"encoder.model={model_folder(tiny_clap)}"]


def vectors_of(words, classes=("dog", "rain")):
    settings = compose_settings(words)
    return text_vectors(settings.projection, settings.encoder, classes)


def test_texts_are_vectors_of_claps_text_side(clap, model_folder):
    from transformers import AutoTokenizer, ClapModel

    found = vectors_of(clap, ("dog", "rain drops"))
    folder = model_folder(tiny_clap)
    tokens = AutoTokenizer.from_pretrained(folder)("rain drops", return_tensors="pt")
    with torch.no_grad():
        expected = ClapModel.from_pretrained(folder).get_text_features(**tokens).pooler_output[0]
    assert found.shape == (2, 32)
    torch.testing.assert_close(found[1], expected / expected.norm(), rtol=0, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_texts_of_a_file_take_the_place_of_the_class_names(clap, tmp_path):
    (tmp_path / "texts.txt").write_text("a dog\n\n  rain  \na siren\nrain\n")
    words = [*clap, f"projection.texts={tmp_path / 'texts.txt'}"]
    assert torch.equal(vectors_of(words), vectors_of(clap, ("a dog", "rain", "a siren")))
    (tmp_path / "texts.txt").write_text("rain\n")
    with refused(ConfigError, "projection.texts", "1 texts"):
        vectors_of(words)
    words = [*clap, f"projection.texts={tmp_path / 'none.txt'}"]
    with refused(ConfigError, "projection.texts", "none.txt"):
        vectors_of(words)


def test_texts_need_an_encoder_with_a_text_side():
    with refused(ConfigError, "encoder=clap", "logmel"):
        vectors_of(["share=statistics", "projection=text"])


def test_a_matrix_is_read_from_either_kind_of_file(tmp_path):
    np.save(tmp_path / "matrix.npy", weight())
    np.savez(tmp_path / "matrix.npz", matrix=weight())
    assert np.array_equal(given_matrix(str(tmp_path / "matrix.npy")), weight())
    assert np.array_equal(given_matrix(str(tmp_path / "matrix.npz")), weight())
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no array")
    for name in ("objects.npy", "text.npy", "none.npy"):
        with refused(ConfigError, "projection.path", name):
            given_matrix(str(tmp_path / name))
