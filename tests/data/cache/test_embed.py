import logging

import numpy as np
import pytest

from fed_a2v.data.cache.embed import BATCH, SHARD, Embedder, embed_clips
from fed_a2v.data.datasets.esc50 import Esc50Folder
from fed_a2v.data.errors import BadClipError, DataError
from tests.refusals import refused
from tests.sources import KeyedClips


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
    def run(root, encoder, seconds=0.2, skip_bad=False, keys=None, dtype="float32", **options):
        folder = Esc50Folder(root)
        keys = [record.key for record in folder.records()] if keys is None else keys
        return embed_clips(Embedder(folder, encoder, seconds, skip_bad, tmp_path / "cache", dtype), keys, **options)

    return run


@pytest.fixture
def old(monkeypatch):
    """Files count as old enough for their times to be trusted."""
    monkeypatch.setattr("fed_a2v.data.datasets.sound_files.RECENT", -1.0)


ROWS = [(f"{i}.wav", i % 4 + 1, "dog" if i % 2 else "rain") for i in range(BATCH + 3)]
MANY = [(f"{i}.wav", i % 4 + 1, "dog") for i in range(2 * SHARD + 3)]


def test_every_clip_is_embedded_once_in_its_order(embed, esc50_folder):
    root, encoder = esc50_folder(ROWS), CountingEncoder()
    embeddings, good = embed(root, encoder)
    assert embeddings.shape == (len(ROWS), 2, 3)
    assert embeddings.dtype == np.float32
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


def test_some_of_the_clips_in_any_order_are_not_embedded_again(embed, esc50_folder):
    root, encoder = esc50_folder(ROWS), CountingEncoder()
    every, _ = embed(root, encoder)
    some, good = embed(root, encoder, keys=["7.wav", "2.wav", "9.wav"])
    assert np.array_equal(some, every[[7, 2, 9]])
    assert good.tolist() == [0, 1, 2]
    assert encoder.clips == len(ROWS)


def test_a_new_clip_is_embedded_alone(embed, esc50_folder):
    encoder = CountingEncoder()
    embed(esc50_folder(ROWS[:-1]), encoder)
    embed(esc50_folder(ROWS), encoder)
    assert encoder.clips == len(ROWS)


def test_another_encoder_or_length_is_embedded_anew(embed, esc50_folder):
    root, encoder = esc50_folder(ROWS[:2]), CountingEncoder()
    embed(root, encoder)
    embed(root, encoder, seconds=0.1)
    assert encoder.clips == 4
    other = CountingEncoder("counting-2")
    embed(root, other)
    assert other.clips == 2


def test_a_file_that_changes_is_embedded_anew_although_its_size_stays(embed, esc50_folder, old):
    root, encoder = esc50_folder(ROWS[:2]), CountingEncoder()
    before, _ = embed(root, encoder)
    sound = (root / "audio" / "1.wav").read_bytes()
    (root / "audio" / "1.wav").write_bytes(sound[:100] + b"\x7f\x7f" + sound[102:])
    after, _ = embed(root, encoder)
    assert encoder.clips == 3
    assert not np.array_equal(before[1], after[1])


def test_files_that_are_known_are_not_read_again(embed, esc50_folder, old, monkeypatch):
    root, encoder = esc50_folder(ROWS), CountingEncoder()
    before, _ = embed(root, encoder)
    monkeypatch.setattr(Esc50Folder, "content", None)
    assert np.array_equal(embed(root, encoder)[0], before)


def test_files_so_young_that_they_may_change_unnoticed_are_read_again(embed, esc50_folder, monkeypatch):
    root, encoder = esc50_folder(ROWS[:2]), CountingEncoder()
    assert Esc50Folder(root).mtime_key("0.wav") is None
    embed(root, encoder)
    monkeypatch.setattr("fed_a2v.data.datasets.sound_files.RECENT", -1.0)
    assert Esc50Folder(root).mtime_key("0.wav") is not None


def test_together_embedded_clips_are_memory_mapped_as_one(embed, esc50_folder, tmp_path):
    root, encoder = esc50_folder(MANY, seconds=0.01), CountingEncoder()
    embeddings, _ = embed(root, encoder)
    assert isinstance(embeddings.base, np.memmap) or isinstance(embeddings, np.memmap)
    assert embeddings.flags["C_CONTIGUOUS"]
    assert len(list((tmp_path / "cache").rglob("*.clips.npy"))) == 1


def test_half_precision_takes_half_the_room(embed, esc50_folder, tmp_path):
    root, encoder = esc50_folder(ROWS), CountingEncoder()
    exact, _ = embed(root, encoder)
    rounded, _ = embed(root, encoder, dtype="float16")
    assert rounded.dtype == np.float32
    assert np.array_equal(rounded, exact.astype(np.float16).astype(np.float32))
    sizes = sorted(f.stat().st_size for f in (tmp_path / "cache").rglob("*.npy") if "clips" not in f.name)
    assert sizes[1] - 128 == 2 * (sizes[0] - 128)
    with refused(DataError, "1e+06", "float16", "dataset.cache_dtype=float32"):
        embed(root, CountingEncoder("large", value=1e6), dtype="float16")


def test_what_is_done_when_a_later_clip_fails_is_kept(embed, esc50_folder):
    root, encoder = esc50_folder(MANY, seconds=0.01), CountingEncoder()
    last = root / "audio" / MANY[-1][0]
    sound = last.read_bytes()
    last.write_text("no sound")
    with refused(BadClipError, last):
        embed(root, encoder)
    assert encoder.clips == 2 * SHARD
    last.write_bytes(sound)
    assert len(embed(root, encoder)[0]) == len(MANY)
    assert encoder.clips == len(MANY)


def test_progress_is_told(embed, esc50_folder):
    root, told = esc50_folder(MANY, seconds=0.01), []
    embed(root, CountingEncoder(), progress=lambda done, total: told.append((done, total)))
    assert told == [(SHARD, len(MANY)), (2 * SHARD, len(MANY)), (len(MANY), len(MANY))]


def test_a_bad_clip_stops_or_is_skipped_whichever_came_first(embed, esc50_folder, caplog):
    root, encoder = esc50_folder(ROWS[:4]), CountingEncoder()
    (root / "audio" / "1.wav").write_text("no sound")
    (root / "audio" / "2.wav").unlink()
    for _ in range(2):
        with refused(BadClipError, root / "audio" / "1.wav", "dataset.skip_bad=true"):
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
    root = esc50_folder(ROWS)
    for sound in (root / "audio").iterdir():
        sound.unlink()
    with refused(DataError, len(ROWS)) as caught:
        embed(root, CountingEncoder(), skip_bad=True)
    assert caught.type is DataError, "it is not about one clip"


def test_an_encoder_that_gives_nan_is_stopped(embed, esc50_folder):
    with refused(DataError, "counting", (1, 2, 3)):
        embed(esc50_folder(ROWS[:1]), CountingEncoder(value=np.nan))


class OneBadClip(CountingEncoder):
    """Gives infinity for the clip whose content is `bad`, as an encoder does that overflows."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def encode(self, waveforms):
        embeddings = super().encode(waveforms)
        embeddings[[np.array_equal(waveform, self.bad) for waveform in waveforms], 0, 1] = np.inf
        return embeddings


def test_the_clip_that_an_encoder_cannot_bear_is_named_or_left_out(embed, esc50_folder, caplog):
    root = esc50_folder(ROWS)
    encoder = OneBadClip(Esc50Folder(root).waveform("3.wav", 16_000, 0.2))
    with refused(BadClipError, "counting", "3.wav", "dataset.skip_bad=true"):
        embed(root, encoder)
    embeddings, good = embed(root, encoder, skip_bad=True)
    assert good.tolist() == [row for row in range(len(ROWS)) if row != 3]
    assert np.isfinite(embeddings).all()
    assert "3.wav" in caplog.text


class OwnClips(KeyedClips):
    """A data set whose clip number 2 is a sample short."""

    def waveform(self, key, sample_rate, seconds):
        return np.full(round(sample_rate * seconds) - (key == "2"), int(key) / 10)


def test_a_waveform_of_a_wrong_length_is_named_or_left_out(tmp_path):
    keys = [str(number) for number in range(5)]
    embedder = Embedder(OwnClips(), CountingEncoder(), 0.1, False, tmp_path / "cache", "float32")
    with refused(BadClipError, "the waveform of 2", "(1599,)", "(1600,)"):
        embed_clips(embedder, keys)
    embedder.skip_bad = True
    embeddings, good = embed_clips(embedder, keys)
    assert good.tolist() == [0, 1, 3, 4]
    assert np.allclose(embeddings[:, 0, 0], [0.0, 0.1, 0.3, 0.4])


@pytest.mark.parametrize(("seconds", "most"), [(0.5, BATCH), (60.0, BATCH), (240.0, 4), (600.0, 1)])
def test_no_more_than_sixteen_minutes_are_decoded_at_once(tmp_path, seconds, most):
    assert Embedder(OwnClips(), CountingEncoder(), seconds, False, tmp_path / "cache", "float32").batch == most


def test_a_cache_that_cannot_be_written_is_an_error_with_the_remedy(embed, esc50_folder, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with refused(DataError, tmp_path / "cache", "cache_dir"):
        embed(esc50_folder(ROWS[:1]), CountingEncoder())


def test_a_line_that_a_kill_cut_short_is_passed_over(embed, esc50_folder, tmp_path, old, caplog):
    root, encoder = esc50_folder(ROWS), CountingEncoder()
    embed(root, encoder)
    (file,) = (tmp_path / "cache" / "contents").glob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-20] + b"\n\xff{}\n[]\n")
    embed(root, encoder)
    embed(root, encoder)
    assert encoder.clips == len(ROWS)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
