import numpy as np
import pytest

from fed_a2v.config import compose_settings
from fed_a2v.encoders.audio import LogMelEncoder, load_encoder
from tests.refusals import refused


@pytest.fixture(scope="module")
def waveforms():
    return np.random.default_rng(0).normal(0, 0.1, (5, 16_000)).astype(np.float32)


def test_the_settings_name_the_encoder_and_it_says_what_it_gives(waveforms):
    encoder = load_encoder(compose_settings().encoder)
    embeddings = encoder.encode(waveforms)
    assert embeddings.shape == (5, encoder.tokens, encoder.width) == (5, 1, 512)
    assert embeddings.dtype == np.float32
    assert np.isfinite(embeddings).all()


def test_a_clip_has_the_same_bits_in_every_batch(waveforms):
    encoder = LogMelEncoder()
    together = encoder.encode(waveforms)
    alone = np.concatenate([encoder.encode(waveforms[i : i + 1]) for i in range(5)])
    assert np.array_equal(together, alone)
    assert np.array_equal(together[::-1], encoder.encode(waveforms[::-1]))


def test_no_clips_give_no_embeddings():
    assert LogMelEncoder().encode(np.zeros((0, 100), np.float32)).shape == (0, 1, 512)


def test_a_tone_is_loudest_in_its_own_band():
    time = np.arange(16_000) / 16_000
    tones = np.stack([np.sin(2 * np.pi * hertz * time) for hertz in (300, 1000, 4000)]).astype(np.float32)
    loudest = LogMelEncoder().encode(tones)[:, 0, :128].argmax(axis=1)
    assert loudest[0] < loudest[1] < loudest[2]


def test_a_steady_sound_moves_less_than_a_pulsed_one():
    time = np.arange(16_000) / 16_000
    steady = np.sin(2 * np.pi * 1000 * time)
    delta = LogMelEncoder().encode(np.stack([steady, steady * (time % 0.25 < 0.1)]).astype(np.float32))[:, 0, 256:384]
    assert delta[0].mean() < 0.5 * delta[1].mean()


@pytest.mark.parametrize("samples", [1, 100, 1024, 5000])
def test_silence_and_very_short_clips_are_finite(samples):
    assert np.isfinite(LogMelEncoder().encode(np.zeros((1, samples), np.float32))).all()


def test_a_waveform_without_a_batch_axis_is_an_error():
    with refused(ValueError, "(100,)", "(clips, samples)"):
        LogMelEncoder().encode(np.zeros(100, np.float32))
