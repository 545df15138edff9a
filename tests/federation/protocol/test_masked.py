"""The vectors of secure aggregation: what comes out is the total, up to the quantisation step of each site."""

import numpy as np
import pytest
import torch
from flwr.common.secure_aggregation.quantization import quantize
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.core.class_sums import ClassSums
from fed_a2v.core.statistics import ClassStatistics
from fed_a2v.federation.protocol import InvalidReplyError
from fed_a2v.federation.protocol.masked import (
    CLIPPING,
    centre_scales,
    entry_scales,
    quantisation_step,
    quantised_mean,
    read_sums,
    scaled,
    sums_scales,
    sums_vector,
)
from tests.refusals import refused

NAMES = ("bell", "dog", "rain")


def site_sums(random, clips, columns):
    rows = torch.from_numpy(random.normal(size=(clips, columns)))
    return ClassSums.of(rows / rows.norm(dim=1, keepdim=True), torch.from_numpy(random.integers(0, 3, clips)), 3)


def statistics(sums):
    return [ClassStatistics(name, count) for name, count in zip(NAMES, sums.counts.tolist(), strict=True) if count]


@given(
    seed=st.integers(0, 2**32 - 1),
    clips=st.lists(st.integers(0, 40), min_size=3, max_size=9),
    columns=st.integers(1, 6),
    bits=st.integers(8, 26),
)
def test_the_quantised_total_is_the_exact_one_within_a_step_of_each_site(seed, clips, columns, bits):
    random = np.random.default_rng(seed)
    np.random.seed(seed)
    sites = [site_sums(random, count, columns) for count in clips]
    scales = entry_scales("masked_sums", sums_scales(map(statistics, sites), NAMES), columns)
    quantised = [quantize([scaled(sums_vector(site), scales)], CLIPPING, 2**bits)[0] for site in sites]
    total = torch.from_numpy(quantised_mean(quantised, bits)) * scales * len(sites)
    exact = sum(sites[1:], sites[0])
    error = (total - sums_vector(exact)).abs()
    assert (error <= len(sites) * scales * (quantisation_step(bits) + 1e-12)).all()
    read = read_sums(total, exact.counts, columns)
    assert torch.equal(read.sums, total[: 3 * columns].reshape(3, columns))
    assert torch.equal(read.scatter, total[3 * columns :])


def test_scales_are_the_largest_numbers_of_clips_of_a_site():
    one, other = [ClassStatistics("dog", 4), ClassStatistics("rain", 9)], [ClassStatistics("dog", 7)]
    assert sums_scales([one, other], NAMES).tolist() == [1, 7, 9, 13]
    assert sums_scales([one, other], NAMES, (0.5, 2.0)).tolist() == [1.5, 7.5, 9.5, 15]
    assert centre_scales([5, 0, 8]).tolist() == [8]
    assert entry_scales("masked_sums", torch.tensor([1, 7, 9, 13]), 2).tolist() == [1, 1, 7, 7, 9, 9, 13, 13, 13]
    assert entry_scales("masked_centre", torch.tensor([8]), 3).tolist() == [8, 8, 8]


@pytest.mark.parametrize("entry", [5.1, -5.1, float("nan")])
def test_a_sum_that_would_be_clipped_is_refused(entry):
    scaled(torch.tensor([5.0, -5.0]), torch.tensor(5.0))
    with refused(InvalidReplyError, "scales"):
        scaled(torch.tensor([0.0, entry]), torch.tensor(5.0))


def test_under_privacy_noise_it_is_clipped_without_a_word():
    entries = scaled(torch.tensor([5.1, -9.0, 2.5, float("nan")]), torch.tensor(5.0), clip=True)
    assert entries.tolist() == [1, -1, 0.5, 0]
