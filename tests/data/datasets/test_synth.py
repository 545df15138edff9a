import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fed_a2v.data.datasets.esc50 import Esc50Folder
from fed_a2v.data.datasets.synth import SOUNDS, TARGETS, SynthClips, fold_of, synthesise, write_wavs
from fed_a2v.data.errors import DataError
from fed_a2v.encoders.logmel import LogMelEncoder
from tests.refusals import refused


@pytest.mark.parametrize("name", TARGETS)
def test_every_class_sounds_and_no_two_clips_are_alike(name):
    clips = [synthesise(name, number, seed=0) for number in range(3)]
    for clip in clips:
        assert clip.shape == (80_000,)
        assert clip.dtype == np.float32
        assert 0.02 < np.abs(clip).max() < 1
    assert abs(np.corrcoef(clips[0], clips[1])[0, 1]) < 0.3
    assert not np.array_equal(clips[0], synthesise(name, 0, seed=1))


def test_a_clip_depends_on_seed_class_and_number_only():
    few, many = SynthClips(seed=3, clips_per_class=2), SynthClips(seed=3, clips_per_class=9)
    np.random.seed(5)  # the global state must not matter
    key = few.records()[-1].key
    assert few.content(key) == many.content(key)
    assert np.array_equal(few.waveform(key, 16_000, 5.0), many.waveform(key, 16_000, 5.0))


def test_contents_differ_wherever_sounds_do():
    contents = {clips.content(r.key) for clips in (SynthClips(0, 3), SynthClips(1, 3)) for r in clips.records()}
    assert len(contents) == 60


def test_the_clips_are_dealt_evenly_to_four_folds():
    records = SynthClips(seed=0, clips_per_class=8).records()
    for name in SOUNDS:
        assert sorted(r.fold for r in records if r.category == name) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert len({r.key for r in records}) == 80


def test_the_clips_are_resampled_and_cropped_as_files_are():
    clips = SynthClips(seed=0, clips_per_class=1)
    assert clips.waveform(clips.records()[0].key, 48_000, 2.0).shape == (96_000,)


def test_written_files_are_esc50_and_hold_the_same_sounds(tmp_path):
    folder = Esc50Folder(write_wavs(tmp_path / "esc10", clips_per_class=1, seed=4))
    clips = SynthClips(seed=4, clips_per_class=1)
    assert folder.records() == clips.records()
    for record in clips.records()[::4]:
        read = folder.waveform(record.key, 16_000, 5.0)
        assert np.abs(read - clips.waveform(record.key, 16_000, 5.0)).max() < 1e-4
    assert sorted(path.name for path in (tmp_path / "esc10" / "meta").iterdir()) == ["esc50.csv"]


def test_a_folder_may_hold_some_of_the_classes_with_the_same_sounds(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    write_wavs(whole, clips_per_class=1, seed=4)
    write_wavs(part, clips_per_class=1, seed=4, classes=["dog", "rain"])
    assert [record.category for record in Esc50Folder(part).records()] == ["dog", "rain"]
    for file in (part / "audio").iterdir():
        assert file.read_bytes() == (whole / "audio" / file.name).read_bytes()


def test_a_class_that_is_not_built_in_is_refused_by_name(tmp_path):
    with refused(DataError, "'cat'", "dog", "rain"):
        write_wavs(tmp_path / "sounds", clips_per_class=1, seed=0, classes=["cat"])
    assert not (tmp_path / "sounds").exists()


def test_the_accuracy_on_the_built_in_sounds_is_neither_trivial_nor_at_chance():
    clips = SynthClips(seed=0, clips_per_class=12)
    records = clips.records()
    waveforms = np.stack([clips.waveform(r.key, 16_000, 5.0) for r in records])
    features = LogMelEncoder().encode(waveforms)[:, 0]
    labels = np.array([r.category for r in records])
    test = np.array([r.fold == fold_of(3) for r in records])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    accuracy = model.fit(features[~test], labels[~test]).score(features[test], labels[test])
    assert 0.6 < accuracy < 1.0
