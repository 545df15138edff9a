import shutil

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.data.audio import _CONTAINERS, OTHER_SUFFIXES, SUFFIXES, check_waveform, fit_clip, read_clip
from fed_a2v.data.errors import BadClipError
from tests.refusals import refused


def tone(rate, seconds, hertz=440.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_every_format_and_rate_gives_the_same_sound(tmp_path, suffix, rate):
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, tone(rate, 1.0), rate)
    clip = read_clip(path, 16_000, 1.0)
    assert clip.shape == (16_000,)
    assert clip.dtype == np.float32
    assert np.corrcoef(clip[1000:-1000], tone(16_000, 1.0)[1000:-1000])[0, 1] > 0.99


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file_that_is_listed_is_read(tmp_path, suffix):
    container = next(name for name, suffixes in _CONTAINERS.items() if suffix in suffixes)
    path, subtype = tmp_path / f"clip{suffix}", "OPUS" if suffix == ".opus" else None
    soundfile.write(path, tone(16_000, 1.0), 16_000, format=container, subtype=subtype)
    clip = read_clip(path, 16_000, 1.0)
    assert np.corrcoef(clip[1000:-1000], tone(16_000, 1.0)[1000:-1000])[0, 1] > 0.99


def test_the_kinds_of_files_are_those_of_libsndfile_and_no_video():
    assert {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".caf", ".au", ".w64"} <= set(SUFFIXES)
    assert not {".mat", ".raw", *OTHER_SUFFIXES} & set(SUFFIXES)


def without_length(path):
    """Make a FLAC one that was written to a pipe: its header has 0 for the number of samples."""
    raw = bytearray(path.read_bytes())
    raw[21] &= 0xF0
    raw[22:26] = bytes(4)
    path.write_bytes(raw)


def test_streams_without_a_length_give_what_files_with_one_do(tmp_path):
    for suffix in ("flac", "wav", "au"):
        soundfile.write(tmp_path / f"whole.{suffix}", tone(16_000, 0.5), 16_000)
    shutil.copy(tmp_path / "whole.flac", tmp_path / "stream.flac")
    without_length(tmp_path / "stream.flac")
    wav = bytearray((tmp_path / "whole.wav").read_bytes())
    at = wav.index(b"data") + 4
    wav[4:8], wav[at : at + 4] = b"\xff" * 4, b"\xff" * 4  # as ffmpeg writes it
    (tmp_path / "stream.wav").write_bytes(wav)
    au = bytearray((tmp_path / "whole.au").read_bytes())
    au[8:12] = b"\xff" * 4
    (tmp_path / "stream.au").write_bytes(au)
    for suffix in ("flac", "wav", "au"):
        for seconds in (0.25, 0.5, 0.75):
            whole, stream = (read_clip(tmp_path / f"{name}.{suffix}", 16_000, seconds) for name in ("whole", "stream"))
            assert whole[: round(min(seconds, 0.5) * 16_000)].any()
            assert np.array_equal(stream, whole)


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff", "au", "caf", "w64", "rf64", "iff", "mp3"])
def test_a_file_cut_short_is_named_and_not_filled_with_silence(tmp_path, suffix):
    path = tmp_path / f"clip.{suffix}"
    format = {"iff": "SVX", "caf": "CAF"}.get(suffix)
    soundfile.write(path, tone(16_000, 2.0), 16_000, format=format)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) * 3 // 4])
    with refused(BadClipError, path):
        read_clip(path, 16_000, 2.0)
    if suffix not in ("caf",):  # what lies before the cut is as good as ever
        assert read_clip(path, 16_000, 1.0)[-100:].any()


def test_a_header_that_promises_more_than_there_is_says_both_lengths(tmp_path):
    soundfile.write(tmp_path / "clip.flac", tone(16_000, 1.0), 16_000)
    raw = bytearray((tmp_path / "clip.flac").read_bytes())
    raw[22:26] = (32_000).to_bytes(4, "big")
    (tmp_path / "clip.flac").write_bytes(raw)
    with refused(BadClipError, tmp_path / "clip.flac", "2.00 s", "1.00 s"):
        read_clip(tmp_path / "clip.flac", 16_000, 5.0)


@pytest.mark.parametrize("scale", [1e25, 32_768.0, -1e9])
def test_samples_out_of_all_scale_are_an_error(tmp_path, scale):
    sound = tone(16_000, 0.5)
    soundfile.write(tmp_path / "clip.wav", sound * scale, 16_000, subtype="FLOAT")
    with refused(BadClipError, tmp_path / "clip.wav", f"{abs(scale) / 2:.3g}"[:3]):
        read_clip(tmp_path / "clip.wav", 16_000, 0.5)
    soundfile.write(tmp_path / "loud.wav", sound * 8, 16_000, subtype="FLOAT")  # clipped recordings are sounds
    assert np.abs(read_clip(tmp_path / "loud.wav", 16_000, 0.5)).max() == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(
    ("waveform", "named"),
    [
        (np.zeros(99, np.float32), "(99,)"),
        (np.zeros((1, 100), np.float32), "(1, 100)"),
        (np.zeros(100, np.int16), "int16"),
        (None, "object"),
        ([[1.0], [1.0, 2.0]], "dog.wav"),
        (np.full(100, np.nan), "NaN"),
        (np.full(100, 32_767.0), "3.28e+04"),
    ],
)
def test_a_waveform_of_another_shape_or_kind_is_named(waveform, named):
    with refused(BadClipError, "dog.wav", named):
        check_waveform(waveform, 100, "dog.wav")


def test_double_precision_is_a_waveform():
    checked = check_waveform(np.linspace(-1, 1, 100), 100, "dog.wav")
    assert checked.dtype == np.float32
    assert np.allclose(checked, np.linspace(-1, 1, 100))


def test_stereo_is_mixed_to_mono(tmp_path):
    left, right = tone(16_000, 0.5), tone(16_000, 0.5, 1000)
    soundfile.write(tmp_path / "clip.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    assert np.allclose(read_clip(tmp_path / "clip.wav", 16_000, 0.5), (left + right) / 2, atol=1e-6)


def test_short_clips_are_padded_at_the_end_and_long_ones_cropped(tmp_path):
    soundfile.write(tmp_path / "clip.wav", np.full(16_000, 0.5), 16_000)
    padded = read_clip(tmp_path / "clip.wav", 16_000, 1.5)
    assert padded.shape == (24_000,)
    assert (padded[:16_000] != 0).all()
    assert (padded[16_000:] == 0).all()
    assert np.array_equal(read_clip(tmp_path / "clip.wav", 16_000, 0.25), padded[:4_000])


def test_a_crop_sounds_as_the_whole_clip_does_there(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 44_100 * 2).astype(np.float32)
    soundfile.write(tmp_path / "clip.wav", noise, 44_100, subtype="FLOAT")
    cropped = read_clip(tmp_path / "clip.wav", 16_000, 0.5)
    assert np.allclose(cropped, fit_clip(noise, 44_100, 16_000, 2.0)[:8_000], atol=1e-4)


def test_a_silent_clip_passes(tmp_path):
    soundfile.write(tmp_path / "clip.wav", np.zeros(1_000), 16_000)
    assert not read_clip(tmp_path / "clip.wav", 16_000, 1.0).any()


def test_a_missing_an_empty_and_a_broken_file_are_named(tmp_path):
    with refused(BadClipError, tmp_path / "gone.wav"):
        read_clip(tmp_path / "gone.wav", 16_000, 1.0)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    with refused(BadClipError, tmp_path / "empty.wav"):
        read_clip(tmp_path / "empty.wav", 16_000, 1.0)
    (tmp_path / "nothing.wav").touch()
    with refused(BadClipError, tmp_path / "nothing.wav"):
        read_clip(tmp_path / "nothing.wav", 16_000, 1.0)
    (tmp_path / "text.wav").write_text("no sound")
    with refused(BadClipError, tmp_path / "text.wav"):
        read_clip(tmp_path / "text.wav", 16_000, 1.0)
    with refused(BadClipError, tmp_path):
        read_clip(tmp_path, 16_000, 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_an_error(tmp_path, value):
    soundfile.write(tmp_path / "clip.wav", np.array([0.1, value, 0.1]), 16_000, subtype="FLOAT")
    with refused(BadClipError, tmp_path / "clip.wav", "NaN"):
        read_clip(tmp_path / "clip.wav", 16_000, 1.0)


@given(st.data())
def test_an_altered_file_gives_a_clip_or_our_error(tmp_path, data):
    path = tmp_path / "clip.wav"
    soundfile.write(path, tone(16_000, 0.02), 16_000)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 60))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content)[: data.draw(st.integers(0, len(content)))])
    try:
        assert read_clip(path, 16_000, 0.1).shape == (1_600,)
    except BadClipError as error:
        assert "clip.wav" in str(error)


@pytest.mark.real_data
@pytest.mark.parametrize("seconds", [5.0, 8.0])
def test_real_ogg_clips_of_several_lengths_are_cropped_and_padded(real_data, seconds):
    paths = sorted((real_data / "esc10_original_ogg" / "audio").iterdir())
    lengths = [soundfile.info(path).duration for path in paths]
    assert 5 < min(lengths) < max(lengths) < 8
    for path, length in zip(paths, lengths, strict=True):
        clip = read_clip(path, 16_000, seconds)
        assert clip.shape == (16_000 * seconds,)
        assert clip[: int(16_000 * min(length, seconds))].any()
        assert not clip[int(16_000 * length) + 1 :].any()


@pytest.mark.real_data
def test_a_real_ogg_clip_is_the_sound_of_its_flac(real_data):
    ogg = read_clip(real_data / "esc10_original_ogg" / "audio" / "1-17808-B-12.ogg", 16_000, 5.0)
    flac = read_clip(real_data / "esc50" / "audio" / "1-17808-B-12.flac", 16_000, 5.0)
    assert np.corrcoef(ogg, flac)[0, 1] > 0.99


@pytest.mark.real_data
def test_a_real_near_silent_clip_passes(real_data):
    (path,) = (real_data / "esc50" / "audio").glob("2-110613-A-13.*")
    clip = read_clip(path, 16_000, 5.0)
    assert 0 < np.sqrt(np.mean(clip**2)) < 0.001
