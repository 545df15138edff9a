import numpy as np
import pytest

from fed_a2v.data.clips import Record, build_index, check_complete, classes_of
from fed_a2v.data.errors import DataError

RECORDS = [
    Record("a", "dog", 1),
    Record("b", "crying_baby", 2),
    Record("c", "dog", 4),
    Record("d", "rain", 5),
    Record("e", "Dog", 3),
]


@pytest.fixture
def dataset(make_settings):
    def make(*overrides):
        return make_settings(*(f"dataset.{override}" for override in overrides)).dataset

    return make


def test_folds_become_splits_and_clips_of_other_folds_are_unused(dataset):
    index = build_index(RECORDS, dataset("validation_folds=[3]", "train_folds=[1,2]"), ("crying_baby", "dog"))
    assert [record.key for record in index.records] == ["a", "b", "c", "e"]
    assert index.splits == ("train", "train", "test", "validation")
    assert index.labels.tolist() == [1, 0, 1, 1]
    assert index.rows.tolist() == [0, 1, 2, 4]


def test_the_classes_are_sorted_and_spelling_makes_no_other_class(dataset):
    assert classes_of(RECORDS, dataset()) == ("Dog", "crying_baby", "rain")


def test_classes_can_be_chosen_and_keep_the_order_given(dataset):
    chosen = dataset("classes=[rain,crying baby]")
    assert classes_of(RECORDS, chosen) == ("rain", "crying baby")
    index = build_index(RECORDS, chosen, classes_of(RECORDS, chosen))
    assert [record.key for record in index.records] == ["b"]
    assert index.labels.tolist() == [1]


def test_a_key_listed_twice_is_an_error(dataset):
    with pytest.raises(DataError, match="lists 'a' twice"):
        build_index([*RECORDS, Record("a", "rain", 2)], dataset(), ("dog",))


def test_no_clip_for_training_is_an_error_that_names_the_folds(dataset):
    with pytest.raises(DataError, match=r"train_folds is \[9\], the data has the folds \[1, 2, 3, 4, 5\]"):
        build_index(RECORDS, dataset("train_folds=[9]"), ("dog",))


def test_a_fold_that_no_clip_has_is_an_error(dataset):
    check_complete(RECORDS, dataset())
    with pytest.raises(DataError, match="test_folds names fold 6"):
        check_complete(RECORDS, dataset("test_folds=[4,6]"))


def test_an_unknown_class_is_an_error_that_names_the_nearest(dataset):
    with pytest.raises(DataError, match="did you mean crying_baby"):
        check_complete(RECORDS, dataset("classes=[dog,cryin_baby]"))
    with pytest.raises(DataError, match="'dog' twice"):
        classes_of(RECORDS, dataset("classes=[dog,dog]"))
    with pytest.raises(DataError, match="empty"):
        classes_of(RECORDS, dataset("classes=[]"))


def test_rows_of_a_split(make_clips):
    clips = make_clips([0, 1, 0], ["train", "test", "train"])
    assert clips.rows("train").tolist() == [0, 2]
    assert clips.rows("validation").tolist() == []
    assert clips.rows("test").dtype == np.int64
