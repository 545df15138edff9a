"""The exact sampler, against the distribution that it samples."""

import math
import random
from collections import Counter

import pytest

from fed_a2v.core.discrete_gaussian import discrete_gaussian


@pytest.mark.parametrize("deviation", [1, 3])
def test_frequencies_are_those_of_the_distribution(deviation):
    number = 20_000
    below = random.Random(1).randrange
    found = Counter(discrete_gaussian(deviation, below) for _ in range(number))
    weight = {x: math.exp(-(x**2) / (2 * deviation**2)) for x in range(-12 * deviation, 12 * deviation + 1)}
    total = sum(weight.values())
    assert found.keys() <= weight.keys()
    for x in range(-2 * deviation, 2 * deviation + 1):
        expected = number * weight[x] / total
        assert abs(found[x] - expected) < 4.5 * math.sqrt(expected), x


def test_large_deviations_and_the_source_of_the_operating_system():
    deviation = 3 << 30
    found = [discrete_gaussian(deviation) for _ in range(2000)]
    assert all(type(x) is int for x in found)
    mean = sum(found) / len(found)
    variance = sum(x**2 for x in found) / len(found)
    assert abs(mean) < 6 * deviation / math.sqrt(len(found))
    assert variance == pytest.approx(deviation**2, rel=6 * math.sqrt(2 / len(found)))
    assert len({x % 1024 for x in found}) > 500, "the last digits are random, too"
