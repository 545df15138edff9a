"""CLIP's and T5's prompts, by tiny models of the very same classes."""

import logging
import shutil
import sys

import numpy as np
import pytest
import torch

from fed_a2v.cli import main
from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.encoders import text_models
from fed_a2v.encoders.captions import CaptionsError, read_captions
from fed_a2v.encoders.pretrained import ModelError
from fed_a2v.encoders.targets_file import save_targets
from fed_a2v.encoders.text import TargetsError, class_prompts
from fed_a2v.federation.factory import prompt_set
from fed_a2v.install import install_hint
from fed_a2v.storage.torch_files import content_digest
from tests.models import tiny_ast, tiny_clip_text, tiny_t5
from tests.refusals import refused

NAMES = ("dog", "crying_baby", "sea_waves")


@pytest.fixture
def flux(model_folder, tmp_path):
    """Settings with targets of tiny CLIP and T5 for FLUX, and a cache of the test's own."""

    def make(*overrides):
        return compose_settings(
            [
                "adapters=flux",
                "adapters.t5_width=64",
                "targets=t5",
                f"targets.clip.model={model_folder(tiny_clip_text)}",
                f"targets.t5.model={model_folder(tiny_t5)}",
                'targets.t5.subfolder=""',
                "targets.t5.precision=float32",
                f"cache_dir={tmp_path / 'cache'}",
                *overrides,
            ]
        )

    return make


@pytest.fixture
def sd(model_folder, tmp_path):
    """Settings with targets of a tiny CLIP for Stable Diffusion."""

    def make(*overrides):
        words = ["adapters=sd", "targets=clip", f"targets.clip.model={model_folder(tiny_clip_text)}"]
        return compose_settings([*words, f"cache_dir={tmp_path / 'cache'}", *overrides])

    return make


def test_shapes_are_those_of_the_image_models(flux, sd):
    targets = prompt_set(flux(), NAMES)
    assert targets.clip.shape == (3, 1, 64)
    assert targets.t5.shape == (3, 17, 64)
    assert targets.clip.dtype == targets.t5.dtype == torch.float32
    targets = prompt_set(sd(), NAMES)
    assert targets.clip.shape == (3, 77, 64)
    assert targets.t5 is None


def test_flux_gets_what_its_own_pipeline_makes_of_the_prompts(flux, model_folder):
    from diffusers import FluxPipeline
    from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

    clip, t5 = model_folder(tiny_clip_text), model_folder(tiny_t5)
    pipeline = FluxPipeline(
        scheduler=None,
        vae=None,
        text_encoder=CLIPTextModel.from_pretrained(clip),
        tokenizer=AutoTokenizer.from_pretrained(clip),
        text_encoder_2=T5EncoderModel.from_pretrained(t5),
        tokenizer_2=AutoTokenizer.from_pretrained(t5),
        transformer=None,
    )
    texts = ["a photo of dog", "a photo of crying baby"]
    with torch.inference_mode():
        prompt, pooled, _ = pipeline.encode_prompt(texts, None, device="cpu", max_sequence_length=17)
    targets = prompt_set(flux(), NAMES[:2])
    assert torch.allclose(targets.clip[:, 0], pooled, atol=1e-5)
    assert torch.allclose(targets.t5, prompt, atol=1e-5)


def test_stable_diffusion_gets_what_its_own_pipeline_makes_of_the_prompts(sd, model_folder):
    from diffusers import StableDiffusionPipeline
    from transformers import AutoTokenizer, CLIPTextModel

    folder = model_folder(tiny_clip_text)
    text_encoder, tokenizer = CLIPTextModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    class TextSide(StableDiffusionPipeline):
        def __init__(self):
            self.register_modules(text_encoder=text_encoder, tokenizer=tokenizer)

    with torch.inference_mode():
        prompt, _ = TextSide().encode_prompt(["a photo of dog"], "cpu", 1, False)
    assert torch.allclose(prompt_set(sd(), ["dog"]).clip, prompt, atol=1e-5)


def test_a_target_depends_on_its_own_prompt_only(flux):
    several, alone = prompt_set(flux(), NAMES), prompt_set(flux(), ["Sea-Waves"])
    assert torch.equal(several.clip[2:], alone.clip)
    assert torch.equal(several.t5[2:], alone.t5)
    assert not torch.allclose(several.t5[0], several.t5[2], atol=1e-2)


def test_targets_are_computed_once(flux, monkeypatch, caplog):
    with caplog.at_level(logging.INFO, logger="fed_a2v"):
        first = prompt_set(flux(), NAMES)
    assert sum("Embedding the prompts" in record.message for record in caplog.records) == 2
    monkeypatch.setattr(text_models.TextModel, "embed", lambda *_: pytest.fail("it was cached"))
    again = prompt_set(flux(), NAMES)
    assert content_digest(again) == content_digest(first)


def test_cached_targets_need_no_model(flux, monkeypatch):
    """A pinned commit is known without a look at the files."""
    pinned = ("targets.clip.model=some/clip", f"targets.clip.revision={'a' * 40}")
    words = (*pinned, "adapters=compact", "targets.t5.model=some/t5")
    monkeypatch.setattr(text_models.TextModel, "embed", lambda self, texts, tokens: np.ones((len(texts), 1, 8)))
    monkeypatch.setattr(text_models.TextModel, "too_long", lambda *_: [])
    first = prompt_set(flux(*words), NAMES)
    monkeypatch.undo()
    assert content_digest(prompt_set(flux(*words), NAMES)) == content_digest(first)
    with refused(ModelError, "targets.clip.model=some/clip", "hf download some/clip"):
        prompt_set(flux(*words), ["another"])


def test_another_model_template_or_length_is_not_taken_from_the_cache(flux, model_folder):
    prints = [
        content_digest(prompt_set(flux(*words), NAMES))
        for words in (
            (),
            (f"targets.t5.model={model_folder(tiny_t5, seed=1)}",),
            ("targets.t5.precision=bfloat16",),
            ("targets.templates=['{}']",),
            ("adapters.t5_tokens=9",),
        )
    ]
    assert len(set(prints)) == len(prints)


# --- Templates and captions


def test_templates_are_filled_with_words_and_averaged(flux):
    words = ("targets.templates=['a photo of {}','the sound of {}']",)
    assert class_prompts(flux(*words).targets, ["Crying_Baby"]) == [
        ("a photo of crying baby", "the sound of crying baby")
    ]
    both = prompt_set(flux(*words), NAMES)
    photo, sound = prompt_set(flux(), NAMES), prompt_set(flux("targets.templates=['the sound of {}']"), NAMES)
    assert torch.allclose(both.clip, (photo.clip + sound.clip) / 2, atol=1e-6)
    assert torch.allclose(both.t5, (photo.t5 + sound.t5) / 2, atol=1e-6)


def test_captions_of_a_class_are_averaged_and_replace_its_templates(flux, tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text('filename,category,caption\n1.wav,Sea Waves,waves on a beach\n2.wav,sea_waves,"surf, far away"\n')
    settings = flux(f"targets.captions={path}")
    assert class_prompts(settings.targets, NAMES) == [
        ("a photo of dog",),
        ("a photo of crying baby",),
        ("waves on a beach", "surf, far away"),
    ]
    plain, captioned = prompt_set(flux(), NAMES), prompt_set(settings, NAMES)
    assert torch.equal(captioned.clip[:2], plain.clip[:2])
    model = text_models.TextModel("clip", settings.targets.clip, "cpu")
    expected = model.embed(["waves on a beach", "surf, far away"], 1).mean(axis=0)
    assert np.allclose(captioned.clip[2], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", ["category", "caption"]),
        ("category,text\ndog,a dog\n", ["caption", "category,text"]),
        ("category,caption\n", []),
        ("category,caption\ndog,a dog\ncat, \n", ["line 3", "category", "caption"]),
        ("category,caption\ndog\n", ["line 2", "category", "caption"]),
        ('category,caption\ndog,"a dog\n', []),
        (b"category,caption\ndog,\xff\n", []),
        (None, []),
    ],
)
def test_a_wrong_file_of_captions_is_an_error_that_says_why(flux, tmp_path_factory, text, named):
    path = tmp_path_factory.mktemp("words") / "said.csv"  # tmp_path holds the name of the test, and so "caption"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with refused(CaptionsError, path, *named):
        read_captions(path)
    with refused(TargetsError, "targets.captions", path, *named):
        prompt_set(flux(f"targets.captions={path}"), NAMES)


def test_captions_may_have_a_byte_order_mark(tmp_path):
    (tmp_path / "c.csv").write_bytes("category,caption\nDog,a  dog\n".encode("utf-8-sig"))
    assert read_captions(tmp_path / "c.csv") == [("Dog", "a dog")]


def test_prompts_that_are_cut_are_named(flux, caplog):
    with caplog.at_level(logging.WARNING, logger="fed_a2v"):
        prompt_set(flux("targets.templates=['{} and a long tail']"), ["dog"])
    (message,) = caplog.messages
    assert "'dog and a long tail'" in message
    assert "t5" in message


# --- Image pipelines, and files for sites without text models


def test_the_text_side_of_an_image_pipeline(flux, model_folder, tmp_path):
    shutil.copytree(model_folder(tiny_t5), tmp_path / "pipeline" / "text_encoder_2")
    (tmp_path / "pipeline" / "tokenizer_2").mkdir()
    for file in list((tmp_path / "pipeline" / "text_encoder_2").glob("tokenizer*")):
        file.rename(tmp_path / "pipeline" / "tokenizer_2" / file.name)
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    pipeline = f"targets.t5.model={tmp_path / 'pipeline'}"
    found = prompt_set(flux(pipeline, "targets.t5.subfolder=text_encoder_2"), NAMES)
    assert torch.equal(found.t5, prompt_set(flux(), NAMES).t5)
    with refused(ModelError, pipeline, "targets.t5.subfolder=text_encoder", "text_encoder_2"):
        prompt_set(flux(pipeline), NAMES)


def test_a_file_gives_the_same_bits_as_the_models(flux, tmp_path):
    made = prompt_set(flux(), NAMES)
    save_targets(made, tmp_path / "new" / "flux.npz")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["flux.npz"]
    words = ["adapters=flux", "adapters.t5_width=64", "targets=file", f"targets.path={tmp_path / 'new' / 'flux.npz'}"]
    read = prompt_set(compose_settings(words), NAMES)
    assert content_digest(read) == content_digest(made)
    fewer = prompt_set(compose_settings(words), ["sea waves"])
    assert torch.equal(fewer.t5[0], made.t5[2])


def test_the_command_writes_a_file_that_training_takes(tmp_path, capsys):
    path = tmp_path / "t.npz"
    main(["targets", str(path), "adapters.clip_width=32", "dataset.classes=[dog,rain]"])
    assert f"Wrote {path}: 2 classes, CLIP 1 x 32, 0.0 MB" in capsys.readouterr().out
    with np.load(path) as file:
        assert file["category"].tolist() == ["dog", "rain"]
        assert file["vectors"].shape == (2, 1, 32)


@pytest.mark.parametrize("words", [["adapters=flux", "x.npz"], ["/proc/no/t.npz"], ["x.npz", "targets=clop"]])
def test_the_command_ends_in_one_line_where_a_user_can_mend_it(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["targets", *words])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("fed-a2v: ")
    assert not list(tmp_path.iterdir())


# --- What goes wrong


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["adapters=flux", "targets=clip"], ["adapters.t5_tokens=17", "targets=clip", "targets=t5"]),
        (["targets=file"], ["targets=file", "targets.path=FILE"]),
        (["targets=clip", "targets.templates=[]"], ["targets.templates", "['{}']"]),
        (["targets=clip", "targets.templates=['a photo']"], ["targets.templates", "'a photo'", "{}"]),
        (["targets=clip", "targets.templates=['{} and {}']"], ["targets.templates", "'{} and {}'"]),
        (["targets=clip", "targets.templates=['{0}']"], ["targets.templates", "'{0}'", "{}"]),
        (["targets=random", "targets.captions=x.csv"], ["targets=random", "targets.captions", "null"]),
        (["targets=t5", "targets.t5=null"], ["targets=t5", "targets.t5"]),
        (["targets=clip", "targets.clip.precision=int4"], ["targets.clip.precision", "'int4'"]),
    ],
)
def test_wrong_settings_name_the_key(words, named):
    with refused(ConfigError, *named):
        compose_settings(words)


def test_shapes_that_do_not_fit_name_the_key(flux, sd):
    with refused(TargetsError, "adapters.t5_width=64", 4096):
        prompt_set(flux("adapters.t5_width=4096"), NAMES)
    with refused(TargetsError, "adapters.clip_width=64", 768):
        prompt_set(sd("adapters.clip_width=768"), NAMES)
    with refused(ModelError, "adapters.clip_tokens=78", 77):
        prompt_set(sd("adapters.clip_tokens=78"), NAMES)


def test_another_kind_of_model_is_refused(flux, model_folder):
    for wrong in (f"targets.clip.model={model_folder(tiny_ast)}", f"targets.t5.model={model_folder(tiny_clip_text)}"):
        with refused(ModelError, wrong):
            prompt_set(flux(wrong), NAMES)


def test_a_missing_model_is_an_error_with_the_command_that_fetches_it(flux):
    words = ("targets.t5.model=nobody/flux", "targets.t5.revision=abc", "targets.t5.subfolder=text_encoder_2")
    fetched = "hf download nobody/flux --revision abc --include 'text_encoder_2/*' --include 'tokenizer*'"
    with refused(ModelError, "targets.t5.model=nobody/flux", fetched):
        prompt_set(flux(*words), NAMES)


def test_without_the_extra_the_error_says_what_to_install(sd, monkeypatch):
    settings = sd()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with refused(ModelError, "targets.clip.model=", "transformers", install_hint("hf")):
        prompt_set(settings, NAMES)
