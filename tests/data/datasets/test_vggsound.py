import csv
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.core.names import clean_name
from fed_a2v.data.datasets.vggsound import VggSoundFolder
from fed_a2v.data.errors import DataError
from tests.refusals import refused

ROWS = [
    ("---g-f_I2yQ", 1, "people marching", "test"),
    ("--0PQM4-hqg", 30, "waterfall burbling", "train"),
    ("--56QUhyDQM", 185, "playing violin, fiddle", "train"),
]


@pytest.fixture
def vggsound(tmp_path, write_sound):
    def write(rows, files=None):
        with (tmp_path / "vggsound.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        for video, start, *_ in rows if files is None else files:
            write_sound(tmp_path / "clips" / f"{video}_{int(start):06d}.wav")
        return tmp_path

    return write


def test_each_row_is_a_clip_named_by_video_and_start_second(vggsound):
    records = VggSoundFolder(vggsound(ROWS)).records()
    assert [record.key for record in records] == [
        "clips/---g-f_I2yQ_000001.wav",
        "clips/--0PQM4-hqg_000030.wav",
        "clips/--56QUhyDQM_000185.wav",
    ]
    assert [record.category for record in records] == [
        "people marching",
        "waterfall burbling",
        "playing violin, fiddle",
    ]
    assert [record.source for record in records] == [
        "youtube:---g-f_I2yQ",
        "youtube:--0PQM4-hqg",
        "youtube:--56QUhyDQM",
    ]
    folder = VggSoundFolder(vggsound(ROWS))
    assert folder.waveform(records[0].key, 16_000, 0.1).shape == (1600,)


def test_the_official_test_is_fold_five_and_training_the_four_before(vggsound):
    rows = [(f"video{i}", 0, "rain" if i % 2 else "dog", "test" if i < 4 else "train") for i in range(44)]
    records = VggSoundFolder(vggsound(rows)).records()
    assert [record.fold for record in records[:4]] == [5] * 4
    for name in ("dog", "rain"):
        folds = sorted(record.fold for record in records[4:] if record.category == name)
        assert folds == [fold for fold in (1, 2, 3, 4) for _ in range(5)]


def test_a_label_with_commas_needs_no_quotes(tmp_path, write_sound):
    (tmp_path / "vggsound.csv").write_text("abc,3,playing violin, fiddle,train\n")
    write_sound(tmp_path / "abc_000003.wav")
    assert VggSoundFolder(tmp_path).records()[0].category == "playing violin, fiddle"


def test_missing_clips_are_left_out_with_one_warning(vggsound, caplog):
    rows = [(f"video{i}", 0, "dog", "train") for i in range(10)]
    assert len(VggSoundFolder(vggsound(rows, rows[:3])).records()) == 3
    (message,) = caplog.messages
    assert "7 of 10" in message
    assert "video3_000000.wav" in message


def test_clips_lie_in_linked_folders_and_other_files_do_not_matter(vggsound, tmp_path, tmp_path_factory):
    root, elsewhere = vggsound(ROWS[:2]), tmp_path_factory.mktemp("disk") / "clips"
    shutil.move(root / "clips", elsewhere)
    (root / "audio").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(root)
    (elsewhere / "._--0PQM4-hqg_000030.wav").write_text("a Mac was here")
    (elsewhere / "notes.txt").touch()
    assert [record.key for record in VggSoundFolder(root).records()] == [
        "audio/---g-f_I2yQ_000001.wav",
        "audio/--0PQM4-hqg_000030.wav",
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", []),
        ("\n\n", []),
        ("a,1,dog,train", ["a_000001.wav", "dataset.root"]),
        ("YTID,start,label,split", ["line 1", "'start'"]),
        ("a,1,dog,train\nb,1,dog,validation", ["line 2", "'validation'", "train", "test"]),
        ("a,1,train", ["line 1", "3 columns", "train", "test"]),
        ("a,1,_,train", ["line 1", "label", "'_'"]),
        ("../a,1,dog,train", ["line 1", "'../a'"]),
        ("a,-1,dog,train", ["line 1", "'-1'"]),
    ],
)
def test_a_table_that_does_not_fit_is_an_error_that_says_why(tmp_path, text, named):
    (tmp_path / "vggsound.csv").write_text(text)
    with refused(DataError, tmp_path / "vggsound.csv", *named):
        VggSoundFolder(tmp_path).records()


def test_a_folder_without_a_table_is_named(tmp_path):
    with refused(DataError, tmp_path / "vggsound.csv", "dataset.root"):
        VggSoundFolder(tmp_path).records()


@given(st.one_of(st.binary(max_size=200), st.text("ab01,trainest\n\r\"'\0 ", max_size=200).map(str.encode)))
def test_any_table_gives_records_or_our_error(tmp_path, write_sound, content):
    write_sound(tmp_path / "a_000001.wav")
    (tmp_path / "vggsound.csv").write_bytes(content + b"\na,1,dog,train\n")
    try:
        records = VggSoundFolder(tmp_path).records()
    except DataError as error:
        assert "vggsound.csv" in str(error)
    else:
        assert all(record.key == "a_000001.wav" and 1 <= record.fold <= 5 for record in records)


words = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1, max_size=12).filter(
    lambda text: text.strip(" _-\t")
)


@given(st.lists(words, min_size=1, max_size=5))
def test_any_label_that_a_csv_can_hold_comes_back(tmp_path, write_sound, labels):
    with (tmp_path / "vggsound.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows((f"v{i}", 0, label, "train") for i, label in enumerate(labels))
    for i in range(len(labels)):
        write_sound(tmp_path / f"v{i}_000000.wav")
    try:
        found = [record.category for record in VggSoundFolder(tmp_path).records()]
    except DataError as error:
        wordless = next(label for label in labels if not clean_name(label))
        assert repr(wordless.strip()) in str(error)
    else:
        assert found == [label.strip() for label in labels]


def test_videos_instead_of_sounds_are_named(vggsound, caplog):
    root = vggsound(ROWS, files=[])
    (root / "video").mkdir()
    for video, start, *_ in ROWS:
        (root / "video" / f"{video}_{start:06d}.mp4").touch()
    with refused(DataError, ".mp4", "ffmpeg", f"video/{ROWS[0][0]}_000001.mp4"):
        VggSoundFolder(root).records()
    vggsound(ROWS, files=ROWS[:2])
    assert len(VggSoundFolder(root).records()) == 2
    assert f"video/{ROWS[2][0]}_000185.mp4" in caplog.text


def test_clips_in_other_containers_and_hidden_ones(vggsound):
    root = vggsound(ROWS, files=ROWS[:1])
    (root / "clips" / f"{ROWS[1][0]}_000030.opus").touch()
    (root / ".trash").mkdir()
    (root / ".trash" / f"{ROWS[2][0]}_000185.wav").touch()
    assert [record.key for record in VggSoundFolder(root).records()] == [
        f"clips/{ROWS[0][0]}_000001.wav",
        f"clips/{ROWS[1][0]}_000030.opus",
    ]
