import pytest
import torch

from fed_a2v.core.generators.gmm import GMMGenerator
from fed_a2v.core.statistics import PrototypeBatch
from tests.core.conftest import World, draws, within_variance
from tests.refusals import refused

COVARIANCES = ["spherical", "diag", "tied", "full"]


def fitted(world, rows=None, **arguments):
    generator = GMMGenerator(world.shape[1], world.conditions.shape[1], world.shape[0], **arguments)
    rows = world.rows() if rows is None else rows
    assert generator.fit(rows, world.conditions, 1, 0.1, draws(0)) == []
    return generator


def two_clusters(world, per_class=16):
    """Clips of each class in two clusters, three deviations to either side of the mean."""
    clips, labels = world.clips(per_class)
    side = 1 - 2 * (torch.arange(len(clips)) % 2).view(-1, 1, 1)
    clips = clips + 3 * side
    return PrototypeBatch(clips, labels, torch.ones(len(clips)), torch.zeros_like(clips), world.names)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_every_covariance_gives_samples_of_their_class_with_the_spread_of_clips(covariance):
    world = World()
    samples = fitted(world, covariance=covariance).sample_classes(world.conditions, 60, draws(0)).flatten(0, 1)
    labels = torch.arange(10).repeat_interleave(60)
    assert (world.nearest_class(samples) == labels).float().mean() > 0.9
    assert 0.7 < world.variance_ratio(samples, labels) < 1.3


def middle_share(samples):
    """Share of samples that lie between the two clusters, where there are no clips."""
    position = (samples - samples.mean(dim=1, keepdim=True)).flatten(2).mean(dim=2)
    return float((position.abs() < 1).float().mean())


def test_two_components_keep_two_clusters_apart_and_one_component_cannot():
    world = World(classes=4)
    shares = [
        middle_share(
            fitted(world, two_clusters(world), components=number).sample_classes(world.conditions, 200, draws(0))
        )
        for number in (1, 2)
    ]
    assert shares[0] > 0.15
    assert shares[1] < 0.02


def test_each_class_has_its_own_noise():
    world = World()
    world.directions[0] *= 3
    samples = fitted(world, calibrate=False).sample_classes(world.conditions, 100, draws(0)).flatten(0, 1)
    labels = torch.arange(10).repeat_interleave(100)
    wide, narrow = (within_variance(samples[labels == c], labels[labels == c]).mean() for c in (0, 1))
    assert wide > 2 * narrow


def test_tied_and_full_covariances_follow_the_classes_correlation_and_diag_does_not():
    world = World(classes=4, width=12)
    world.directions *= 3
    clips, labels = world.clips(60)
    rows = PrototypeBatch(clips, labels, torch.ones(len(clips)), torch.zeros_like(clips), world.names)
    real = torch.corrcoef(clips[labels == 0].flatten(1).T)
    off = ~torch.eye(12, dtype=torch.bool)
    errors = {}
    for covariance in ("diag", "tied", "full"):
        generator = fitted(world, rows, covariance=covariance, components=1)
        samples = generator.sample_classes(world.conditions[:1], 1000, draws(0))[0].flatten(1)
        errors[covariance] = (torch.corrcoef(samples.T) - real)[off].abs().mean()
    assert errors["tied"] < 0.7 * errors["diag"]
    assert errors["full"] < 0.7 * errors["diag"]


def test_a_class_with_few_rows_gets_one_component_with_the_pooled_covariance():
    world = World()
    rows = world.rows()
    few = torch.ones(len(rows), dtype=torch.bool)
    few[torch.nonzero(rows.labels == 3).flatten()[2:]] = False
    few[torch.nonzero(rows.labels == 4).flatten()[5:]] = False
    generator = fitted(world, rows.index_select(few))
    assert generator.weights[3].tolist() == [1, 0]
    assert generator.weights[4].tolist() == [1, 0]
    assert (generator.weights[5] > 0).all()
    # Class 4 has rows enough for one Gaussian of its own, class 3 has not.
    covariances = generator.factors[:, 0].mT @ generator.factors[:, 0]
    one = fitted(world, rows.index_select(few), rows_per_component=6)
    pooled = (one.factors[:, 0].mT @ one.factors[:, 0])[3]
    torch.testing.assert_close(covariances[3], pooled)
    assert not torch.allclose(covariances[4], pooled)
    samples = generator.sample(40, world.conditions[3], None, draws(0))
    assert (world.nearest_class(samples) == 3).float().mean() > 0.9


def test_full_shrinkage_leaves_no_correlation_of_a_classs_own():
    world = World()
    own, shrunk = (fitted(world, components=1, shrinkage=share).factors[:, 0] for share in (0.0, 1.0))

    def correlations(factors):
        covariance = factors.mT @ factors
        deviation = covariance.diagonal(dim1=1, dim2=2).sqrt()
        return covariance / deviation[:, :, None] / deviation[:, None, :]

    assert (correlations(shrunk) - correlations(shrunk)[0]).abs().max() < 1e-3
    assert (correlations(own) - correlations(own)[0]).abs().max() > 0.5


def test_the_nearest_class_stands_in_for_an_unknown_condition_beside_known_ones():
    world = World()
    conditions = torch.stack([world.conditions[2], world.conditions[7] + torch.randn(24, generator=draws(1))])
    rows = fitted(world).sample(40, conditions.repeat(20, 1), None, draws(0))
    assert (world.nearest_class(rows) == torch.tensor([2, 7]).repeat(20)).float().mean() > 0.9


def test_fitting_again_starts_anew():
    world, other = World(), World(scale=5.0)
    generator = fitted(other)
    generator.fit(world.rows(), world.conditions, 1, 0.1, draws(0))
    samples = [g.sample_classes(world.conditions, 5, draws(1)) for g in (generator, fitted(world))]
    assert torch.equal(*samples)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"covariance": "round"}, ("covariance='round'", *COVARIANCES)),
        ({"components": 0}, ("components=0",)),
        ({"rows_per_component": 1}, ("rows_per_component=1",)),
        ({"shrinkage": 1.5}, ("shrinkage=1.5",)),
    ],
)
def test_a_setting_out_of_range_is_an_error_that_names_it(arguments, named):
    with refused(ValueError, *named):
        GMMGenerator(8, 8, **arguments)
