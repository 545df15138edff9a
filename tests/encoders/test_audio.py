"""Encoders are found by name: by those in `conf/encoder/` only, also if the name comes in a message."""

import numpy as np
import pytest
from pydantic import ValidationError

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.sections.data import EncoderSettings
from fed_a2v.config.tree import options
from fed_a2v.encoders.audio import _built_in, known_shape, load_encoder
from tests.refusals import refused


@pytest.mark.parametrize("name", [name for name in options("encoder") if name != "custom"])
def test_every_option_is_an_encoder(name):
    encoder = _built_in(name)
    assert encoder.name == name
    assert callable(encoder.load)


def test_the_settings_name_the_encoder_and_it_says_what_it_gives():
    settings = compose_settings().encoder
    encoder = load_encoder(settings)
    embeddings = encoder.encode(np.random.default_rng(0).normal(0, 0.1, (5, 16_000)).astype(np.float32))
    assert embeddings.shape == (5, encoder.tokens, encoder.width) == (5, *known_shape(settings)) == (5, 1, 512)
    assert embeddings.dtype == np.float32
    assert np.isfinite(embeddings).all()


@pytest.mark.parametrize("name", ["audio", "pretrained", "os", "ast.os", "../ast", ""])
def test_settings_from_a_message_name_no_other_module(name):
    sent = compose_settings().encoder.model_dump(by_alias=True) | {"name": name}
    with refused(ValidationError, "name", repr(name)):
        EncoderSettings.model_validate(sent)


@pytest.mark.parametrize("override", ["encoder.model=x/y", "encoder.tokens=cls", "encoder.device=cpu"])
def test_a_key_that_the_option_does_not_set_stays_null(override):
    key, _, value = override.partition("=")
    with refused(ConfigError, "encoder=logmel", key, value):
        compose_settings([override])


@pytest.mark.parametrize("key", ["model", "tokens", "batch_size", "device", "precision"])
def test_a_key_that_the_option_sets_is_not_null(key):
    with refused(ConfigError, "encoder=ast", f"encoder.{key}"):
        compose_settings(["encoder=ast", f"encoder.{key}=null"])
