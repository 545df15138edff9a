"""`fed-a2v embed`: processes, kills, its output, and training from the cache without the encoder."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from fed_a2v.cli import main
from fed_a2v.config.schema import cache_dir
from fed_a2v.data.cache.export import embed_dataset, write_embeddings
from fed_a2v.data.cache.known_encoder import known_encoder
from fed_a2v.data.errors import DataError
from fed_a2v.data.site import load_clips
from fed_a2v.encoders.logmel import LogMelEncoder
from fed_a2v.encoders.pretrained import ModelError
from tests.command import fed_a2v
from tests.flower import wait_until
from tests.refusals import refused


@pytest.fixture
def settings(make_settings):
    return make_settings(
        "dataset.clips_per_class=20", "dataset.classes=[dog,rain,sneezing,rooster]", "dataset.clip_seconds=0.3"
    )


def load(settings):
    return load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings.cache_dir))


def embed(settings, cache, workers):
    return embed_dataset(settings.dataset, settings.encoder, settings.seed, cache, workers)


def segments(cache):
    return sorted(cache.rglob("*.clips.npy"))


def test_several_processes_give_the_bits_of_one(settings, tmp_path):
    one = embed(settings, tmp_path / "one", workers=1)
    two = embed(settings, tmp_path / "two", workers=2)
    assert (one.new, two.new) == (80, 80)
    assert one.records == two.records
    assert np.array_equal(one.embeddings[0], two.embeddings[0])
    names = [file.name for file in segments(tmp_path / "one")]
    assert names == [file.name for file in segments(tmp_path / "two")]
    assert len(names) == 1


def test_training_takes_what_was_embedded_and_needs_no_encoder(settings, monkeypatch):
    embedded = embed(settings, cache_dir(settings.cache_dir), workers=1)

    def gone(settings):
        raise ModelError("some/model")

    monkeypatch.setattr("fed_a2v.data.cache.known_encoder.load_encoder", gone)
    clips = load(settings)
    assert torch.equal(clips.embeddings, torch.from_numpy(np.array(embedded.embeddings[0])))
    assert embed(settings, cache_dir(settings.cache_dir), workers=2).new == 0


def test_an_encoder_that_is_gone_is_an_error_for_new_clips_and_for_a_new_cache(
    settings, make_settings, tmp_path, monkeypatch
):
    embed(settings, cache_dir(settings.cache_dir), workers=1)

    def gone(settings):
        raise ModelError("some/model")

    monkeypatch.setattr("fed_a2v.data.cache.known_encoder.load_encoder", gone)
    with refused(ModelError, "some/model"):
        load(make_settings("dataset.clips_per_class=24", "dataset.classes=[dog]", "dataset.clip_seconds=0.3"))
    with refused(ModelError, "some/model"):
        known_encoder(settings.encoder, tmp_path / "new cache")


def test_what_the_cache_knows_of_an_encoder_follows_it(settings, tmp_path, monkeypatch):
    assert isinstance(known_encoder(settings.encoder, tmp_path), LogMelEncoder)
    monkeypatch.setattr(LogMelEncoder, "fingerprint", "logmel-99")
    known_encoder(settings.encoder, tmp_path)
    monkeypatch.setattr(
        "fed_a2v.data.cache.known_encoder.load_encoder", lambda settings: (_ for _ in ()).throw(ModelError("gone"))
    )
    assert known_encoder(settings.encoder, tmp_path).fingerprint == "logmel-99"


def test_a_file_of_the_embeddings_trains_like_the_sounds(settings, make_settings, tmp_path):
    write_embeddings(embed(settings, cache_dir(settings.cache_dir), workers=1), tmp_path / "out" / "synth.npz")
    sounds = load(settings)
    file = load(
        make_settings(
            "dataset=embeddings",
            f"dataset.path={tmp_path / 'out' / 'synth.npz'}",
            "dataset.classes=[dog,rain,sneezing,rooster]",
        )
    )
    assert torch.equal(file.embeddings, sounds.embeddings)
    assert (file.keys, file.splits, file.labels.tolist()) == (sounds.keys, sounds.splits, sounds.labels.tolist())


def test_what_is_embedded_already_cannot_be_embedded(make_settings, tmp_path):
    with refused(DataError, "dataset=embeddings"):
        embed(make_settings("dataset=embeddings", "dataset.path=/x.npz"), tmp_path, workers=1)


def test_the_command_says_what_it_did_and_a_second_call_does_nothing(tmp_path, capsys):
    words = [
        "embed",
        "--workers",
        "1",
        f"cache_dir={tmp_path}",
        "dataset.clips_per_class=8",
        "dataset.classes=[dog,rain]",
    ]
    main(words)
    assert "16 clips in" in (first := capsys.readouterr().out)
    assert "16 embedded" in first
    assert "clips/s with 1 processes" in first
    main([*words, "--out", str(tmp_path / "made.npz")])
    again = capsys.readouterr().out
    assert "0 embedded, 16 from the cache, 0 skipped" in again
    assert np.load(tmp_path / "made.npz")["embeddings"].shape == (16, 1, 512)


@pytest.mark.parametrize("words", [["--workers", "0"], ["dataset.rot=/x"], ["dataset=folder", "dataset.root=/nowhere"]])
def test_wrong_words_end_in_one_line(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["embed", *words])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


STUCK_ENCODER = """
import time
from pathlib import Path
from fed_a2v.encoders.logmel import LogMelEncoder

class StuckEncoder(LogMelEncoder):
    done = 0

    def encode(self, waveforms):
        self.done += len(waveforms)
        while self.done > 64 and Path(__file__).with_name("stuck").exists():
            time.sleep(0.1)
        return super().encode(waveforms)
"""


def test_after_a_kill_the_finished_shards_are_kept_and_the_result_is_the_same(tmp_path, monkeypatch):
    """Each of two processes finishes its first shard of four and gets stuck in its second."""
    (tmp_path / "stuck_encoder.py").write_text(STUCK_ENCODER)
    (tmp_path / "stuck").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path)
    overrides = ["dataset.clips_per_class=64", "dataset.classes=[dog,rain,sneezing,rooster]"]
    overrides += ["dataset.clip_seconds=0.3", "encoder=custom", "encoder._target_=stuck_encoder.StuckEncoder"]

    def words(cache, workers):
        return ["embed", "--workers", str(workers), f"cache_dir={tmp_path / cache}", *overrides]

    command = [sys.executable, "-m", "fed_a2v", *words("killed", 2)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_until(lambda: len(segments(tmp_path / "killed")) == 2 or process.poll() is not None, "the second shard")
    finally:
        process.kill()
        said, _ = process.communicate()
    kept = segments(tmp_path / "killed")
    assert len(kept) == 2, said
    (tmp_path / "stuck").unlink()
    folder = kept[0].parent
    (folder / "0123.npy").write_bytes(b"a torn shard")
    said = fed_a2v(*words("killed", 1), cwd=tmp_path).stdout
    assert "256 clips in" in said
    assert "128 embedded" in said
    assert "256 embedded" in fed_a2v(*words("whole", 1), cwd=tmp_path).stdout
    for cache in ("killed", "whole"):
        assert len(segments(tmp_path / cache)) == 1
    (one,), (other,) = segments(tmp_path / "killed"), segments(tmp_path / "whole")
    assert one.name == other.name
    assert (one.parent / one.name.replace(".clips", "")).read_bytes() == (
        other.parent / other.name.replace(".clips", "")
    ).read_bytes()
    assert not (folder / "0123.npy").exists()
