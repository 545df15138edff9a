from pathlib import Path

import numpy as np
import pytest

from fed_a2v.encoders.logmel import LogMelEncoder, mel_filters
from tests.refusals import refused


@pytest.fixture(scope="module")
def waveforms():
    return np.random.default_rng(0).normal(0, 0.1, (5, 16_000)).astype(np.float32)


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


# The filters. In the file is what librosa 0.11.0 gives: `librosa.filters.mel(sr=16000, n_fft=1024, n_mels=128)`.


@pytest.fixture(scope="module")
def filters():
    return mel_filters(16_000, 1024, 128)


def test_the_filters_are_those_of_librosa(filters):
    with np.load(Path(__file__).with_name("mel_filters.npz")) as file:
        expected = file["filters"]
    assert filters.shape == expected.shape == (128, 513)
    assert filters.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(filters, expected, rtol=1e-6, atol=1e-9)
    assert np.array_equal(filters != 0, expected != 0)


def test_every_filter_is_a_triangle_and_all_have_one_area():
    fine = mel_filters(16_000, 2**15, 128).astype(float)  # bins of half a hertz
    bins = np.arange(fine.shape[1]) * 16_000 / 2**15
    np.testing.assert_allclose(np.trapezoid(fine, bins), 1, rtol=1e-3)
    peaks = fine.argmax(axis=1)
    assert (np.diff(peaks) > 0).all()
    # Up to 1000 Hz the peaks are as far apart as each other in hertz, above by the same factor.
    low, high = bins[peaks[bins[peaks] < 950]], bins[peaks[bins[peaks] > 1050]]
    np.testing.assert_allclose(np.diff(low), np.diff(low).mean(), atol=1)
    np.testing.assert_allclose(high[1:] / high[:-1], (high[-1] / high[0]) ** (1 / (len(high) - 1)), rtol=1e-3)
    for row, peak in zip(fine, peaks, strict=True):
        (used,) = row.nonzero()
        assert used[-1] - used[0] == len(used) - 1
        assert (np.diff(row[used[0] : peak + 1]) > 0).all()
        assert (np.diff(row[peak : used[-1] + 1]) < 0).all()
        # Rises from one neighbour's peak, falls to the next one's.
        assert row[peak] == pytest.approx(2 / (bins[used[-1]] - bins[used[0]]), rel=0.05)


def test_every_frequency_except_zero_is_in_at_most_two_filters(filters):
    heard = (filters > 0).sum(axis=0)
    assert heard[0] == heard[-1] == 0
    assert set(heard[1:-1].tolist()) == {1, 2}


def test_filters_below_the_corner_are_linear():
    filters = mel_filters(1500, 1024, 10).astype(float)
    peaks = filters.argmax(axis=1) * 1500 / 1024
    np.testing.assert_allclose(np.diff(peaks), 750 / 11, atol=1.5)
