"""AST and CLAP, by tiny models of the very same classes."""

import functools
import json
import logging
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.sections.data import EncoderSettings
from fed_a2v.data.audio import fit_clip, read_clip
from fed_a2v.data.cache.embed import Embedder, embed_clips
from fed_a2v.data.datasets.synth import synthesise
from fed_a2v.encoders.audio import known_shape, load_encoder
from fed_a2v.encoders.audio_models import pool, real_part
from fed_a2v.encoders.pretrained import ModelError
from fed_a2v.install import install_hint
from tests.models import tiny_ast, tiny_clap, tiny_t5
from tests.refusals import refused
from tests.sources import KeyedClips

MAKERS = {"ast": tiny_ast, "clap": tiny_clap}


@functools.cache
def settings_of(name):
    return compose_settings([f"encoder={name}"]).encoder.model_dump()


@pytest.fixture(scope="module")
def make_encoder(model_folder):
    """The encoder `name` with the given tokens and settings; its tiny model may be another than the default."""

    def make(name, tokens="cls", *, folder=None, seed=0, model=(), **settings):
        folder = folder or model_folder(MAKERS[name], seed=seed, **dict(model))
        # On a GPU a clip's bits depend on its batch.
        changed = settings_of(name) | {"model": str(folder), "tokens": tokens, "device": "cpu"} | settings
        return load_encoder(EncoderSettings.model_validate(changed))

    return make


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("tokens", ["cls", "mean", 3, "full"])
def test_the_shape_is_known_by_the_models_configuration_alone(make_encoder, model_folder, tmp_path, name, tokens):
    encoder = make_encoder(name, tokens)
    shutil.copy(model_folder(MAKERS[name], seed=0) / "config.json", tmp_path)
    changed = settings_of(name) | {"model": str(tmp_path), "tokens": tokens}
    assert known_shape(EncoderSettings.model_validate(changed)) == (encoder.tokens, encoder.width)


def test_the_shape_of_a_model_that_is_not_on_this_machine_is_not_known(tmp_path):
    assert known_shape(EncoderSettings.model_validate(settings_of("ast") | {"model": str(tmp_path / "none")})) is None
    assert known_shape(EncoderSettings.model_validate(settings_of("ast") | {"model": "nobody/has-this"})) is None


@functools.cache
def synthesised(name):
    return synthesise(name, 0, 0)


def sounds(encoder, seconds=5.0):
    return np.stack([fit_clip(synthesised(name), 16_000, encoder.sample_rate, seconds) for name in ("dog", "rain")])


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("tokens", "expected"), [("cls", 1), ("mean", 1), (3, 3), ("full", None)])
def test_tokens_are_what_the_settings_ask_for(make_encoder, name, tokens, expected):
    encoder = make_encoder(name, tokens)
    expected = expected or {"ast": 2 + 5 * 101, "clap": 32}[name]
    embeddings = encoder.encode(sounds(encoder))
    assert embeddings.shape == (2, encoder.tokens, encoder.width) == (2, expected, 32)
    assert embeddings.dtype == np.float32
    assert np.isfinite(embeddings).all()
    assert not np.allclose(embeddings[0], embeddings[1], atol=1e-3)


@pytest.mark.parametrize("name", MAKERS)
def test_a_clip_has_the_same_bits_in_every_batch_and_every_process(make_encoder, name):
    encoder, again = make_encoder(name, 3), make_encoder(name, 3)
    clips = sounds(encoder)
    together = encoder.encode(clips)
    assert np.array_equal(together[::-1], encoder.encode(clips[::-1]))
    assert np.array_equal(together[1:2], again.encode(clips[1:2]))


def test_a_gpu_batch_gives_what_single_clips_give(make_encoder):
    for name in MAKERS:
        encoder = make_encoder(name, 3)
        clips = sounds(encoder)
        alone = encoder.encode(clips)
        encoder.batch_size = 2
        assert np.allclose(alone, encoder.encode(clips), atol=1e-5)


def test_the_sample_rate_is_that_of_the_feature_extractor(make_encoder):
    assert make_encoder("ast").sample_rate == 16_000
    assert make_encoder("clap").sample_rate == 48_000
    assert make_encoder("ast", model={"sampling_rate": 22_050}).sample_rate == 22_050


def test_clips_are_read_at_the_rate_of_the_encoder(make_encoder, tmp_path):
    """What the cache's code asks the data set for is what the model was trained with."""
    asked = []

    class Source(KeyedClips):
        def waveform(self, key, sample_rate, seconds):
            asked.append((sample_rate, seconds))
            return np.ones(round(sample_rate * seconds), np.float32)

    encoder = make_encoder("clap")
    embeddings, _ = embed_clips(Embedder(Source(), encoder, 0.5, False, tmp_path, "float32"), ["a"])
    assert asked == [(48_000, 0.5)]
    assert embeddings.shape == (1, 1, 32)


def test_a_stereo_file_is_embedded_as_the_mean_of_its_channels(make_encoder, tmp_path):
    time = np.arange(44_100) / 44_100
    left, right = np.sin(2 * np.pi * 440 * time) / 4, np.sin(2 * np.pi * 2000 * time) / 4
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), 44_100, subtype="FLOAT")
    soundfile.write(tmp_path / "mono.wav", (left + right) / 2, 44_100, subtype="FLOAT")
    for name in MAKERS:
        encoder = make_encoder(name)
        stereo, mono = (read_clip(tmp_path / f"{kind}.wav", encoder.sample_rate, 2.0) for kind in ("stereo", "mono"))
        assert np.allclose(encoder.encode(stereo[None]), encoder.encode(mono[None]), atol=1e-4)


def test_cls_is_what_the_library_gives(make_encoder, model_folder):
    from transformers import ASTFeatureExtractor, ASTModel, ClapFeatureExtractor, ClapModel

    ast = make_encoder("ast")
    clip = sounds(ast)[0]
    features = ASTFeatureExtractor.from_pretrained(model_folder(tiny_ast))(
        real_part(clip), sampling_rate=16_000, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = ASTModel.from_pretrained(model_folder(tiny_ast))(**features).last_hidden_state[0, 0]
    assert np.allclose(ast.encode(clip[None])[0, 0], expected, atol=1e-5)

    clap = make_encoder("clap")
    clip = sounds(clap)[0]
    folder = model_folder(tiny_clap)
    features = ClapFeatureExtractor.from_pretrained(folder)(real_part(clip), sampling_rate=48_000, return_tensors="pt")
    with torch.inference_mode():
        expected = ClapModel.from_pretrained(folder).get_audio_features(**features).pooler_output[0]
    assert np.allclose(clap.encode(clip[None])[0, 0], expected, atol=1e-5)


# --- The real part of a clip


def test_the_clip_ends_with_the_last_sample_that_is_not_silent():
    assert len(real_part(np.array([0, 0.5, 0, 0.2, 0, 0], np.float32))) == 4
    assert len(real_part(np.array([0.5, 1e-6, -1e-6], np.float32))) == 1
    assert len(real_part(np.zeros(7, np.float32))) == 7


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("tokens", ["cls", "mean", 4])
def test_padding_changes_nothing(make_encoder, name, tokens):
    encoder = make_encoder(name, tokens)
    short = sounds(encoder, seconds=2.0)[1:2]
    padded = np.pad(short, ((0, 0), (0, 3 * encoder.sample_rate)))
    assert np.array_equal(encoder.encode(short), encoder.encode(padded))


@pytest.mark.parametrize("name", MAKERS)
def test_padding_is_not_pooled(make_encoder, name):
    """The mean is that of the tokens within the clip, not that of all."""
    mean, full = make_encoder(name, "mean"), make_encoder(name, "full")
    clip = sounds(mean, seconds=2.0)[:1]
    with torch.inference_mode():
        features = full._features(clip[0])[None]
        if name == "ast":
            grid = full._network(input_values=features).last_hidden_state[0, 2:].reshape(5, 101, 32).mean(dim=0)
            # 198 frames; the last patch within them begins at frame 180.
            expected, with_padding = grid[:19].mean(dim=0), grid.mean(dim=0)
        else:
            hidden = full._network.audio_model(input_features=features, is_longer=torch.zeros(1, 1)).last_hidden_state
            project = full._network.audio_projection
            expected = torch.nn.functional.normalize(project(hidden[0, :, :, :6].mean(dim=(1, 2))), dim=-1)
            with_padding = torch.nn.functional.normalize(project(hidden[0].mean(dim=(1, 2))), dim=-1)
    pooled = mean.encode(clip)[0, 0]
    assert np.allclose(pooled, expected, atol=1e-5)
    assert not np.allclose(pooled, with_padding, atol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_tokens_of_a_clip_follow_time(make_encoder, name):
    """A sound at the end of a clip moves the last of its tokens most."""
    encoder = make_encoder(name, 4)
    clip = np.random.default_rng(0).normal(0, 0.01, round(9.9 * encoder.sample_rate)).astype(np.float32)
    changed = clip.copy()
    late = round(8.5 * encoder.sample_rate)
    changed[late:] *= 30
    moved = np.linalg.norm(encoder.encode(clip[None])[0] - encoder.encode(changed[None])[0], axis=1)
    assert moved.argmax() == 3


def test_stretches_share_tokens_only_where_they_must():
    tokens = torch.arange(4.0)[:, None]
    assert pool(tokens, 2).flatten().tolist() == [0.5, 2.5]
    assert pool(tokens[:1], 3).flatten().tolist() == [0, 0, 0]
    assert pool(tokens, 1).flatten().tolist() == [1.5]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("samples", [1, 100, 5000])
def test_silence_and_very_short_clips_are_finite(make_encoder, name, samples):
    encoder = make_encoder(name, 2)
    for clip in (np.zeros((1, samples), np.float32), np.full((1, samples), 0.3, np.float32)):
        assert np.isfinite(encoder.encode(clip)).all()


@pytest.mark.parametrize("name", MAKERS)
def test_of_a_long_clip_the_beginning_is_taken_and_that_is_said(make_encoder, name, caplog):
    encoder = make_encoder(name, "mean")
    clip = np.random.default_rng(0).normal(0, 0.1, 12 * encoder.sample_rate).astype(np.float32)
    with caplog.at_level(logging.WARNING, logger="fed_a2v"):
        long = encoder.encode(np.stack([clip, clip]))
    assert np.array_equal(long[0], encoder.encode(clip[None, : encoder.window])[0])
    (message,) = caplog.messages
    heard = f"{encoder.window / encoder.sample_rate:.4g} s"
    assert [part for part in (name, heard, "12 s") if part not in message] == []


def test_a_model_with_fusion_gives_the_same_bits_each_time(make_encoder):
    """Its extractor treats one clip of a batch, drawn at random, as a long one; ours never does."""
    encoder = make_encoder("clap", model={"fusion": True})
    clips = sounds(encoder)
    first = encoder.encode(clips)
    np.random.seed(5)
    assert np.array_equal(first, encoder.encode(clips))
    assert np.array_equal(first[1], encoder.encode(clips[1:])[0])


@pytest.mark.parametrize("name", MAKERS)
def test_no_clips_and_no_samples(make_encoder, name):
    encoder = make_encoder(name)
    assert encoder.encode(np.zeros((0, 100), np.float32)).shape == (0, 1, 32)
    for wrong in (np.zeros((2, 0), np.float32), np.zeros(100, np.float32), np.zeros((2, 2, 100), np.float32)):
        with refused(ValueError, wrong.shape, "(clips, samples)"):
            encoder.encode(wrong)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_near_full_precision(make_encoder, precision):
    for name in MAKERS:
        full, half = make_encoder(name), make_encoder(name, precision=precision)
        clips = sounds(full)
        a, b = full.encode(clips), half.encode(clips)
        assert b.dtype == np.float32
        assert not np.array_equal(a, b)
        assert np.abs(a - b).max() < 0.1 * np.abs(a).max()


# --- Fingerprints


def test_the_fingerprint_follows_all_that_the_embeddings_depend_on(make_encoder, model_folder, tmp_path):
    same = make_encoder("ast").fingerprint
    others = {
        make_encoder("ast", "mean").fingerprint,
        make_encoder("ast", 1).fingerprint,
        make_encoder("ast", precision="bfloat16").fingerprint,
        make_encoder("ast", seed=1).fingerprint,
        make_encoder("clap").fingerprint,
    }
    assert len(others | {same}) == 6
    copy = shutil.copytree(model_folder(tiny_ast), tmp_path / "elsewhere")
    assert make_encoder("ast", batch_size=2, folder=copy).fingerprint == same
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(settings | {"mean": 0.0}))
    assert make_encoder("ast", folder=copy).fingerprint != same


# --- What goes wrong


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with refused(ModelError, "encoder.model=MIT/", "transformers", install_hint("hf")):
        load_encoder(compose_settings(["encoder=ast"]).encoder)


def test_a_missing_model_is_an_error_with_the_command_that_fetches_it():
    words = ["encoder=clap", "encoder.model=nobody/clap", "encoder.revision=abc"]
    with refused(ModelError, "encoder.model=nobody/clap", "hf download nobody/clap --revision abc"):
        load_encoder(compose_settings(words).encoder)


@pytest.mark.parametrize("folder", ["/nowhere/ast", "./nowhere"])
def test_a_missing_folder_is_named(folder):
    with refused(ModelError, f"encoder.model={folder}") as caught:
        load_encoder(compose_settings(["encoder=ast", f"encoder.model={folder}"]).encoder)
    assert "hf download" not in str(caught.value), "it is no repository"


def test_another_kind_of_model_is_refused(make_encoder, model_folder):
    with refused(ModelError, "encoder.model", "'clap'", "encoder=ast", "'audio-spectrogram-transformer'"):
        make_encoder("ast", folder=model_folder(tiny_clap))
    with refused(ModelError, "encoder.model", "'t5'", "encoder=clap", "'clap'"):
        make_encoder("clap", folder=model_folder(tiny_t5))


def test_missing_and_damaged_weights_are_errors_and_never_random(make_encoder, model_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    clip = np.ones((1, 1000), np.float32)
    copy = shutil.copytree(model_folder(tiny_ast), tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    lost, _ = weights.popitem()
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with refused(ModelError, f"encoder.model={copy}", "ASTModel", lost):
        make_encoder("ast", folder=copy).encode(clip)
    (copy / "model.safetensors").write_bytes(b"\x00" * 100)
    with refused(ModelError, f"encoder.model={copy}"):
        make_encoder("ast", folder=copy).encode(clip)
    (copy / "model.safetensors").unlink()
    with refused(ModelError, f"encoder.model={copy}"):
        make_encoder("ast", folder=copy).encode(clip)
    (copy / "preprocessor_config.json").unlink()
    with refused(ModelError, f"encoder.model={copy}"):
        make_encoder("ast", folder=copy)


def test_a_missing_device_is_named(make_encoder):
    with refused(ModelError, "device=cuda:77"):
        make_encoder("ast", device="cuda:77")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["encoder=ast", "encoder.tokens=0"], ["encoder.tokens = 0"]),
        (["encoder=ast", "encoder.tokens=some"], ["encoder.tokens", "'some'"]),
        (["encoder=ast", "encoder.tokens=null"], ["encoder=ast", "encoder.tokens=None"]),
        (["encoder=ast", "encoder.precision=int8"], ["encoder.precision", "'int8'"]),
        (["encoder.tokens=4"], ["encoder=logmel", "encoder.tokens=4", "null"]),
    ],
)
def test_wrong_settings_name_the_key(words, named):
    with refused(ConfigError, *named):
        compose_settings(words)
