import numpy as np
import pytest

from fed_a2v.data.clips import Record, build_index, check_complete, classes_of, unseen_classes
from fed_a2v.data.errors import DataError
from tests.refusals import refused

RECORDS = [
    Record("a", "dog", 1),
    Record("b", "crying_baby", 2),
    Record("c", "dog", 4),
    Record("d", "rain", 5),
    Record("e", "Dog", 3),
]
CATEGORIES = [record.category for record in RECORDS]


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
    assert classes_of(CATEGORIES, dataset()) == ("Dog", "crying_baby", "rain")


def test_classes_can_be_chosen_and_keep_the_order_given(dataset):
    chosen = dataset("classes=[rain,crying baby]")
    assert classes_of(CATEGORIES, chosen) == ("rain", "crying baby")
    index = build_index(RECORDS, chosen, classes_of(CATEGORIES, chosen))
    assert [record.key for record in index.records] == ["b"]
    assert index.labels.tolist() == [1]


def test_a_key_listed_twice_is_an_error(dataset):
    with refused(DataError, "'a'"):
        build_index([*RECORDS, Record("a", "rain", 2)], dataset(), ("dog",))


def test_no_clip_for_training_is_an_error_that_names_the_folds(dataset):
    with refused(DataError, "dataset.train_folds", [9], [1, 2, 3, 4, 5]):
        build_index(RECORDS, dataset("train_folds=[9]"), ("dog",))


def test_a_fold_that_no_clip_has_is_an_error(dataset):
    check_complete(RECORDS, dataset())
    with refused(DataError, "dataset.test_folds", 6, [1, 2, 3, 4, 5]):
        check_complete(RECORDS, dataset("test_folds=[4,6]"))


def test_an_unknown_class_is_an_error_that_names_the_nearest(dataset):
    with refused(DataError, "dataset.classes", "'cryin_baby'", "crying_baby") as caught:
        check_complete(RECORDS, dataset("classes=[dog,cryin_baby]"))
    assert "rain" not in str(caught.value)
    with refused(DataError, "dataset.classes", "'dog'"):
        classes_of(CATEGORIES, dataset("classes=[dog,dog]"))
    with refused(DataError, "dataset.classes", "null"):
        classes_of(CATEGORIES, dataset("classes=[]"))


def test_rows_of_a_split(make_clips):
    clips = make_clips([0, 1, 0], ["train", "test", "train"])
    assert clips.rows("train").tolist() == [0, 2]
    assert clips.rows("validation").tolist() == []
    assert clips.rows("test").dtype == np.int64


def test_unseen_classes_keep_their_test_clips_only(dataset):
    chosen = dataset("train_folds=[1,2]", "validation_folds=[3]", "test_folds=[4,5]", "unseen=[dog]")
    index = build_index(RECORDS, chosen, ("crying_baby", "dog", "rain"))
    assert [record.key for record in index.records] == ["b", "c", "d"]
    assert index.splits == ("train", "test", "test")


NAMES = tuple(f"class {number}" for number in range(10))


def test_a_number_of_unseen_classes_is_drawn_by_its_own_seed(dataset):
    first = unseen_classes(dataset("unseen=3"), NAMES)
    assert len(first) == 3
    assert list(first) == sorted(first)
    assert unseen_classes(dataset("unseen=3"), NAMES) == first
    assert any(unseen_classes(dataset("unseen=3", f"unseen_seed={seed}"), NAMES) != first for seed in (1, 2, 3))


def test_no_class_is_unseen_by_default(dataset):
    assert unseen_classes(dataset(), NAMES) == ()


def test_unseen_names_are_compared_without_regard_to_spelling(dataset):
    assert unseen_classes(dataset("unseen=[Class_3,class 1]"), NAMES) == ("class 1", "class 3")


def test_an_unknown_unseen_class_is_an_error_that_names_the_nearest(dataset):
    with refused(DataError, "dataset.unseen", "'clas 3'", "'class 3'"):
        unseen_classes(dataset("unseen=[clas 3]"), NAMES)


def test_someone_must_be_left_to_train_on(dataset):
    with refused(DataError, "dataset.unseen", "1 of 10"):
        unseen_classes(dataset("unseen=9"), NAMES)
