"""Train's checks before a sound is decoded, and what `fed-a2v doctor` adds to them."""

import shutil

import numpy as np
import pytest
import soundfile

from fed_a2v.data.check import check_data, unusable
from fed_a2v.data.errors import DataError, PartitionError
from fed_a2v.data.index import index_clips
from fed_a2v.federation.server.step_factory import check_buildable
from tests.refusals import refused

CLASSES = ("bell", "dog", "drum")


@pytest.fixture
def recordings(tmp_path, write_sound):
    """A folder of three classes, ten clips each."""
    for name in CLASSES:
        for number in range(10):
            write_sound(tmp_path / "sounds" / name / f"{number}.wav")
    return tmp_path / "sounds"


@pytest.fixture
def settings(recordings, make_settings):
    """Settings for these recordings, with further overrides."""

    def make(*overrides):
        root = f"dataset.root={recordings}"
        return make_settings("dataset=folder", root, "dataset.clip_seconds=0.1", "partition.sites=3", *overrides)

    return make


def test_good_data_gives_its_clips_and_no_remark(settings):
    index, remarks = check_data(settings())
    assert index.classes == CLASSES
    assert (index.splits.count("train"), index.splits.count("test")) == (24, 6)
    assert remarks == []
    assert list(unusable(settings().dataset, 0, index, 16_000)) == []


@pytest.mark.parametrize(
    ("overrides", "kind", "named"),
    [
        (["dataset.classes=[dog,doggo]"], DataError, ("dataset.classes", "'doggo'", "dog")),
        (["partition.sites=9"], PartitionError, ("partition.sites=9",)),
        (["partition=iid", "partition.min_clips=9"], PartitionError, ("partition.sites", "9")),
        (["dataset.test_fold=7"], DataError, ("dataset.test_fold", "7")),
        (["partition=iid", "partition.sites=20", "share.min_clips=4"], DataError, ("share.min_clips=4",)),
        (
            ["partition=iid", "partition.sites=8", "adapters=bilinear"],
            DataError,
            ("adapters.closed_form=true", "share.min_clips=3"),
        ),
    ],
)
def test_a_run_refuses_it_before_a_sound_is_decoded(settings, recordings, overrides, kind, named):
    for path in recordings.rglob("*.wav"):
        path.write_bytes(b"no sound")
    for check in (check_data, check_buildable):
        with refused(kind, *named):
            check(settings(*overrides))


def test_what_a_run_will_warn_of_is_given_and_not_logged(settings, recordings, caplog):
    (recordings / "empty").mkdir()
    (recordings / "dog" / "video.mp4").touch()
    for number in range(2, 10):
        (recordings / "bell" / f"{number}.wav").unlink()
    few = settings("partition=iid", "partition.sites=2", "dataset.train_folds=[1,2,4]")
    for _ in range(2):  # the list of clips is kept in memory: what it warned of is not lost
        _, remarks = check_data(few)
        reported = "\n".join(remarks)
        for name in ("empty", "dog/video.mp4", "fold 3", "test", "share.min_clips=3"):
            assert name in reported
        assert len(remarks) == 5
    assert not caplog.records


def test_without_a_clip_for_the_test_there_is_no_run(settings, recordings):
    for name in CLASSES:
        for number in range(1, 10):
            (recordings / name / f"{number}.wav").unlink()  # one clip a class is in the middle fold
    with refused(DataError, "test", "[3]", "more clips"):
        check_data(settings())
    assert len(index_clips(settings().dataset)) == 3  # to be embedded, they are good
    for name in CLASSES:
        shutil.copy(recordings / name / "0.wav", recordings / name / "1.wav")
        shutil.copy(recordings / name / "0.wav", recordings / name / "2.wav")
    with refused(DataError, "test", "[1, 3, 5]", "dataset.test_folds"):
        check_data(settings("dataset.train_folds=[1]", "dataset.test_folds=[2]"))


def test_without_a_clip_for_validation_nothing_can_be_chosen_by_it(settings, recordings):
    for name in CLASSES:
        for number in range(3, 10):
            (recordings / name / f"{number}.wav").unlink()
    with refused(DataError, "validation", "[1, 3, 5]", "dataset.validation_folds"):
        check_data(settings("dataset.validation_folds=[4]"))


def test_missing_empty_and_broken_files_are_found(make_settings, esc50_folder):
    rows = [(f"{name}{number}.wav", number % 5 + 1, name) for name in ("dog", "rain") for number in range(10)]
    root = esc50_folder(rows)
    given = make_settings("dataset=esc50", f"dataset.root={root}", "dataset.clip_seconds=0.1", "partition.sites=2")
    index, _ = check_data(given)
    (root / "audio" / "dog3.wav").unlink()
    (root / "audio" / "dog4.wav").write_bytes(b"")
    (root / "audio" / "rain0.wav").write_bytes(b"no sound")
    soundfile.write(root / "audio" / "rain9.wav", np.full(1_600, 1e20), 16_000, subtype="FLOAT")
    missing, *bad = unusable(given.dataset, 0, index, 16_000)
    assert missing.startswith("2 of 20")
    assert [str(root / "audio" / name) in missing for name in ("dog3.wav", "dog4.wav")] == [True, True]
    assert len(bad) == 2
    assert str(root / "audio" / "rain0.wav") in bad[0]
    assert str(root / "audio" / "rain9.wav") in bad[1]


def test_embeddings_that_are_no_numbers_are_found(make_settings, tmp_path):
    values = np.ones((20, 4))
    values[13, 2] = np.nan
    np.savez(tmp_path / "x.npz", embeddings=values, category=np.array(["a", "b"] * 10), fold=np.arange(20) % 5 + 1)
    given = make_settings("dataset=embeddings", f"dataset.path={tmp_path / 'x.npz'}", "partition.sites=2")
    index, _ = check_data(given)
    (reason,) = unusable(given.dataset, 0, index, 16_000)
    assert "row-00013" in reason


def test_every_class_of_every_data_set_of_a_mix_is_listened_to(make_settings, recordings, esc50_folder):
    root = esc50_folder([(f"{name}{n}.wav", n % 5 + 1, name) for name in ("dog", "rain") for n in range(5)])
    sets = f"[{{name: folder, root: {recordings}}}, {{name: esc50, root: {root}}}]"
    given = make_settings("dataset=mixed", f"dataset.sets={sets}", "partition.sites=2")
    index, _ = check_data(given)
    for path in (*recordings.glob("*/*.wav"), *root.glob("audio/*.wav")):
        path.write_bytes(b"no sound")
    reasons = list(unusable(given.dataset, 0, index, 16_000, each=1))
    assert len(reasons) == 5
    assert {reason.split(" is ")[0].rpartition("/")[0] for reason in reasons} == {
        *(str(recordings / name) for name in CLASSES),
        str(root / "audio"),
    }
