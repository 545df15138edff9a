"""Replies ten times off the median site's scale are refused; those of honest sites are not."""

import math
from dataclasses import replace

import pytest
import torch

from fed_a2v.core.prototype_bank import PrototypeBank
from fed_a2v.core.statistics import AudioPrototypes, ClassStatistics, PooledMoments
from fed_a2v.federation.server.scale_check import off_scale, sizes
from tests.federation.protocol.helpers import make_moments_reply

SHAPE = (2, 5)


def said(size=1.0, deviation=0.5, name="dog", prototypes=2, clip=None):
    means = torch.full((prototypes, *SHAPE), float(size))
    audio = AudioPrototypes(means, torch.full((prototypes,), 3), torch.full_like(means, deviation**2))
    return ClassStatistics(name, 3 * prototypes, audio, None if clip is None else torch.full((1, 4), float(clip)))


def replies(*of_sites):
    return [
        replace(make_moments_reply(), site=f"site-{number}", moments=None, statistics=list(prompts))
        for number, prompts in enumerate(of_sites)
    ]


def off(*of_sites, bank=None, factor=10.0):
    return sorted(off_scale(replies(*of_sites), bank, factor))


USUAL = [[said(0.7)], [said(1.0)], [said(1.4)]]


def test_sizes_are_root_mean_squares():
    two = said(2.0, 0.25, prototypes=1)
    three = replace(said(0.0, 4.0, prototypes=1), clip=torch.tensor([[3.0, 4.0]]))
    assert sizes([two, three]) == pytest.approx(
        {
            "largest prototype": 2.0,
            "typical prototype": math.sqrt(2.0),
            "deviation within a group": 4.0,
            "CLIP output": math.sqrt(12.5),
        }
    )


@pytest.mark.parametrize(
    "hostile",
    [
        [said(1e3)],
        [said(15.0)],
        [said(1.0, name="rain"), said(15.0)],
        [said(1.0, deviation=1e6)],
        [said(1.0, name="rain"), said(1.0, deviation=6.0)],
        [said(0.05)],
        [said(0.0, deviation=0.0)],
    ],
    ids=["a thousand times", "fifteen times", "one class", "variances", "one variance", "too small", "zeros"],
)
def test_replies_ten_times_off_the_median_site_are_refused(hostile):
    assert off(*USUAL, hostile) == ["site-3"]
    assert off(*USUAL, hostile, factor=math.inf) == []


@pytest.mark.parametrize(
    "honest",
    [[said(9.0)], [said(1.0), said(0.0, name="silence")], [said(1.0, deviation=0.0)], [said(1.0, deviation=4.0)], []],
    ids=["large", "a silent class", "copies of one clip", "a varied class", "nothing"],
)
def test_replies_of_honest_sites_are_not_refused_as_outliers(honest):
    assert off(*USUAL, honest) == []


def test_where_most_groups_are_copies_of_one_clip_deviations_are_measured_by_the_embeddings():
    copies = [[said(1.0, deviation=0.0)]] * 3
    assert off(*copies, [said(1.0, deviation=3.0)]) == []
    assert off(*copies, [said(1.0, deviation=1e6)]) == ["site-3"]


def test_with_two_sites_no_site_is_an_outlier():
    assert off([said(1.0)], [said(1e3)]) == []


def test_the_moments_of_all_clips_are_judged_like_prototypes():
    def moments(mean, variance):
        told = PooledMoments(torch.full(SHAPE, mean), variance, 6)
        return replace(make_moments_reply(), site="site-3", moments=told)

    assert [*off_scale([*replies(*USUAL), moments(1.0, 1.0)], None, 10.0)] == []
    assert [*off_scale([*replies(*USUAL), moments(50.0, 1.0)], None, 10.0)] == ["site-3"]
    assert [*off_scale([*replies(*USUAL), moments(1.0, 1e12)], None, 10.0)] == ["site-3"]


def test_a_site_that_joins_later_is_compared_with_those_that_the_bank_holds():
    bank = PrototypeBank()
    for number, prompts in enumerate(USUAL):
        bank.update(f"held-{number}", prompts, "x", 0)
    assert off([said(15.0)], bank=bank) == ["site-0"]
    assert off([said(2.0)], bank=bank) == []
    bank.forget_prototypes()
    assert off([said(15.0)], bank=bank) == []


def test_earlier_replies_of_a_site_are_not_part_of_its_comparison():
    bank = PrototypeBank()
    for number, prompts in enumerate([[said(1e3)], *USUAL]):
        bank.update(f"site-{number}", prompts, "x", 0)
    assert off([said(1.0)], bank=bank) == []


def test_mean_outputs_are_compared_with_those_of_the_same_round():
    def outputs(size):
        return [replace(said(clip=size), audio=None)]

    assert off(outputs(1.0), outputs(2.0), outputs(0.5), outputs(30.0)) == ["site-3"]
    assert off(outputs(1.0), outputs(2.0), outputs(0.5), outputs(0.0)) == []
