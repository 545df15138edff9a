import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.data.datasets.vegas import VegasFolder
from fed_a2v.data.errors import DataError
from fed_a2v.data.selection import build_index, classes_of
from tests.refusals import refused


@pytest.fixture
def vegas(tmp_path, write_sound):
    """A folder in VEGAS's layout; each class has the YouTube ids of its videos, numbered from `first`."""

    def write(first=1, header=True, **classes):
        for name, videos in classes.items():
            (tmp_path / name / "audios").mkdir(parents=True)
            with (tmp_path / name / "video_info.csv").open("w", newline="") as file:
                table = csv.writer(file)
                if header:
                    table.writerow(["YTID", "start_second", "end_second"])
                table.writerows((video, 10, 20) for video in videos)
            for number in range(len(videos)):
                write_sound(tmp_path / name / "audios" / f"video_{number + first:05d}.wav")
        return tmp_path

    return write


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("header", [True, False])
def test_the_clips_are_numbered_as_the_rows_of_their_class(vegas, first, header):
    root = vegas(first, header, dog=["a", "b"], water_flowing=["c"])
    (root / "dog" / "img").mkdir()  # images may be there, or not
    records = VegasFolder(root).records()
    assert [(record.key, record.category, record.source) for record in records] == [
        (f"dog/audios/video_{first:05d}.wav", "dog", "youtube:a"),
        (f"dog/audios/video_{first + 1:05d}.wav", "dog", "youtube:b"),
        (f"water_flowing/audios/video_{first:05d}.wav", "water_flowing", "youtube:c"),
    ]
    assert VegasFolder(root).waveform(records[0].key, 16_000, 0.1).shape == (1600,)


def test_the_split_is_stratified_seeded_and_never_divides_a_video(vegas, make_settings):
    root = vegas(dog=[f"d{i // 2}" for i in range(40)], drum=[f"m{i}" for i in range(20)] + ["d0"] * 2)
    folder = VegasFolder(root)
    records = folder.records()
    assert folder.records() == records != VegasFolder(root, split_seed=1).records()
    fold_of = {}
    for record in records:
        assert fold_of.setdefault(record.source, record.fold) == record.fold
    for fold in range(1, 6):
        assert sum(record.category == "dog" and record.fold == fold for record in records) in (6, 8, 10)
    dataset = make_settings("dataset=vegas", f"dataset.root={root}").dataset
    index = build_index(records, dataset, classes_of(["dog", "drum"], dataset))
    assert set(index.splits) == {"train", "test"}
    by_split = {split: set() for split in ("train", "test")}
    for record, split in zip(index.records, index.splits, strict=True):
        by_split[split].add(record.source)
    assert not by_split["train"] & by_split["test"]


def test_missing_clips_are_counted_in_one_warning(vegas, caplog):
    root = vegas(dog=["a", "b", "c"], drum=["d", "e"])
    (root / "dog" / "audios" / "video_00002.wav").unlink()
    (root / "drum" / "audios" / "video_00001.wav").unlink()
    records = VegasFolder(root).records()
    assert [record.source for record in records] == ["youtube:a", "youtube:c", "youtube:e"]
    (message,) = caplog.messages
    assert "2 of 5" in message
    assert "dog/audios/video_00002" in message


@pytest.mark.parametrize("text", [None, "", "YTID,start_second,end_second\n"])
def test_without_rows_each_clip_stands_alone_and_a_warning_says_so(vegas, caplog, text):
    root = vegas(dog=["a", "a"], drum=["b"])
    if text is None:
        (root / "dog" / "video_info.csv").unlink()
    else:
        (root / "dog" / "video_info.csv").write_text(text)
    assert len({record.source for record in VegasFolder(root).records()}) == 3
    (message,) = caplog.messages
    assert "video_info.csv" in message
    assert "dog" in message
    assert "drum" not in message


def test_a_class_without_a_clip_is_named(vegas, caplog):
    root = vegas(dog=["a"], drum=[])
    assert [record.category for record in VegasFolder(root).records()] == ["dog"]
    assert str(root / "drum" / "audios") in caplog.text


def test_a_folder_that_is_not_vegas_is_an_error(tmp_path):
    with refused(DataError, tmp_path, "CLASS/audios/", "dataset.root"):
        VegasFolder(tmp_path).records()
    with refused(DataError, tmp_path / "nowhere", "dataset.root"):
        VegasFolder(tmp_path / "nowhere").records()


@given(st.one_of(st.binary(max_size=120), st.text("YTID,ab01\n\r\"'\0 ", max_size=120).map(str.encode)))
def test_any_table_gives_records_or_our_error(tmp_path, write_sound, content):
    for number in (1, 2):
        write_sound(tmp_path / "dog" / "audios" / f"video_{number:05d}.wav")
    (tmp_path / "dog" / "video_info.csv").write_bytes(content)
    try:
        records = VegasFolder(tmp_path).records()
    except DataError as error:
        assert "video_info.csv" in str(error)
    else:
        assert len(records) == 2
        assert all(record.source for record in records)


def test_videos_in_the_place_of_sounds_are_told(vegas, caplog):
    root = vegas(dog=["a", "b"])
    (root / "dog" / "audios" / "video_00002.wav").rename(root / "dog" / "audios" / "video_00002.mp4")
    assert len(VegasFolder(root).records()) == 1
    assert "dog/audios/video_00002.mp4" in caplog.text
    (root / "dog" / "audios" / "video_00001.wav").unlink()
    with refused(DataError, "dog/audios/video_00002.mp4", "ffmpeg"):
        VegasFolder(root).records()


def test_a_clip_without_a_row_in_two_formats_is_one_recording(vegas):
    root = vegas(dog=[], drum=["x"])
    for suffix in ("mp3", "wav"):
        (root / "dog" / "audios" / f"bark.{suffix}").touch()
    records = [record for record in VegasFolder(root).records() if record.category == "dog"]
    assert len(records) == 2
    assert len({(record.source, record.fold) for record in records}) == 1
