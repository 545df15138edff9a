"""From recordings to pictures with pretrained encoders, text models and image models, all read from folders."""

import numpy as np
import pytest
from PIL import Image

from fed_a2v.cli import main
from fed_a2v.config.compose import compose_settings
from fed_a2v.core.seeding import seed_for
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.images.gallery import read_gallery
from fed_a2v.load import load_run
from tests.images.conftest import FAST
from tests.models import tiny_ast, tiny_clap

BUILT_IN = [word for word in FAST if word.startswith("dataset.")]


@pytest.fixture
def recordings(request):
    """The words for a data set of three classes: real clips where there are some, else the built-in sounds."""

    def words(kind):
        if kind == "built-in":
            return BUILT_IN
        root = request.getfixturevalue("real_data") / "esc10_tiny"
        return ["dataset=esc50", f"dataset.root={root}", "dataset.classes=[dog,rain,crying_baby]"]

    return words


def encoder_words(kind, folder):
    return [f"encoder={kind}", f"encoder.model={folder}", "encoder.revision=null", "encoder.device=cpu"]


def target_words(kind, pipeline):
    """The targets are those that the pipeline's own text encoders give."""
    sides = {"clip": "text_encoder"} | ({"t5": "text_encoder_2"} if kind == "flux" else {})
    words = [f"targets={'t5' if kind == 'flux' else 'clip'}", "targets.device=cpu"]
    for side, subfolder in sides.items():
        words += [f"targets.{side}.model={pipeline}", f"targets.{side}.subfolder={subfolder}"]
        words += [f"targets.{side}.revision=null", f"targets.{side}.precision=float32"]
    return words


@pytest.mark.parametrize("sounds", ["built-in", "real"])
@pytest.mark.parametrize(
    ("kind", "encoder", "make"), [("sd", "ast", tiny_ast), ("flux", "clap", tiny_clap)], ids=["sd", "flux"]
)
def test_embed_federate_generate(kind, encoder, make, sounds, recordings, models, model_folder, image_words, tmp_path):
    words = [word for word in FAST if not word.startswith("dataset.")] + recordings(sounds)
    words += [f"adapters={kind}", *encoder_words(encoder, model_folder(make)), *target_words(kind, models[kind])]
    run_in_process(compose_settings(words), tmp_path / "run")
    out = tmp_path / "pictures"
    main(["generate", str(tmp_path / "run"), "--test", "1", "--evaluate", "--out", str(out), *image_words(kind)])
    gallery = read_gallery(out)
    assert len(gallery["subjects"]) == 3
    assert (out / "evaluation.json").is_file()

    # The right column is what the pipeline itself draws of the text.
    pipe = own_pipeline(kind, models[kind])
    for subject in gallery["subjects"]:
        drawn = np.array(Image.open(out / subject["pictures"]["text"])).astype(int)
        seed = seed_for(0, "picture", subject["name"])
        text = f"a photo of {subject['class'].replace('_', ' ')}"
        assert np.abs(drawn - own_picture(kind, pipe, text, seed)).max() <= 1
        other = own_picture(kind, pipe, "a photo of chaos", seed)
        assert np.abs(drawn - other).max() > 1

    # And the run can be loaded and used where neither its data nor its text models are.
    run = load_run(tmp_path / "run")
    assert run.targets.clip.shape == (3, 77 if kind == "sd" else 1, 768)
    assert run.adapt(run.generator.sample("dog", 2)).clip.isfinite().all()
    sounds = [out / subject["audio"] for subject in gallery["subjects"]]
    assert run.prompts(sounds).clip.shape == (3, *run.targets.clip.shape[1:])


def own_pipeline(kind, folder):
    from diffusers import FluxPipeline, StableDiffusionPipeline

    return (StableDiffusionPipeline if kind == "sd" else FluxPipeline).from_pretrained(folder)


def own_picture(kind, pipe, text, seed):
    import torch

    settings = {"guidance_scale": 7.5} if kind == "sd" else {"guidance_scale": 0.0, "max_sequence_length": 17}
    generator = torch.Generator().manual_seed(seed)
    drawn = pipe(text, num_inference_steps=2, generator=generator, height=16, width=16, **settings)
    return np.array(drawn.images[0]).astype(int)
