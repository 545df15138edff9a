"""The noise of a privacy budget, against its definition."""

import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch

pytest.importorskip("dp_accounting")

from fed_a2v.core.class_sums import ClassSums
from fed_a2v.core.gaussian_release import (
    GRID,
    Budget,
    ReleaseNoise,
    bounded,
    epsilon_of,
    noisy,
    noisy_sums,
    secure_normals,
    seeded_normals,
)

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


def unit_rows(number, columns=6, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(number, columns, generator=random), dim=1)


def changes(rows, labels, left_out, max_norm=None):
    """By how much each released sum changes if a set of clips is left out, before noise."""

    def released(kept):
        exact = ClassSums.of(bounded(rows[kept]), labels[kept], 3)
        exact = replace(exact, counts=torch.ones(3, dtype=torch.int64))  # the classes that are sent are public
        noiseless = noisy_sums(
            exact, ReleaseNoise(1, 1, 1), lambda deviation, number: torch.zeros(number).long(), max_norm
        )
        centre = bounded(rows[kept]).sum(dim=0)
        return [centre if max_norm is None else bounded(centre[None], max_norm)[0], noiseless.sums, noiseless.scatter]

    everything = torch.ones(len(rows), dtype=torch.bool)
    pairs = zip(released(everything), released(everything & ~left_out), strict=True)
    return [float((one - other).norm()) for one, other in pairs]


@pytest.mark.parametrize("seed", range(3))
def test_no_clip_changes_a_sum_by_more_than_1(seed):
    rows = unit_rows(9, seed=seed) * torch.tensor([1.0, 7.0, 1e30] * 3)[:, None]
    rows[4] = math.nan
    labels = torch.arange(9) % 3
    for clip in range(9):
        for changed in changes(rows, labels, torch.arange(9) == clip):
            assert changed <= 1 + 1e-7
            assert changed > 0.5 or clip == 4, "all of a clip of length 1 is in the sums"


def test_no_site_changes_a_sum_by_more_than_its_norm():
    rows, labels = unit_rows(30), torch.arange(30) % 3
    everything = torch.ones(30, dtype=torch.bool)
    assert all(changed <= 2.6 + 1e-7 for changed in changes(rows, labels, everything, max_norm=2.6))
    one_clip = torch.arange(30) == 3
    assert all(changed <= 1 + 1e-7 for changed in changes(rows, labels, one_clip, max_norm=2.6))


@pytest.mark.parametrize("source", [secure_normals, seeded_normals(torch.Generator().manual_seed(3))])
def test_noise_has_its_deviation_and_lies_on_the_grid(source):
    released = noisy(torch.full((40, 50), 5.0), 0.7, source)
    assert released.shape == (40, 50)
    assert released.dtype == torch.float64
    assert float(released.mean()) == pytest.approx(5.0, abs=6 * 0.7 / math.sqrt(2000))
    assert float(released.std()) == pytest.approx(0.7, rel=6 / math.sqrt(4000))
    assert torch.equal((released / GRID).round() * GRID, released)


def test_the_smaller_the_norm_the_more_the_rounding_to_the_grid_counts():
    deviations = []

    def normals(deviation, number):
        deviations.append(deviation)
        return torch.zeros(number, dtype=torch.int64)

    # Rounding moves two neighbouring values apart by up to a step in each of 100 entries: as far as the norm itself.
    noisy(torch.zeros(100), 20 * GRID, normals, norm=10 * GRID)
    noisy(torch.zeros(100), 20 * GRID, normals)
    assert deviations == [40, 21]


def test_classes_without_clips_get_no_noise_and_a_scatter_without_budget_is_not_released():
    rows, labels = unit_rows(10), torch.arange(10) % 2
    exact = ClassSums.of(rows, labels, 4)
    normals = seeded_normals(torch.Generator().manual_seed(0))
    with_scatter = noisy_sums(exact, Budget(8.0, DELTA).noise(), normals)
    assert with_scatter.scatter.shape == exact.scatter.shape
    assert (with_scatter.sums[:2] != exact.sums[:2]).all()
    assert not with_scatter.sums[2:].any()
    without = noisy_sums(exact, Budget(8.0, DELTA).noise(scatter=False), normals)
    assert without.scatter.shape == (0,)
    assert torch.equal(without.counts, exact.counts)


def test_a_generator_repeats_its_noise():
    values = torch.zeros(30)
    first, second, other = (
        noisy(values, 1.0, seeded_normals(torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
