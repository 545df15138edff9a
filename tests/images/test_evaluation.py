"""Scores of images by CLIP."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fed_a2v.encoders.pretrained import ModelError
from fed_a2v.images import evaluation
from fed_a2v.images.evaluation import Clip, evaluate
from fed_a2v.images.gallery import GalleryError
from tests.refusals import refused

CLASSES = ["cat", "dog", "sea_waves"]


@pytest.fixture
def gallery(tmp_path):
    """A gallery with one column: pictures of plain colours, and for each its class."""

    def make(colours, categories, name="pictures"):
        folder = tmp_path / name
        (folder / "sound").mkdir(parents=True)
        subjects = []
        for row, (colour, category) in enumerate(zip(colours, categories, strict=True)):
            Image.new("RGB", (20, 20), colour).save(folder / f"sound/{row}.png")
            subjects.append({"name": str(row), "class": category, "pictures": {"sound": f"sound/{row}.png"}})
        content = {"classes": CLASSES, "columns": {"sound": "From sound"}, "subjects": subjects}
        (folder / "pictures.json").write_text(json.dumps(content))
        return folder

    return make


@pytest.fixture
def colour_blind(monkeypatch):
    """CLIP's encoders with the colours red, green and blue for the three classes."""

    def of_pictures(self, pictures):
        return torch.stack(
            [torch.tensor(np.array(picture), dtype=torch.float32).mean(dim=(0, 1)) for picture in pictures]
        )

    monkeypatch.setattr(Clip, "of_pictures", of_pictures)
    monkeypatch.setattr(Clip, "of_texts", lambda self, texts: torch.eye(3))


def test_the_figures_of_a_known_confusion(gallery, image_settings, colour_blind):
    """Four cats, three of them seen; one dog, taken for a cat; waves have no picture."""
    folder = gallery(["red", "red", "red", "blue", "red"], ["cat", "cat", "cat", "cat", "dog"])
    result = evaluate(folder, image_settings("sd"))
    found = result["columns"]["sound"]
    assert found["pictures"] == 5
    assert found["accuracy"]["value"] == pytest.approx(3 / 5)
    assert found["balanced_accuracy"]["value"] == pytest.approx((3 / 4 + 0) / 2)
    # cat: precision 3/4, recall 3/4; dog: 0. Waves are a wrong answer, not a class of their own.
    assert found["macro_f1"]["value"] == pytest.approx((3 / 4 + 0) / 2)
    assert found["confusion"] == {"cat": {"cat": 3, "sea_waves": 1}, "dog": {"cat": 1}}
    # Wilson's interval of 3 of 5, by hand: centre (3 + z²/2) / (5 + z²), z = 1.96.
    assert found["accuracy"]["interval"] == pytest.approx([0.2307, 0.8824], abs=2e-4)
    for key in ("balanced_accuracy", "macro_f1", "clip_score"):
        low, high = found[key]["interval"]
        assert low <= found[key]["value"] <= high
    assert json.loads((folder / "evaluation.json").read_text()) == result


def test_the_same_pictures_get_the_same_figures(gallery, image_settings):
    colours = ["red", "green", "blue", "white", "black", "yellow"]
    results = [evaluate(gallery(colours, CLASSES * 2, name), image_settings("sd")) for name in ("one", "two")]
    assert results[0] == results[1]


def test_one_picture_has_no_bootstrap(gallery, image_settings):
    found = evaluate(gallery(["red"], ["cat"]), image_settings("sd"))["columns"]["sound"]
    assert found["clip_score"]["interval"] is None
    assert found["accuracy"]["interval"] is not None


def test_clip_score_is_a_hundred_times_the_cosine(image_settings):
    clip = Clip(image_settings("sd"))
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "white")]
    texts = ["a cat", "dog", "sea waves"]
    cosines = (clip.of_pictures(pictures) * clip.of_texts(texts)).sum(dim=1)
    np.testing.assert_allclose(clip.scores(pictures, texts), (100 * cosines).clamp(min=0), rtol=1e-4, atol=1e-3)


def test_clip_scores_class_names_with_spaces(gallery, image_settings, monkeypatch):
    asked = []
    real = Clip.of_texts
    monkeypatch.setattr(Clip, "of_texts", lambda self, texts: asked.extend(texts) or real(self, texts))
    evaluate(gallery(["red"], ["cat"]), image_settings("sd"))
    assert asked == ["cat", "dog", "sea waves"]


def test_pictures_without_a_class_do_not_count(gallery, image_settings):
    found = evaluate(gallery(["red", "green"], ["cat", None]), image_settings("sd"))
    assert found["columns"]["sound"]["pictures"] == 1
    unknown = gallery(["red"], [None], "unknown")
    with refused(GalleryError, unknown, "CLASS=FILE"):
        evaluate(unknown, image_settings("sd"))


def test_a_missing_or_damaged_picture_is_an_error_that_names_it(gallery, image_settings):
    folder = gallery(["red", "green"], ["cat", "dog"])
    (folder / "sound/1.png").write_bytes(b"no picture")
    with refused(GalleryError, folder / "sound/1.png"):
        evaluate(folder, image_settings("sd"))
    (folder / "sound/1.png").unlink()
    with refused(GalleryError, folder / "sound/1.png", "'1'"):
        evaluate(folder, image_settings("sd"))
    assert not (folder / "evaluation.json").exists()


def test_a_missing_clip_is_refused_with_the_command_that_fetches_it(gallery, image_settings):
    settings = image_settings("sd", "images.clip.model=some/clip", "images.clip.revision=abc")
    with refused(ModelError, "images.clip.model=some/clip", "hf download some/clip --revision abc"):
        evaluate(gallery(["red"], ["cat"]), settings)


def test_another_kind_of_model_is_refused(gallery, image_settings, models, tmp_path):
    text_only = shutil.copytree(models["sd"] / "text_encoder", tmp_path / "text")
    with refused(ModelError, f"images.clip.model={text_only}", "CLIPModel"):
        evaluate(gallery(["red"], ["cat"]), image_settings("sd", f"images.clip.model={text_only}"))


def test_the_bootstrap_narrows_with_more_pictures():
    def width(count):
        low, high = evaluation._with_interval(lambda x: float(x.mean()), np.arange(count) % 2 * 1.0)["interval"]
        return high - low

    assert width(400) < width(16) / 3
