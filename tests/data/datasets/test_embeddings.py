import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fed_a2v.data.clips import Record
from fed_a2v.data.datasets.embeddings import EmbeddingsFile
from fed_a2v.data.errors import BadClipError, DataError
from tests.refusals import refused

ALL = np.arange(3)


@pytest.fixture
def save(tmp_path):
    def write(**arrays):
        good = {"embeddings": np.ones((3, 4)), "target": np.array([0, 7, 120]), "fold": np.array([1, 2, 4])}
        path = tmp_path / "given.npz"
        np.savez(path, **{name: array for name, array in (good | arrays).items() if array is not None})
        return path

    return write


def test_numbers_alone_become_names(save):
    assert EmbeddingsFile(save()).records() == [
        Record("row-00000", "class_00", 1),
        Record("row-00001", "class_07", 2),
        Record("row-00002", "class_120", 4),
    ]


def test_category_and_filename_are_used_where_they_are(save):
    path = save(category=np.array(["dog", "cat", "dog"]), filename=np.array(["a", "b", "c"]))
    assert EmbeddingsFile(path).records()[1] == Record("b", "cat", 2)


@pytest.mark.parametrize(("shape", "expected"), [((3, 4), (2, 1, 4)), ((3, 2, 4), (2, 2, 4))])
def test_rows_are_given_as_tokens(save, shape, expected):
    values = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    path = save(embeddings=values)
    embeddings, good = EmbeddingsFile(path).read(EmbeddingsFile(path).records(), np.array([0, 2]), skip_bad=False)
    assert embeddings.shape == expected
    assert embeddings.dtype == np.float32
    assert np.array_equal(embeddings.reshape(2, -1), values[[0, 2]].reshape(2, -1))
    assert good.tolist() == [0, 1]


def test_constant_columns_pass(save):
    path = save(embeddings=np.zeros((3, 4)))
    assert EmbeddingsFile(path).read(EmbeddingsFile(path).records(), ALL, skip_bad=False)[0].shape == (3, 1, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300, -1e25, 2e4])
def test_a_row_that_is_no_number_is_named_or_skipped(save, value, caplog):
    values = np.ones((3, 4))
    values[1, 2] = value
    path = save(embeddings=values)
    with refused(BadClipError, path, "row-00001", "dataset.skip_bad"):
        EmbeddingsFile(path).read(EmbeddingsFile(path).records(), ALL, skip_bad=False)
    embeddings, good = EmbeddingsFile(path).read(EmbeddingsFile(path).records(), ALL, skip_bad=True)
    assert len(embeddings) == 2
    assert good.tolist() == [0, 2]
    assert "row-00001" in caplog.text


def test_a_bad_row_that_nobody_asked_for_does_not_matter(save):
    values = np.ones((3, 4))
    values[1] = np.nan
    path = save(embeddings=values)
    assert len(EmbeddingsFile(path).read(EmbeddingsFile(path).records(), np.array([0, 2]), skip_bad=False)[0]) == 2


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"fold": None}, ["fold"]),
        ({"target": None}, ["category", "target"]),
        ({"fold": np.array([1.0, 2.0, 3.0])}, ["fold", "float64"]),
        ({"fold": np.array([0, 1, 2])}, ["fold"]),
        ({"fold": np.array([1, 2, -4711])}, ["fold", "-4711"]),
        ({"target": np.array([-1, 1, 2])}, ["target"]),
        ({"target": np.array([-4711, 1, 2])}, ["target", "-4711"]),
        ({"target": np.zeros(1007, int), "fold": np.ones(2003, int)}, ["target", "1007", "fold", "2003"]),
        ({"category": np.array([1, 2, 3])}, ["category", "int64"]),
        ({"category": np.array(["a", "_", "c"])}, ["category", "'_'", "row 1"]),
        ({"filename": np.array(["a"] * 1007)}, ["filename", "1007", "fold"]),
        ({"fold": np.zeros(0, int), "target": np.zeros(0, int)}, []),
    ],
)
def test_labels_that_do_not_fit_are_errors_that_say_why(save, arrays, named):
    path = save(**arrays)
    with refused(DataError, path, *named):
        EmbeddingsFile(path).records()


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"embeddings": None}, []),
        ({"embeddings": np.ones(3)}, ["(3,)"]),
        (
            {"embeddings": np.ones((1007, 4)), "fold": np.ones(2003, int), "target": np.zeros(2003, int)},
            ["1007", "fold", "2003"],
        ),
        ({"embeddings": np.array([["a"], ["b"], ["c"]])}, ["<U1"]),
    ],
)
def test_vectors_that_do_not_fit_are_errors_that_say_why(save, arrays, named):
    path = save(**arrays)
    with refused(DataError, path, "embeddings", *named):
        EmbeddingsFile(path).read(EmbeddingsFile(path).records(), ALL, skip_bad=False)


array = hnp.arrays(
    st.one_of(
        hnp.integer_dtypes(),
        hnp.floating_dtypes(),
        hnp.boolean_dtypes(),
        hnp.unicode_string_dtypes(max_len=3),
    ),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)


@given(st.dictionaries(st.sampled_from(["embeddings", "target", "category", "fold", "filename"]), array))
def test_any_arrays_give_clips_or_our_error(tmp_path, arrays):
    path = tmp_path / "any.npz"
    np.savez(path, **arrays)
    try:
        records = EmbeddingsFile(path).records()
        embeddings, good = EmbeddingsFile(path).read(records, np.arange(len(records)), skip_bad=True)
    except DataError as error:
        assert "any.npz" in str(error)
    else:
        assert embeddings.ndim == 3
        assert len(embeddings) == len(good) <= len(records)
        assert np.isfinite(embeddings).all()


@pytest.mark.real_data
def test_real_embeddings_are_read(real_data):
    path = real_data / "esc50_yamnet.npz"
    records = EmbeddingsFile(path).records()
    embeddings, good = EmbeddingsFile(path).read(records, np.arange(1600), skip_bad=False)
    assert embeddings.shape == (1600, 1, 1024)
    assert len(good) == 1600
    assert len({record.category for record in records}) == 50


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("category", np.array(["a", "b", "c"], dtype=object), ".astype(str)"),
        ("filename", np.array(["a", "b", None], dtype=object), ".astype(str)"),
        ("fold", np.array([1, 2, 3], dtype=object), ".astype(int)"),
        ("category", np.array([b"a", b"b", b"c"]), ".astype(str)"),
        ("category", np.array([0, 1, 2]), ".astype(str)"),
    ],
)
def test_arrays_of_objects_and_of_other_kinds_are_named_with_how_to_save_them(save, name, value, remedy):
    with refused(DataError, save(**{name: value}), name, remedy):
        EmbeddingsFile(save(**{name: value})).records()


def test_a_ragged_list_of_embeddings_is_named_with_how_to_save_it(save):
    ragged = np.array([np.ones(4), np.ones(4), np.ones(3)], dtype=object)
    path = save(embeddings=ragged)
    records = EmbeddingsFile(path).records()
    with refused(DataError, path, "embeddings", "numpy.stack(embeddings)"):
        EmbeddingsFile(path).read(records, ALL, skip_bad=False)
