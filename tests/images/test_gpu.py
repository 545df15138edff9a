"""On a GPU: pictures are those of the CPU. Skipped where there is none."""

import numpy as np
import pytest
import torch

from fed_a2v.cli import main
from fed_a2v.images.pipelines import load_image_model
from tests.images.test_pipelines import pixels, prompts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("offload", ["none", "model", "sequential"])
@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_pictures_are_nearly_those_of_the_cpu(kind, offload, image_settings):
    def drawn(*words):
        model = load_image_model(image_settings(kind, "images.precision=float32", *words))
        return pixels(model.draw(prompts(kind), [1, 2, 3])).astype(int)

    there = drawn("images.device=cuda", f"images.offload={offload}")
    assert np.abs(there - drawn("images.device=cpu", "images.offload=none")).max() <= 2


def test_generate_and_evaluate(trained, image_words, tmp_path):
    out = tmp_path / "pictures"
    words = [*image_words("sd"), "images.device=auto"]
    main(["generate", str(trained("sd", "device=cuda")), "--test", "1", "--evaluate", "--out", str(out), *words])
    assert (out / "evaluation.json").is_file()
