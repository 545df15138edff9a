import numpy as np
import pytest

from fed_a2v.data.clips import SPLITS, Record
from fed_a2v.data.errors import DataError
from fed_a2v.data.selection import build_index, check_complete, classes_of, split_by_fold, unseen_classes
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


def test_folds_become_splits_and_clips_of_other_folds_are_unused_and_counted(dataset, caplog):
    chosen = dataset("validation_folds=[3]", "train_folds=[1,2]", "test_folds=[4]")
    index = build_index([*RECORDS, Record("f", "dog", 5)], chosen, ("crying_baby", "dog"))
    assert [record.key for record in index.records] == ["a", "b", "c", "e"]
    assert index.splits == ("train", "train", "test", "validation")
    assert index.labels.tolist() == [1, 0, 1, 1]
    assert index.rows.tolist() == [0, 1, 2, 4]
    assert "dataset=synth" in caplog.text
    assert "1 of fold 5" in caplog.text  # rain is no class here


@pytest.mark.parametrize(
    ("present", "overrides", "train", "validation", "test"),
    [
        ([1, 2, 3, 4, 5], [], [1, 2, 3, 4], [], [5]),
        ([1, 2, 3, 4], [], [1, 2, 3], [], [4]),
        ([2, 4, 7], [], [2, 4], [], [7]),
        ([1, 2, 3, 4, 5], ["test_fold=2"], [1, 3, 4, 5], [], [2]),
        ([1, 2, 3, 4, 5], ["test_folds=[2,3]"], [1, 4, 5], [], [2, 3]),
        ([1, 2, 3, 4, 5], ["train_folds=[1,2]"], [1, 2], [], [5]),
        ([1, 2, 3, 4, 5], ["validation_folds=[5]"], [1, 2, 3], [5], [4]),
        ([1, 2, 3, 4, 5], ["test_fold=1", "validation_folds=[2]"], [3, 4, 5], [2], [1]),
        ([1, 2, 3, 4, 5], ["train_folds=[1,2]", "test_fold=3"], [1, 2], [], [3]),
        ([1, 2], ["train_folds=[1]"], [1], [], [2]),
        ([3], [], [3], [], []),  # a site's own folder; that of a whole experiment is refused
    ],
)
def test_what_the_settings_leave_open_tests_on_the_last_fold_and_trains_on_all_others(
    dataset, present, overrides, train, validation, test
):
    records = [Record(f"clip {fold}", "dog", fold) for fold in present]
    split_of = split_by_fold(records, dataset(*overrides))
    assert [sorted(fold for fold, its in split_of.items() if its == split) for split in SPLITS] == [
        train,
        validation,
        test,
    ]


def test_folds_other_than_five_are_said_in_the_log(dataset, caplog):
    caplog.set_level("INFO")
    build_index(RECORDS, dataset(), ("dog",))
    build_index(RECORDS, dataset("test_fold=2"), ("dog",))
    assert not caplog.text, "five folds, or those that were asked for, go without saying"
    build_index([record for record in RECORDS if record.fold < 5], dataset(), ("dog",))
    assert "train 1, 2, 3; test 4" in caplog.text


def test_dealt_folds_are_five_even_where_one_of_them_got_no_clip(dataset, make_settings):
    folder = make_settings("dataset=folder", "dataset.root=/x").dataset
    assert split_by_fold([Record("a", "dog", 1), Record("b", "dog", 2)], folder)[5] == "test"


def test_an_experiment_without_a_fold_for_the_test_is_refused(dataset):
    with refused(DataError, "dataset.test_fold", [1]):
        check_complete(RECORDS[:1], dataset())
    with refused(DataError, "dataset.train_folds", [1, 2, 3, 4, 5]):
        check_complete(RECORDS, dataset("train_folds=[1,2,3,4,5]"))


def test_the_classes_are_sorted_and_spelling_makes_no_other_class(dataset):
    assert classes_of(CATEGORIES, dataset()) == ("Dog", "crying_baby", "rain")


def test_classes_can_be_chosen_and_keep_the_order_given(dataset):
    chosen = dataset("classes=[rain,crying baby]")
    assert classes_of(CATEGORIES, chosen) == ("rain", "crying baby")
    index = build_index(RECORDS, chosen, classes_of(CATEGORIES, chosen))
    assert [record.key for record in index.records] == ["b", "d"]
    assert index.labels.tolist() == [1, 0]


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
    with refused(DataError, "dataset.test_fold", 6, [1, 2, 3, 4, 5]):
        check_complete(RECORDS, dataset("test_fold=6"))


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


def test_at_least_two_classes_must_be_left_for_training(dataset):
    with refused(DataError, "dataset.unseen", "1 of 10"):
        unseen_classes(dataset("unseen=9"), NAMES)
