"""Sums without rounding errors."""

from fractions import Fraction

import pytest
import torch

from fed_a2v.core.exact_sum import ExactSum

SITES, SIZE = 9, 40


def lists(dtype, scale=1.0):
    """Values over eight orders of magnitude, in tensors of two shapes."""
    random = torch.Generator().manual_seed(0)
    values = torch.randn(SITES, SIZE, generator=random) * 10 ** (4 - 8 * torch.rand(SITES, SIZE, generator=random))
    return [[row[:-1].reshape(3, 13).to(dtype) * scale, row[-1].to(dtype) * scale] for row in values]


def total(tensors, factors, order=None):
    added = ExactSum()
    for place in order or range(len(tensors)):
        added.add(tensors[place], factors[place])
    return added.value()


@pytest.mark.parametrize("factors", [[1] * SITES, list(range(1, SITES + 1)), [10**6 + k for k in range(SITES)]])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_sum_is_the_nearest_float64_number_to_the_exact_one_in_any_order(dtype, factors):
    tensors = lists(dtype)
    exact = sum(
        (
            factor * Fraction(value)
            for factor, value in zip(factors, (each[0][1, 2].item() for each in tensors), strict=True)
        ),
        Fraction(0),
    )
    forwards, backwards = total(tensors, factors), total(tensors, factors, range(SITES)[::-1])
    assert forwards[0][1, 2].item() == float(exact)
    for one, other, first in zip(forwards, backwards, tensors[0], strict=True):
        assert one.dtype == torch.float64
        assert one.shape == first.shape
        assert torch.equal(one, other)


def test_nothing_is_lost_between_numbers_of_opposite_sign():
    for dtype, large in ((torch.float16, 60000.0), (torch.float32, 1e30)):
        large, small = ([torch.tensor([value], dtype=dtype)] for value in (large, 2.0**-24))
        (left,) = total([large, small, large], [10**9, 1, -(10**9)])
        assert left.item() == 2.0**-24


def test_fractional_factors_give_the_same_bits_in_any_order():
    tensors, factors = lists(torch.float16), [0.1 * k for k in range(SITES)]
    forwards, backwards = total(tensors, factors), total(tensors, factors, range(SITES)[::-1])
    assert all(map(torch.equal, forwards, backwards))
    plain = sum(factor * each[0].double() for factor, each in zip(factors, tensors, strict=True))
    torch.testing.assert_close(forwards[0], plain, rtol=1e-12, atol=0)


def test_a_sum_goes_on_after_its_value_was_taken():
    added = ExactSum()
    added.add([torch.ones(2)])
    first = added.value()
    added.add([torch.ones(2)])
    assert [first[0].tolist(), added.value()[0].tolist()] == [[1, 1], [2, 2]]
