"""The noise of a privacy budget, against its definition."""

import math
from statistics import NormalDist

import pytest

pytest.importorskip("dp_accounting")

from fed_a2v.core.gaussian_release import Budget, epsilon_of

DELTA = 1e-5


def delta_of(epsilon, sigma):
    """Balle & Wang (2018), equation 6: the delta of a Gaussian mechanism with sensitivity 1."""
    normal = NormalDist()
    return normal.cdf(1 / (2 * sigma) - epsilon * sigma) - math.exp(epsilon) * normal.cdf(
        -1 / (2 * sigma) - epsilon * sigma
    )


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0, 8.0])
def test_all_sums_together_cost_the_budget(epsilon):
    noise = Budget(epsilon, DELTA).noise()
    sigma = 1 / math.sqrt(sum(deviation**-2 for deviation in noise))
    assert delta_of(epsilon, sigma) == pytest.approx(DELTA, rel=1e-3)
    assert epsilon_of(noise, DELTA) == pytest.approx(epsilon, rel=1e-6)


def test_without_a_scatter_the_class_sums_have_less_noise():
    whole, means = (Budget(2.0, DELTA).noise(scatter=scatter) for scatter in (True, False))
    assert means.classes < whole.classes
    assert math.isinf(means.scatter)
    assert epsilon_of(means, DELTA) == pytest.approx(2.0, rel=1e-6)


def test_noise_grows_with_what_a_clip_or_site_may_add():
    clip, site = (Budget(4.0, DELTA).noise(max_norm) for max_norm in (1.0, 2.6))
    assert site == pytest.approx([2.6 * deviation for deviation in clip])
    assert epsilon_of(site, DELTA, 2.6) == pytest.approx(4.0, rel=1e-6)


def test_two_releases_cost_more_than_one_and_less_than_twice():
    noise = Budget(2.0, DELTA).noise()
    assert 2.0 < epsilon_of([*noise, *noise], DELTA) < 4.0
    assert epsilon_of([], DELTA) == 0.0


def test_the_noise_of_several_sites_adds_up_to_that_of_their_sum():
    noise = Budget(8.0, DELTA).noise()
    share = noise.shared_by(5)
    assert [math.sqrt(5) * deviation for deviation in share] == pytest.approx(list(noise))
