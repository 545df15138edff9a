import shutil
import unicodedata

import pytest
import soundfile

from fed_a2v.data.datasets.folder import ClassFolders
from fed_a2v.data.errors import BadClipError, DataError
from fed_a2v.data.index import list_clips
from fed_a2v.data.site import class_names, load_clips
from tests.refusals import refused


def load(settings, tmp_path):
    return load_clips(settings.dataset, settings.encoder, settings.seed, tmp_path / "cache")


@pytest.fixture
def recordings(tmp_path, write_sound):
    def write(*names, **options):
        for name in names:
            write_sound(tmp_path / "sounds" / name, **options)
        return tmp_path / "sounds"

    return write


def test_a_subfolder_is_a_class_and_a_folder_in_it_a_recording(recordings):
    root = recordings("street, night/a.wav", "street, night/b.flac", "bell/monday/1.wav", "bell/monday/2.wav", "x.wav")
    (root / "bell" / "notes.txt").touch()
    assert [(record.key, record.category, record.source) for record in ClassFolders(root).records()] == [
        ("bell/monday/1.wav", "bell", "bell/monday"),
        ("bell/monday/2.wav", "bell", "bell/monday"),
        ("street, night/a.wav", "street, night", "street, night/a.wav"),
        ("street, night/b.flac", "street, night", "street, night/b.flac"),
    ]


def test_clips_of_one_recording_are_in_one_fold_and_every_class_is_in_training_and_test(recordings):
    root = recordings(
        *(f"bell/{day}/{i}.wav" for day in "abcde" for i in range(2)), *(f"drum/{i}.wav" for i in range(5))
    )
    records = ClassFolders(root).records()
    assert sorted(record.fold for record in records if record.category == "bell") == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert sorted(record.fold for record in records if record.category == "drum") == [1, 2, 3, 4, 5]
    assert len({(record.source, record.fold) for record in records}) == 10


@pytest.mark.parametrize("layout", ["{part}/{name}", "{name}/{part}"])
def test_a_split_that_is_there_already_is_kept(recordings, layout):
    root = recordings(
        *(
            f"{layout.format(part=part, name=name)}/{i}.wav"
            for part, clips in (("Train", 8), ("valid", 2), ("test", 3))
            for name in ("bell", "drum")
            for i in range(clips)
        )
    )
    records = ClassFolders(root).records()
    assert {record.category for record in records} == {"bell", "drum"}
    folds = {part: sorted(r.fold for r in records if f"{part}/" in r.key) for part in ("Train", "valid", "test")}
    assert folds["valid"] == [4] * 4
    assert folds["test"] == [5] * 6
    assert set(folds["Train"]) == {1, 2, 3}


def test_a_split_without_validation_trains_on_the_first_four_folds(recordings):
    names = [f"{part}/{name}/{i}.wav" for part in ("train", "test") for name in ("a", "b") for i in range(8)]
    records = ClassFolders(recordings(*names)).records()
    assert {record.fold for record in records if record.key.startswith("train")} == {1, 2, 3, 4}
    assert {record.fold for record in records if record.key.startswith("test")} == {5}


def test_clips_of_one_recording_stay_together_in_a_split_too(recordings):
    days = [f"train/bell/{day}/{i}.wav" for day in "abcdefgh" for i in range(3)]
    records = ClassFolders(recordings(*days, "test/bell/z.wav")).records()
    assert len({(record.source, record.fold) for record in records}) == 9


@pytest.mark.parametrize("names", [("train", "test"), ("fold1", "fold2", "fold10")])
def test_a_split_without_classes_is_named(recordings, names):
    root = recordings(*(f"{name}/{i}.wav" for name in names for i in range(3)))
    with refused(DataError, root, *names, "meta/esc50.csv"):
        ClassFolders(root).records()


@pytest.mark.parametrize("names", [("train", "dog"), ("train",), ("test tone", "train horn")])
def test_classes_may_be_called_like_a_split(recordings, names):
    root = recordings(*(f"{name}/{i}.wav" for name in names for i in range(3)))
    assert {record.category for record in ClassFolders(root).records()} == set(names)


def test_one_sound_in_two_formats_is_in_one_fold(recordings):
    root = recordings(*(f"bell/{i}.{suffix}" for i in range(20) for suffix in ("wav", "mp3", "ogg")))
    records = ClassFolders(root).records()
    assert len({(record.key.rpartition(".")[0], record.fold) for record in records}) == 20


def test_a_class_is_the_same_however_its_accents_are_written(recordings):
    for form in ("NFC", "NFD"):
        recordings(*(unicodedata.normalize(form, f"{form}/café/é{i}.wav") for i in range(10)))
    composed, apart = (ClassFolders(recordings() / form).records() for form in ("NFC", "NFD"))
    assert composed[0].key != apart[0].key
    assert {record.category for record in (*composed, *apart)} == {unicodedata.normalize("NFC", "café")}
    assert [record.fold for record in composed] == [record.fold for record in apart]


def test_videos_among_the_sounds_are_told_and_alone_are_an_error(recordings, caplog):
    root = recordings("bell/a.wav")
    (root / "bell" / "b.mp4").touch()
    assert len(ClassFolders(root).records()) == 1
    assert "bell/b.mp4" in caplog.text
    (root / "bell" / "a.wav").unlink()
    with refused(DataError, root, ".mp4", "bell/b.mp4", "ffmpeg"):
        ClassFolders(root).records()


def test_moving_the_folder_keeps_the_folds(recordings, tmp_path):
    root = recordings(*(f"bell/{i}.wav" for i in range(9)))
    before = ClassFolders(root).records()
    assert ClassFolders(root.rename(tmp_path / "moved")).records() == before


def test_empty_classes_are_named_and_an_empty_folder_is_an_error(recordings, caplog):
    root = recordings("bell/a.wav")
    (root / "drum").mkdir()
    assert {record.category for record in ClassFolders(root).records()} == {"bell"}
    assert "drum" in caplog.text
    (root / "bell" / "a.wav").unlink()
    with refused(DataError, root, ".wav", ".flac", ".ogg", "dataset.root"):
        ClassFolders(root).records()


def test_a_new_clip_is_noticed_within_a_process(recordings, make_settings):
    root = recordings(*(f"bell/monday/{i}.wav" for i in range(3)))
    settings = make_settings("dataset=folder", f"dataset.root={root}")
    assert class_names(settings.dataset) == ("bell",)
    recordings("drum/a.wav")
    assert class_names(settings.dataset) == ("bell", "drum")
    recordings("drum/tuesday/morning/a.wav")
    assert len(list_clips(settings.dataset)) == 5
    recordings("drum/tuesday/morning/b.wav")
    assert len(list_clips(settings.dataset)) == 6


def test_rates_and_channels_of_all_kinds_are_read(recordings, make_settings, tmp_path):
    root = recordings(*(f"bell/{i}.wav" for i in range(3)))
    recordings(*(f"drum/{i}.wav" for i in range(3)), rate=44_100, channels=2)
    assert soundfile.info(root / "drum" / "0.wav").channels == 2
    settings = make_settings("dataset=folder", f"dataset.root={root}", "dataset.clip_seconds=0.3")
    clips = load(settings, tmp_path)
    assert clips.embeddings.shape == (6, 1, 512)


def test_a_file_without_content_is_named_with_the_remedy_or_skipped(recordings, make_settings, tmp_path):
    root = recordings(*(f"{name}/{i}.wav" for name in ("bell", "drum") for i in range(5)))
    (root / "bell" / "0.wav").write_bytes(b"")
    soundfile.write(root / "drum" / "1.wav", [], 16_000)
    settings = make_settings("dataset=folder", f"dataset.root={root}", "dataset.clip_seconds=0.3")
    with refused(BadClipError, root / "bell" / "0.wav", "dataset.skip_bad=true"):
        load(settings, tmp_path)
    skipping = make_settings(
        "dataset=folder", f"dataset.root={root}", "dataset.clip_seconds=0.3", "dataset.skip_bad=true"
    )
    clips = load(skipping, tmp_path)
    assert clips.skipped == 2
    assert len(clips) == 8


def test_an_unknown_class_is_named_with_the_nearest(recordings, make_settings, tmp_path):
    root = recordings(*(f"{name}/{i}.wav" for name in ("bell", "drum") for i in range(5)))
    settings = make_settings("dataset=folder", f"dataset.root={root}", "dataset.classes=[bel]")
    with refused(DataError, "dataset.classes", "'bel'", "bell") as caught:
        load(settings, tmp_path)
    assert "drum" not in str(caught.value)


def test_a_copy_of_a_recording_under_another_name_is_kept_for_the_test(recordings, make_settings, tmp_path, caplog):
    root = recordings(*(f"{name}/{i}.wav" for name in ("bell", "drum") for i in range(5)))
    fold = {record.key: record.fold for record in ClassFolders(root).records()}
    tested, trained = (
        next(key for key in fold if key.startswith("bell") == of and fold[key] == number)
        for of, number in ((True, 5), (False, 2))
    )
    shutil.copy(root / tested, root / trained)
    settings = make_settings("dataset=folder", f"dataset.root={root}", "dataset.clip_seconds=0.3")
    clips = load(settings, tmp_path)
    assert set(clips.keys) == set(fold) - {trained}
    assert f"{trained} ({tested})" in caplog.text
