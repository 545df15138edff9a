import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.storage.npz import ArrayFileError, as_floats, as_names, read_arrays
from tests.refusals import refused


def valid_bytes():
    buffer = io.BytesIO()
    np.savez_compressed(buffer, fold=np.arange(4), category=np.array(["a", "b", "c", "d"]))
    return buffer.getvalue()


def test_only_the_named_arrays_are_read(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(3), b=np.array([{}], dtype=object))  # b could only be unpickled
    assert list(read_arrays(path, ["a"], ["c"])) == ["a"]


def test_objects_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{}], dtype=object))
    with refused(ArrayFileError, tmp_path / "x.npz"):
        read_arrays(tmp_path / "x.npz", ["a"])


def test_a_missing_file_and_a_missing_array_are_named(tmp_path):
    with refused(ArrayFileError, tmp_path / "x.npz"):
        read_arrays(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", other=np.arange(3))
    with refused(ArrayFileError, tmp_path / "x.npz", "fold", "other"):
        read_arrays(tmp_path / "x.npz", ["fold"])


def test_a_single_array_without_names_is_refused(tmp_path):
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.arange(3))
    with refused(ArrayFileError, tmp_path / "x.npz", "numpy.savez"):
        read_arrays(tmp_path / "x.npz", ["a"])


@given(st.binary(max_size=400))
def test_any_bytes_give_arrays_or_our_error(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(ArrayFileError):
        read_arrays(path, ["fold"])


@given(st.data())
def test_an_altered_file_gives_arrays_or_our_error(tmp_path, data):
    content = bytearray(valid_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.npz"
    path.write_bytes(bytes(content)[: data.draw(st.integers(0, len(content)))])
    try:
        read_arrays(path, ["fold"], ["category"])
    except ArrayFileError as error:
        assert "x.npz" in str(error)


def test_a_damaged_compressed_array_is_our_error(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, fold=np.zeros(1_000))
    content = bytearray(path.read_bytes())
    start = content.index(b"fold.npy") + len(b"fold.npy") + 20  # behind the entry's header
    content[start : start + 12] = b"\xff" * 12
    path.write_bytes(bytes(content))
    with refused(ArrayFileError, path):
        read_arrays(path, ["fold"])


def test_types_and_shapes_are_checked():
    with refused(ArrayFileError, "category", "int64", "(3,)"):
        as_names(np.arange(3), "category")
    with refused(ArrayFileError, "category", "row 1"):
        as_names(np.array(["a", " "]), "category")
    with refused(ArrayFileError, "vectors", "float64", "(3,)", 2):
        as_floats(np.zeros(3), "vectors", (2, 3))
    with refused(ArrayFileError, "vectors", "complex128"):
        as_floats(np.zeros((3, 2), complex), "vectors", (2, 3))
    assert as_floats(np.ones((2, 3), np.float16), "vectors", (2, 3)).dtype == np.float32
