"""Intervals and the test of paired clips, against scipy's and by hand."""

import math

import pytest
from scipy.stats import binomtest

from fed_a2v.core.uncertainty import mcnemar_p, wilson_interval, with_interval


@pytest.mark.parametrize(
    ("right", "clips"), [(0, 1), (1, 1), (0, 30), (23, 30), (30, 30), (127, 127), (341, 400), (19_000, 20_000)]
)
def test_the_interval_is_wilsons(right, clips):
    known = binomtest(right, clips).proportion_ci(method="wilson")
    low, high = wilson_interval(right / clips, clips)
    assert (low, high) == pytest.approx((known.low, known.high), abs=1e-4)
    assert 0 <= low <= right / clips <= high <= 1
    assert low < high


def test_three_of_five_by_hand():
    # Centre (3 + z²/2) / (5 + z²) with z = 1.96; half width z sqrt(5 * 0.6 * 0.4 + z²/4) / (5 + z²).
    centre, half = 4.9208 / 8.8416, 1.96 * math.sqrt(1.2 + 0.9604) / 8.8416
    assert wilson_interval(0.6, 5) == pytest.approx((centre - half, centre + half))


def test_a_figure_without_clips_has_no_interval():
    assert with_interval("t5/accuracy", None, 0) == dict.fromkeys(
        ("t5/accuracy", "t5/accuracy_low", "t5/accuracy_high")
    )
    figures = with_interval("accuracy", 0.6, 5)
    assert list(figures) == ["accuracy", "accuracy_low", "accuracy_high"]
    assert figures["accuracy_low"] < figures["accuracy"] == 0.6 < figures["accuracy_high"]


def test_mcnemars_p_is_that_of_fair_coins():
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(5, 0) == mcnemar_p(0, 5) == 2 / 2**5
    # 9 or more heads of 11, or tails: 2 (55 + 11 + 1) / 2^11
    assert mcnemar_p(9, 2) == pytest.approx(134 / 2048)
    assert mcnemar_p(4, 4) == 1.0
    assert mcnemar_p(31, 4) < 0.001


def test_a_very_large_number_of_changed_clips_is_no_problem():
    assert mcnemar_p(3 * 10**9, 10**9) == 0
    assert mcnemar_p(3 * 10**9, 3 * 10**9) == 1
