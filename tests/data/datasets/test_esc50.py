import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.data.clips import Record
from fed_a2v.data.datasets.esc50 import Esc50Folder
from fed_a2v.data.errors import BadClipError, DataError
from tests.refusals import refused


def test_the_table_gives_the_clips_in_its_order(esc50_folder):
    root = esc50_folder([("b.wav", 2, "dog"), ("a.flac", 1, "rain")])
    assert Esc50Folder(root).records() == [Record("b.wav", "dog", 2), Record("a.flac", "rain", 1)]


def test_the_files_name_in_the_table_is_the_truth(esc50_folder):
    root = esc50_folder([("a.wav", 1, "dog")])
    (root / "audio" / "a.wav").rename(root / "audio" / "a.flac")
    folder = Esc50Folder(root)
    for read in (lambda: folder.waveform("a.wav", 16_000, 1.0), lambda: folder.content("a.wav")):
        with refused(BadClipError, root / "audio" / "a.wav"):
            read()


def test_the_content_follows_the_bytes_and_not_the_name(esc50_folder):
    root = esc50_folder([("a.wav", 1, "dog"), ("b.wav", 1, "dog")])
    folder = Esc50Folder(root)
    before = folder.content("a.wav")
    assert before != folder.content("b.wav")
    (root / "audio" / "b.wav").write_bytes((root / "audio" / "a.wav").read_bytes())
    assert folder.content("b.wav") == before


def test_a_folder_without_a_table_is_named_with_what_is_needed(tmp_path):
    with refused(DataError, tmp_path / "meta" / "esc50.csv", "dataset.root"):
        Esc50Folder(tmp_path).records()


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (("a.wav", "x", "dog"), ["fold", "'x'"]),
        (("a.wav", "0", "dog"), ["fold", "'0'"]),
        (("a.wav", "-1", "dog"), ["fold", "'-1'"]),
        (("a.wav", "1.5", "dog"), ["fold", "'1.5'"]),
        (("a.wav", "1", ""), ["category"]),
        (("a.wav", "1", "_"), ["category", "'_'"]),
        (("", "1", "dog"), ["filename"]),
        (("../a.wav", "1", "dog"), ["filename", "'../a.wav'"]),
        (("a.wav",), ["fold"]),
    ],
)
def test_a_malformed_row_is_named(tmp_path, row, named):
    table = tmp_path / "meta" / "esc50.csv"
    table.parent.mkdir()
    table.write_text(f"filename,fold,category\n{','.join(row)}\n")
    with refused(DataError, table, "line 2", *named):
        Esc50Folder(tmp_path).records()


def test_missing_columns_and_an_empty_table_are_errors(esc50_folder):
    root = esc50_folder([("a.wav", 1, "dog")], columns=("filename", "split", "label"))
    with refused(DataError, root / "meta" / "esc50.csv", "fold", "category", "filename", "split", "label"):
        Esc50Folder(root).records()
    empty = esc50_folder([], name="empty")
    with refused(DataError, empty / "meta" / "esc50.csv"):
        Esc50Folder(empty).records()


@given(st.one_of(st.binary(max_size=200), st.text("filename,ldcatgory12.\n\r\"'\0 ", max_size=200).map(str.encode)))
def test_any_table_gives_records_or_our_error(tmp_path, content):
    (tmp_path / "meta").mkdir(exist_ok=True)
    (tmp_path / "meta" / "esc50.csv").write_bytes(b"filename,fold,category\n" + content)
    try:
        records = Esc50Folder(tmp_path).records()
    except DataError as error:
        assert "esc50.csv" in str(error)
    else:
        assert all(record.key and record.category and record.fold >= 1 for record in records)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "clips", "rate"),
    [("esc50", 1600, 16_000), ("esc50_original_wav", 20, 44_100), ("esc10_original_ogg", 10, 44_100)],
)
def test_real_folders_are_read(real_data, name, clips, rate):
    folder = Esc50Folder(real_data / name)
    records = folder.records()
    assert len(records) == len({record.key for record in records}) == clips
    assert soundfile.info(folder.root / "audio" / records[0].key).samplerate == rate
    for record in records[:: clips // 10]:
        assert folder.waveform(record.key, 16_000, 5.0).shape == (80_000,)


@pytest.mark.parametrize("there", ["a.mp4", "a.flac"])
def test_a_file_that_is_there_in_another_format_is_named(esc50_folder, there):
    root = esc50_folder([("a.wav", 1, "dog")])
    (root / "audio" / "a.wav").rename(root / "audio" / there)
    with refused(BadClipError, root / "audio" / "a.wav", f"there is {there}"):
        Esc50Folder(root).content("a.wav")
