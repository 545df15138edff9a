import torch
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.core.seeding import numpy_generator, seed_for, torch_generator

PURPOSES = st.lists(st.integers(-(2**40), 2**40) | st.text(max_size=8), max_size=4)


@given(PURPOSES, PURPOSES)
def test_different_purposes_get_different_seeds(one, other):
    assert (seed_for(*one) == seed_for(*other)) == (one == other)


@given(PURPOSES)
def test_seeds_fit_both_libraries(purpose):
    assert 0 <= seed_for(*purpose) < 2**63
    torch_generator(*purpose)
    numpy_generator(*purpose)


def test_numbers_are_distinct_from_words_and_from_each_other():
    assert len({seed_for(1, 11), seed_for(11, 1), seed_for("1", 11), seed_for(111)}) == 4


def test_draws_do_not_depend_on_what_was_drawn_before():
    expected = torch.randn(3, generator=torch_generator(0, "site", 3)), numpy_generator(0, "site", 3).random(3)
    torch.randn(100)
    torch.manual_seed(1)
    torch_generator(0, "site", 2)
    again = torch.randn(3, generator=torch_generator(0, "site", 3)), numpy_generator(0, "site", 3).random(3)
    assert torch.equal(expected[0], again[0])
    assert (expected[1] == again[1]).all()


def test_drawing_for_a_purpose_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    torch.randn(3, generator=torch_generator(0, "site", 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_are_the_same_in_every_process_and_release():
    """Python's own hash of a string differs from process to process."""
    assert seed_for(0, "site", 3) == 391249176876854800
