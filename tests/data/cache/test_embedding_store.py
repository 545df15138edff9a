import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.data.cache.embedding_store import EmbeddingStore, clip_id


@pytest.fixture
def store(tmp_path):
    return EmbeddingStore(tmp_path / "store", "float32")


def rows(*numbers, shape=(2, 3)):
    return np.stack([np.full(shape, number, np.float32) for number in numbers])


def values(store, names):
    found, positions = store.read(list(names))
    return {names[position]: float(row[0, 0]) for position, row in zip(positions, found, strict=True)}


def test_what_was_written_is_read_by_content(store):
    store.write(["a", "b"], rows(1, 2))
    store.write(["c"], rows(3))
    assert values(store, "cab") == {"c": 3, "a": 1, "b": 2}
    assert values(store, "xbx") == {"b": 2}
    assert store.known() == {clip_id(name) for name in "abc"}
    assert store.read([])[0].shape == (0, 0, 0)


def test_neighbours_of_one_segment_are_the_file_itself_and_writing_to_them_does_not_reach_it(store):
    store.write(list("abcd"), rows(1, 2, 3, 4))
    found, _ = store.read(list("bcd"))
    assert isinstance(found, np.memmap)
    found[:] = 9
    assert values(store, "bcd") == {"b": 2, "c": 3, "d": 4}


def test_segments_are_merged_in_the_order_asked_for(store):
    for number, name in enumerate("dacb"):
        store.write([name], rows(number))
    store.merge(list("abcdx"))
    assert len(list(store.folder.glob("*.clips.npy"))) == 1
    found, _ = store.read(list("abcd"))
    assert isinstance(found, np.memmap)
    assert found[:, 0, 0].tolist() == [1, 3, 2, 0]


def test_a_segment_with_other_clips_too_is_left_alone(store):
    store.write(["a", "b"], rows(1, 2))
    store.write(["c"], rows(3))
    store.merge(["a", "c"])
    assert values(store, "abc") == {"a": 1, "b": 2, "c": 3}
    assert len(list(store.folder.glob("*.clips.npy"))) == 2


def cut(content):
    return content[: len(content) // 2]


def flip(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [cut, flip, lambda content: b"", lambda content: b"no such format"])
@pytest.mark.parametrize("suffix", [".npy", ".clips.npy"])
def test_what_is_damaged_counts_as_never_written_and_is_written_anew(store, caplog, damage, suffix):
    store.write(["a", "b"], rows(1, 2))
    (file,) = (f for f in store.folder.glob(f"*{suffix}") if f.name.count(".") == suffix.count("."))
    file.write_bytes(damage(file.read_bytes()))
    left = values(store, "ab")
    assert left in ({}, {"a": 1})
    assert str(store.folder) in caplog.text
    assert store.known() == {clip_id(name) for name in left}
    again = EmbeddingStore(store.folder, "float32")
    again.clean()
    again.write(["a", "b"], rows(5, 6))
    assert values(again, "ab").keys() == {"a", "b"}
    assert values(again, "b") == {"b": 6}


def test_rows_without_their_table_are_not_there_and_are_cleaned_away(store):
    store.write(["a"], rows(1))
    for file in store.folder.glob("*.clips.npy"):
        file.unlink()
    (store.folder / ".torn.npy.123.tmp").write_text("half")
    assert values(store, "a") == {}
    store.clean()
    assert list(store.folder.iterdir()) == []


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5, unique=True), max_size=6), st.data())
def test_any_history_reads_back_what_was_written(tmp_path_factory, segments, data):
    store = EmbeddingStore(tmp_path_factory.mktemp("store"), "float32")
    number = {name: float(place) for place, name in enumerate("abcdefgh")}
    for names in segments:
        store.write(names, rows(*(number[name] for name in names)))
        store.merge(data.draw(st.lists(st.sampled_from("abcdefgh"), unique=True)))
    written = {name for names in segments for name in names}
    asked = data.draw(st.permutations("abcdefgh"))
    assert values(store, asked) == {name: number[name] for name in written}
