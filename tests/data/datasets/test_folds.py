from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.data.datasets.folds import FOLDS, assign_folds, shuffle_key

clips = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("uvwxyz")), max_size=60)


def deal(pairs, seed=0):
    return assign_folds([category for category, _ in pairs], [source for _, source in pairs], FOLDS, seed)


@given(clips, st.integers(0, 3))
def test_clips_of_one_source_are_in_one_fold_whatever_their_order(pairs, seed):
    folds = deal(pairs, seed)
    assert all(1 <= fold <= FOLDS for fold in folds)
    fold_of = dict(zip([source for _, source in pairs], folds, strict=True))
    assert folds == [fold_of[source] for _, source in pairs]
    assert deal(pairs[::-1], seed) == folds[::-1]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 5))
def test_every_class_is_dealt_evenly(sizes, seed):
    pairs = [(f"class {c}", f"source {c} {i}") for c, size in enumerate(sizes) for i in range(size)]
    folds = deal(pairs, seed)
    for label, size in enumerate(sizes):
        counts = Counter(fold for (category, _), fold in zip(pairs, folds, strict=True) if category == f"class {label}")
        assert max(counts.values()) - min(counts.get(fold, 0) for fold in range(1, FOLDS + 1)) <= 1
        if size >= 3:
            assert counts[1]  # a class of three clips has one for training and one for the test
            assert counts[FOLDS]


def test_the_seed_decides_and_a_new_clip_moves_few():
    pairs = [("dog", f"video {i}") for i in range(200)]
    folds = deal(pairs)
    assert folds != deal(pairs, seed=1)
    moved = sum(a != b for a, b in zip(folds, deal([*pairs, ("dog", "new")]), strict=False))
    assert moved <= FOLDS


def test_draws_depend_on_seed_and_name_alone():
    assert shuffle_key(3, "a") == shuffle_key(3, "a")
    assert len({shuffle_key(0, "a"), shuffle_key(1, "a"), shuffle_key(0, "b")}) == 3
