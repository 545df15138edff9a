import pytest
import sklearn.covariance
import torch

from fed_a2v.core.generators.parts.moments import ClassMoments, ledoit_wolf_shrinkage
from fed_a2v.core.statistics import PrototypeBatch
from tests.core.conftest import World, draws, through_a_file, within_variance


def measured(rows):
    moments = ClassMoments()
    moments.fit(rows)
    return moments


def clip_deviation(world, groups, size):
    clips, labels = world.clips(groups * size)
    return torch.stack([clips[labels == label].flatten(1).std(0) for label in range(len(world.names))])


def test_prototypes_with_their_variance_give_back_mean_and_variance_of_the_clips_exactly():
    world = World(tokens=2, width=24)
    moments = measured(world.rows(groups=8, size=3))
    clips, labels = world.clips(24)
    means = torch.stack([clips[labels == label].flatten(1).mean(0) for label in range(10)])
    torch.testing.assert_close(moments.mean, means, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moments.std, clip_deviation(world, 8, 3), rtol=1e-4, atol=1e-4)


def test_prototypes_without_variance_still_give_the_spread_of_clips_not_that_of_means():
    world = World()
    rows = world.rows(groups=40, size=3, variance=False)
    wanted = clip_deviation(world, 40, 3).square().mean()
    naive = within_variance(rows.embeddings, rows.labels).mean()
    assert naive / wanted < 0.4
    assert 0.85 < measured(rows).std.square().mean() / wanted < 1.15


def test_groups_of_different_sizes_weigh_by_their_clips():
    world = World(classes=1)
    clips, _ = world.clips(12)
    sizes = [1, 2, 9]
    groups = clips.split(sizes)
    rows = PrototypeBatch(
        torch.stack([group.mean(0) for group in groups]),
        torch.zeros(3, dtype=torch.long),
        torch.tensor(sizes).float(),
        torch.stack([group.var(0, correction=0) for group in groups]),
        world.names,
    )
    moments = measured(rows)
    torch.testing.assert_close(moments.mean[0], clips.flatten(1).mean(0))
    torch.testing.assert_close(moments.std[0], clips.flatten(1).std(0))


def test_single_clips_give_their_plain_deviation():
    world = World()
    moments = measured(world.rows(groups=24, size=1))
    torch.testing.assert_close(moments.std, clip_deviation(world, 24, 1), rtol=1e-4, atol=1e-4)


def test_one_mean_with_its_variance_is_enough_for_the_deviation():
    world = World()
    moments = measured(world.rows(groups=1, size=24))
    torch.testing.assert_close(moments.std, clip_deviation(world, 1, 24), rtol=1e-4, atol=1e-4)


def test_a_class_with_one_mean_and_no_variance_borrows_the_others_spread():
    world = World()
    rows = world.rows(groups=8, size=3)
    rows.variances[rows.labels == 0] = 0
    alone = torch.ones(len(rows), dtype=torch.bool)
    alone[1:8] = False
    moments = measured(rows.index_select(alone))
    torch.testing.assert_close(moments.std[0], moments.std[1:].square().mean(0).sqrt())


def test_one_mean_a_class_and_no_variance_still_has_some_spread():
    moments = measured(World().rows(groups=1, size=24, variance=False))
    assert moments.std.isfinite().all()
    assert moments.std.mean() > 0.1


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_residuals_have_the_classes_deviation(groups, shrinkage):
    world = World()
    moments = measured(world.rows(groups=groups, size=24 // groups))
    labels = torch.arange(10).repeat_interleave(400)
    residuals = moments.residuals(labels, shrinkage, draws(0))
    ratio = within_variance(residuals, labels).mean() / moments.std.square().mean()
    # Two groups have a single direction, which may be stretched by a limited factor only.
    assert (0.5 if groups == 2 else 0.85) < ratio < 1.15
    assert residuals.mean().abs() < 0.05


def test_residuals_are_correlated_as_the_clips_are():
    world = World()
    moments = measured(world.rows(groups=8, size=3))
    clips, labels = world.clips(400, seed=6)
    real = torch.corrcoef(clips[labels == 3].flatten(1).T)
    fake = torch.corrcoef(moments.residuals(torch.full((400,), 3), 0.3, draws(0)).T)
    off = ~torch.eye(48, dtype=torch.bool)
    assert torch.corrcoef(torch.stack([real[off], fake[off]]))[0, 1] > 0.5


def test_spread_rows_lie_as_far_from_their_mean_as_clips_do():
    world = World()
    rows = world.rows(groups=8, size=3)
    moments = measured(rows)
    spread = moments.spread_rows(rows)
    ratio = within_variance(spread, rows.labels) / moments.std.square().mean(0)
    assert 0.9 < ratio.mean() < 1.1
    assert within_variance(rows.embeddings, rows.labels).mean() < 0.5 * moments.std.square().mean()
    for label in range(10):
        torch.testing.assert_close(spread[rows.labels == label].mean(0), moments.mean[label], rtol=1e-3, atol=1e-3)


def test_spread_rows_keep_the_order_of_the_rows():
    world = World()
    rows = world.rows().index_select(torch.randperm(80, generator=draws(0)))
    spread = measured(rows).spread_rows(rows)
    assert torch.equal(torch.cdist(spread, rows.embeddings.flatten(1)).argmin(1), torch.arange(80))


def test_columns_without_variance_stay_exactly_where_they_are():
    rows = World().rows()
    rows.embeddings[:, :, :5] = 7
    rows.variances[:, :, :5] = 0
    moments = measured(rows)
    assert not moments.std[:, :5].any()
    labels = torch.arange(10).repeat(3)
    assert not moments.residuals(labels, 0.3, draws(0))[:, :5].any()
    assert moments.residuals(labels, 0.3, draws(0)).isfinite().all()
    assert (moments.spread_rows(rows)[:, :5] == 7).all()


def test_data_without_any_variance_is_supported():
    rows = World().rows()
    rows.embeddings.fill_(3)
    rows.variances.zero_()
    moments = measured(rows)
    assert moments.residuals(torch.arange(10), 0.3, draws(0)).isfinite().all()


def test_uneven_numbers_of_prototypes_do_not_disturb_each_other():
    world = World(classes=3)
    rows = world.rows()
    keep = torch.ones(24, dtype=torch.bool)
    keep[1:8], keep[10:16] = False, False
    uneven, even = measured(rows.index_select(keep)), measured(rows)
    torch.testing.assert_close(uneven.std[2], even.std[2])
    torch.testing.assert_close(uneven.mean[2], even.mean[2])
    labels = torch.arange(3).repeat_interleave(400)
    ratio = within_variance(uneven.residuals(labels, 0.3, draws(0)), labels) / uneven.std.square().mean(0)
    assert 0.6 < ratio.mean() < 1.2


def test_moments_come_back_from_a_file_whatever_the_shapes_were():
    world = World()
    source, other = measured(world.rows()), measured(World(classes=2, width=8).rows(groups=2))
    other.load_state_dict(through_a_file(source.state_dict()))
    labels = torch.arange(10)
    assert torch.equal(source.residuals(labels, 0.3, draws(0)), other.residuals(labels, 0.3, draws(0)))


@pytest.mark.parametrize(("number", "width"), [(6, 40), (300, 20), (40, 2000)])
def test_the_shrinkage_is_that_of_scikit_learn(number, width):
    random = draws(number)
    rows = torch.randn(number, width, generator=random) @ (
        torch.eye(width) + 0.2 * torch.randn(width, width, generator=random)
    )
    wanted = sklearn.covariance.ledoit_wolf_shrinkage(rows.double().numpy(), assume_centered=True)
    assert ledoit_wolf_shrinkage(rows) == pytest.approx(wanted, rel=1e-6)


def test_rows_that_are_all_zero_need_no_shrinkage():
    assert ledoit_wolf_shrinkage(torch.zeros(4, 3)) == 0


@pytest.mark.parametrize("mean", [0.3, 1.0, 2.0, 20.0])
def test_draws_of_non_negative_data_keep_mean_and_deviation_although_they_are_cut(mean):
    random = draws(0)
    clips = (mean + torch.randn(400, 1, 64, generator=random)).clamp(min=0)
    rows = PrototypeBatch(
        clips, torch.zeros(400, dtype=torch.long), torch.ones(400), torch.zeros_like(clips), ("rain",)
    )
    moments = measured(rows)
    drawn = moments.draw(torch.zeros(4000, dtype=torch.long), 1.0, random)
    real = clips.flatten(1)
    assert drawn.min() >= 0
    assert drawn.mean() == pytest.approx(real.mean().item(), rel=0.02)
    assert drawn.std(0).mean() == pytest.approx(real.std(0).mean().item(), rel=0.03)
    # Exact zeros are as common as in the data.
    assert (drawn == 0).float().mean() == pytest.approx((real == 0).float().mean().item(), abs=0.03)


def test_rare_activity_keeps_its_mean():
    clips = torch.zeros(400, 1, 8)
    clips[:20] = 1.0
    rows = PrototypeBatch(
        clips, torch.zeros(400, dtype=torch.long), torch.ones(400), torch.zeros_like(clips), ("rain",)
    )
    drawn = measured(rows).draw(torch.zeros(20000, dtype=torch.long), 1.0, draws(0))
    assert drawn.mean() == pytest.approx(0.05, rel=0.05)


def test_signed_data_is_not_cut():
    moments = measured(World().rows())
    assert moments.draw(torch.zeros(100, dtype=torch.long), 0.3, draws(0)).min() < 0


def test_held_out_prototypes_are_stretched_like_those_that_were_measured():
    world = World()
    measured_rows, held_out = world.rows(groups=16, size=3).split(0.125)
    moments = measured(measured_rows)
    stretched = moments.spread_rows(held_out)
    offsets = stretched - moments.mean[held_out.labels]
    assert 0.75 < offsets.square().mean().sqrt() / moments.std.mean() < 1.25
    raw = held_out.embeddings.flatten(1) - moments.mean[held_out.labels]
    assert raw.square().mean().sqrt() / moments.std.mean() < 0.75
