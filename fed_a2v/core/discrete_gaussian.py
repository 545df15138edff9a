"""Exact samples of the discrete Gaussian distribution, the noise of a deployed site's releases.

Floating-point normals have gaps that reveal the value under the noise (Mironov 2012). The discrete Gaussian is drawn
with integers only, and hides as much as the continuous one (Canonne, Kamath & Steinke 2020, whose algorithms 1 to 3
these are). `gaussian_release` adds it to sums on a grid.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

# A random integer of 0 to n - 1, by default from the operating system's cryptographically strong source.
Below = Callable[[int], int]


def discrete_gaussian(deviation: int, below: Below = secrets.randbelow) -> int:
    """One sample, with probability proportional to `exp(-x ** 2 / (2 * deviation ** 2))` for every integer x.

    Args:
        deviation: above 0.
        below: source of uniform random integers.
    """
    scale, square = deviation + 1, deviation**2
    while True:
        sample = _discrete_laplace(scale, below)
        if _happens((abs(sample) * scale - square) ** 2, 2 * square * scale**2, below):
            return sample


def _discrete_laplace(scale: int, below: Below) -> int:
    """A sample with probability proportional to `exp(-abs(x) / scale)`."""
    while True:
        rest = below(scale)
        if not _happens(rest, scale, below):
            continue
        whole = 0
        while _happens(1, 1, below):
            whole += 1
        size, negative = rest + scale * whole, below(2)
        if size or not negative:  # else 0 would have twice its probability
            return -size if negative else size


def _happens(numerator: int, denominator: int, below: Below) -> bool:
    """True with probability `exp(-numerator / denominator)`."""
    while numerator > denominator:
        if not _happens(1, 1, below):
            return False
        numerator -= denominator
    count = 1
    while below(denominator * count) < numerator:
        count += 1
    return count % 2 == 1
