import numpy as np
import pytest

from fed_a2v.data.embed import BATCH, embed_clips
from fed_a2v.data.errors import BadClipError, DataError
from fed_a2v.data.esc50 import Esc50Folder


class CountingEncoder:
    name = "counting"
    sample_rate = 16_000
    tokens = 2
    width = 3

    def __init__(self, fingerprint="counting-1", value=None):
        self.fingerprint = fingerprint
        self.value = value
        self.clips = 0

    def encode(self, waveforms):
        self.clips += len(waveforms)
        means = np.abs(waveforms).mean(axis=1) if self.value is None else np.full(len(waveforms), self.value)
        return np.tile(means[:, None, None], (1, self.tokens, self.width)).astype(np.float32)


@pytest.fixture
def embed(tmp_path):
    def run(root, encoder, seconds=0.2, skip_bad=False):
        folder = Esc50Folder(root)
        keys = [record.key for record in folder.records()]
        return embed_clips(folder, keys, encoder, seconds, skip_bad, tmp_path / "cache")

    return run


ROWS = [(f"{i}.wav", i % 4 + 1, "dog" if i % 2 else "rain") for i in range(BATCH + 3)]


def test_every_clip_is_embedded_once_in_its_order(embed, esc50_folder):
    root, encoder = esc50_folder(ROWS), CountingEncoder()
    embeddings, good = embed(root, encoder)
    assert embeddings.shape == (len(ROWS), 2, 3)
    assert good.tolist() == list(range(len(ROWS)))
    folder = Esc50Folder(root)
    expected = [np.abs(folder.waveform(row[0], 16_000, 0.2)).mean() for row in ROWS]
    assert np.allclose(embeddings[:, 0, 0], expected)
    assert np.array_equal(embed(root, encoder)[0], embeddings)
    assert encoder.clips == len(ROWS)


def test_the_same_sounds_elsewhere_are_not_embedded_again(embed, esc50_folder):
    encoder = CountingEncoder()
    embed(esc50_folder(ROWS, name="here"), encoder)
    embed(esc50_folder(ROWS, name="there"), encoder)
    assert encoder.clips == len(ROWS)


def test_another_sound_encoder_or_length_is_embedded_anew(embed, esc50_folder):
    root, encoder = esc50_folder(ROWS[:2]), CountingEncoder()
    embed(root, encoder)
    embed(root, encoder, seconds=0.1)
    assert encoder.clips == 4
    (root / "audio" / "1.wav").write_bytes((root / "audio" / "0.wav").read_bytes())
    embed(root, encoder)
    assert encoder.clips == 6
    other = CountingEncoder("counting-2")
    embed(root, other)
    assert other.clips == 2


def test_a_bad_clip_stops_or_is_skipped_whichever_came_first(embed, esc50_folder, caplog):
    root, encoder = esc50_folder(ROWS[:4]), CountingEncoder()
    (root / "audio" / "1.wav").write_text("no sound")
    (root / "audio" / "2.wav").unlink()
    for _ in range(2):
        with pytest.raises(BadClipError, match=r"1\.wav.*skip_bad"):
            embed(root, encoder)
        embeddings, good = embed(root, encoder, skip_bad=True)
        assert good.tolist() == [0, 3]
        assert len(embeddings) == 2
    assert "1.wav" in caplog.text
    assert "2.wav" in caplog.text


def test_a_clip_that_is_mended_is_embedded_again(embed, esc50_folder):
    root, encoder = esc50_folder(ROWS[:3]), CountingEncoder()
    sound = (root / "audio" / "1.wav").read_bytes()
    (root / "audio" / "1.wav").unlink()
    assert len(embed(root, encoder, skip_bad=True)[0]) == 2
    (root / "audio" / "1.wav").write_bytes(sound)
    assert len(embed(root, encoder)[0]) == 3


def test_no_readable_clip_at_all_is_an_error_even_when_bad_ones_are_skipped(embed, esc50_folder):
    root = esc50_folder(ROWS[:1])
    (root / "audio" / "0.wav").unlink()
    with pytest.raises(DataError, match="none of the 1 clips"):
        embed(root, CountingEncoder(), skip_bad=True)


def test_an_encoder_that_gives_nan_is_stopped(embed, esc50_folder):
    with pytest.raises(DataError, match="counting gave embeddings"):
        embed(esc50_folder(ROWS[:1]), CountingEncoder(value=np.nan))
