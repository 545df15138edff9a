"""Intervals of the figures that compare two sets of rows; `test_quality.py` tests the figures themselves."""

import numpy as np
import pytest

from fed_a2v.core.row_comparison import c2st_interval, paired_ratio_interval


def test_intervals_are_those_of_the_papers():
    assert c2st_interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Wilson, 5 of 10
    assert c2st_interval(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    table = [(0, 0, 12), (0, 1, 4), (1, 0, 26), (1, 1, 6)]
    one, other = (np.repeat([bool(row[side]) for row in table], [row[2] for row in table]) for side in (0, 1))
    assert paired_ratio_interval(one, other) == pytest.approx((1.7665, 5.7966), abs=1e-3)  # Bonett & Price
    nothing = np.zeros_like(one)
    assert paired_ratio_interval(nothing, other)[0] == 0
