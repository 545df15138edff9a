"""The image models: real pipelines of tiny size, loaded from folders as a user's are."""

import json
import shutil
import sys

import diffusers
import numpy as np
import pytest
import torch

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.core.adapters import AdapterOutput
from fed_a2v.encoders.pretrained import ModelError
from fed_a2v.images.pipelines import check_available, load_image_model
from fed_a2v.install import install_hint
from tests.refusals import refused

PIPELINES = ("StableDiffusionPipeline", "FluxPipeline")


def prompts(kind, count=3):
    random = torch.Generator().manual_seed(0)
    if kind == "sd":
        return AdapterOutput(torch.randn(count, 77, 768, generator=random), None)
    return AdapterOutput(torch.randn(count, 1, 768, generator=random), torch.randn(count, 17, 4096, generator=random))


def pixels(pictures):
    return np.stack([np.array(picture) for picture in pictures])


@pytest.fixture(scope="module")
def model(image_settings):
    loaded = {}

    def load(kind, *overrides):
        if (kind, *overrides) not in loaded:
            loaded[kind, *overrides] = load_image_model(image_settings(kind, *overrides))
        return loaded[kind, *overrides]

    return load


@pytest.mark.parametrize("kind", ["sd", "flux"])
class TestBoth:
    def test_it_draws_a_picture_for_each_prompt(self, model, kind):
        drawn = model(kind).draw(prompts(kind), [1, 2, 3])
        assert [picture.size for picture in drawn] == [(16, 16)] * 3
        assert len({picture.tobytes() for picture in drawn}) == 3

    def test_the_same_seed_gives_the_same_picture_however_they_are_batched(self, model, kind):
        one_by_one = model(kind, "images.batch_size=1").draw(prompts(kind), [1, 2, 3])
        together = model(kind, "images.batch_size=3").draw(prompts(kind), [1, 2, 3])
        # Products of other sizes may round otherwise, by a shade at most.
        difference = np.abs(pixels(one_by_one).astype(int) - pixels(together).astype(int))
        assert difference.max() <= 1
        again = model(kind, "images.batch_size=3").draw(prompts(kind), [1, 2, 3])
        assert np.array_equal(pixels(together), pixels(again))

    def test_prompt_and_seed_both_matter(self, model, kind):
        first, second = prompts(kind).index_select(torch.tensor([0])), prompts(kind).index_select(torch.tensor([1]))
        picture = pixels(model(kind).draw(first, [1]))
        assert not np.array_equal(picture, pixels(model(kind).draw(second, [1])))
        assert not np.array_equal(picture, pixels(model(kind).draw(first, [2])))

    def test_a_prompt_of_another_width_is_refused(self, model, kind):
        given = prompts(kind)
        narrow = AdapterOutput(given.clip[..., :512], given.t5)
        with refused(ModelError, f"images.model={model(kind).settings.model}", "clip", 768, 512):
            model(kind).draw(narrow, [1, 2, 3])

    def test_the_other_kind_of_pipeline_is_refused_before_weights_are_loaded(self, models, image_settings, kind):
        other = {"sd": "flux", "flux": "sd"}[kind]
        settings = image_settings(kind, f"images.model={models[other]}")
        with refused(ModelError, settings.model, *PIPELINES, f"adapters={other}", f"images={kind}"):
            check_available(settings)

    def test_a_missing_model_is_refused_with_the_command_that_fetches_it(self, image_settings, kind, monkeypatch):
        with refused(ModelError, "images.model=some/model", "hf download some/model --revision abc"):
            load_image_model(image_settings(kind, "images.model=some/model", "images.revision=abc"))
        with refused(ModelError, "images.model=/nowhere/at/all") as caught:
            load_image_model(image_settings(kind, "images.model=/nowhere/at/all"))
        assert "hf download" not in str(caught.value), "it is no repository"

    def test_without_the_package_the_error_says_what_to_install(self, image_settings, kind, monkeypatch):
        monkeypatch.setitem(sys.modules, "diffusers", None)
        with refused(ModelError, f"images={kind}", "diffusers", install_hint("hf")):
            load_image_model(image_settings(kind))

    def test_it_loads_no_text_encoder_that_it_does_not_need(self, model, kind):
        pipe = model(kind).pipe
        assert pipe.text_encoder is None
        assert getattr(pipe, "text_encoder_2", None) is None

    def test_a_damaged_file_is_refused(self, models, image_settings, kind, tmp_path):
        copy = shutil.copytree(models[kind], tmp_path / "broken")
        part = {"sd": "unet", "flux": "transformer"}[kind]
        (copy / part / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
        with refused(ModelError, f"images.model={copy}"):
            load_image_model(image_settings(kind, f"images.model={copy}"))


def test_pickled_weights_are_refused(models, image_settings, tmp_path):
    copy = shutil.copytree(models["sd"], tmp_path / "pickled")
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    torch.save({}, file.with_suffix(".bin"))
    with refused(ModelError, f"images.model={copy}", "safetensors"):
        load_image_model(image_settings("sd", f"images.model={copy}"))


def drawn_by_the_pipeline(pipe, seeds, **conditions):
    random = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(**conditions, generator=random, num_inference_steps=2, guidance_scale=1.0, height=16, width=16).images


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
def test_stable_diffusion_draws_what_the_pipeline_alone_makes_of_a_seed(image_settings, scheduler):
    model = load_image_model(image_settings("sd", "images.guidance=1", "images.batch_size=3"))
    model.pipe.scheduler = getattr(diffusers, scheduler).from_config(model.pipe.scheduler.config)
    alone = drawn_by_the_pipeline(model.pipe, [1, 2, 3], prompt_embeds=prompts("sd").clip)
    assert np.array_equal(pixels(model.draw(prompts("sd"), [1, 2, 3])), pixels(alone))


def test_flux_draws_what_the_pipeline_alone_makes_of_a_seed(image_settings):
    model, given = load_image_model(image_settings("flux", "images.guidance=1", "images.batch_size=3")), prompts("flux")
    conditions = {"prompt_embeds": given.t5, "pooled_prompt_embeds": given.clip[:, 0]}
    alone = drawn_by_the_pipeline(model.pipe, [1, 2, 3], **conditions)
    assert np.array_equal(pixels(model.draw(given, [1, 2, 3])), pixels(alone))


def test_guidance_takes_the_empty_prompt_into_account(model):
    strong = pixels(model("sd", "images.guidance=7.5").draw(prompts("sd"), [1, 2, 3]))
    without = pixels(model("sd", "images.guidance=1").draw(prompts("sd"), [1, 2, 3]))
    assert not np.array_equal(strong, without)


def test_guidance_needs_the_text_encoder(models, image_settings, tmp_path):
    copy = shutil.copytree(models["sd"], tmp_path / "without")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"text_encoder": [None, None]}))
    with refused(ModelError, f"images.model={copy}", "text_encoder"):
        load_image_model(image_settings("sd", f"images.model={copy}", "images.guidance=3"))
    load_image_model(image_settings("sd", f"images.model={copy}", "images.guidance=1"))


def test_half_precision_draws_about_the_same(model):
    full = pixels(model("flux").draw(prompts("flux"), [1, 2, 3])).astype(int)
    half = pixels(model("flux", "images.precision=bfloat16").draw(prompts("flux"), [1, 2, 3])).astype(int)
    assert model("flux", "images.precision=bfloat16").pipe.transformer.dtype == torch.bfloat16
    assert np.abs(full - half).mean() < 8


def test_a_device_that_is_not_there_is_refused(image_settings):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with refused(ModelError, "device=cuda"):
        load_image_model(image_settings("sd", "images.device=cuda"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["images=sd"], ["images=sd", "adapters=sd", "adapters=compact"]),
        (["images=sd", "adapters=flux"], ["images=sd", "adapters=flux", "images=flux"]),
        (["images=flux", "adapters=sd"], ["images=flux", "adapters=sd", "images=sd"]),
        (["generate_global_images_frequency=2"], ["generate_global_images_frequency=2", "images=sd", "images=flux"]),
        (["generate_nodes_images_frequency=1", "adapters=sd"], ["generate_nodes_images_frequency=1", "images=sd"]),
        (["images=sd", "adapters=sd", "images.model=null"], ["images=sd", "images.model"]),
        (["images=sd", "adapters=sd", "images.size=500"], ["images.size", "500"]),
        (["generate_global_images_frequency=-1"], ["generate_global_images_frequency", "-1"]),
    ],
)
def test_settings_that_contradict_each_other_are_refused(words, named):
    with refused(ConfigError, *named):
        compose_settings(words)
