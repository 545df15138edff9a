import numpy as np
import pytest
import torch

from fed_a2v.core.projection import MOST_POINTS, SAMPLES, _principal_axes, embedding_map, map_in_space
from tests.core.conftest import StubGenerator, World, assert_same_bits
from tests.core.test_server_step import step_of


def after_a_round(world, generator=None, **settings):
    step = step_of(world, generator, **settings)
    step.run(1, world.updates())
    return step


def test_the_map_shows_prototypes_and_samples_of_every_class():
    world = World(classes=4)
    step = after_a_round(world, "gaussian")
    found = embedding_map(step, 1)
    real = ~found.synthetic
    assert list(found.classes) == list(world.names)
    assert len(found.coordinates) == len(found.labels) == len(found.sites) == len(found.counts)
    assert real.sum() == len(step.bank.rows())
    assert [int(found.synthetic[found.labels == label].sum()) for label in range(4)] == [SAMPLES] * 4
    assert found.counts.sum() == 4 * 24
    assert set(found.sites[real]) == {"site 0", "site 1"}
    assert set(found.sites[~real]) == {""}


def test_nearby_points_are_of_the_same_class():
    found = embedding_map(after_a_round(World(classes=4), "gaussian"), 1)
    means = np.stack([found.coordinates[~found.synthetic & (found.labels == label)].mean(0) for label in range(4)])
    nearest = np.linalg.norm(found.coordinates[:, None] - means, axis=2).argmin(axis=1)
    assert (nearest == found.labels).mean() > 0.9


def test_the_axes_are_those_of_the_real_points_and_ordered():
    world = World(classes=4)
    near, far = (after_a_round(world, StubGenerator(world, distance)) for distance in (0.0, 500.0))
    one, other = embedding_map(near, 1), embedding_map(far, 1)
    np.testing.assert_array_equal(one.coordinates[~one.synthetic], other.coordinates[~other.synthetic])
    spread = one.coordinates[~one.synthetic].var(axis=0)
    assert (np.diff(spread) <= 0).all()
    assert 0 < one.explained.sum() <= 1.0001


def test_the_axes_are_scikit_learns_principal_components():
    from sklearn.decomposition import PCA

    found = embedding_map(after_a_round(World(classes=4), StubGenerator(World(classes=4), 1.0)), 1)
    step = after_a_round(World(classes=4))
    rows = step.bank.rows().embeddings.double().mean(dim=1).numpy()
    pca = PCA(found.coordinates.shape[1], svd_solver="full").fit(rows)
    real = np.sort(np.abs(found.coordinates[~found.synthetic]), axis=0)
    np.testing.assert_allclose(real, np.sort(np.abs(pca.transform(rows)), axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.explained, pca.explained_variance_ratio_, rtol=1e-5)


def test_identical_points_have_a_map():
    mean, axes, explained = _principal_axes(np.ones((3, 5)))
    assert np.array_equal(mean, np.ones(5))
    assert np.isfinite(axes).all()
    assert not explained.any()


def test_a_map_is_reproducible_and_does_not_change_the_step():
    step = after_a_round(World(classes=4), "vae")
    before = step.state_dict()
    first = embedding_map(step, 1)
    torch.rand(3)
    second = embedding_map(step, 1)
    assert_same_bits(step.state_dict(), before)
    for name, array in vars(first).items():
        np.testing.assert_array_equal(array, getattr(second, name))


@pytest.mark.parametrize("tokens", [1, 3])
def test_without_a_generator_the_map_shows_prototypes_only(tokens):
    found = embedding_map(after_a_round(World(classes=4, tokens=tokens)), 1)
    assert not found.synthetic.any()


def test_an_untrained_generator_is_not_shown():
    world = World(classes=4)
    assert not embedding_map(after_a_round(world, "gaussian", finetune=False), 1).synthetic.any()


def test_a_bank_without_prototypes_shows_samples_of_replayed_classes():
    found = embedding_map(after_a_round(World(classes=4), "gaussian", keep_prototypes=False), 1)
    assert found.synthetic.all()
    assert list(found.classes) == list(World(classes=4).names)


def test_a_map_shows_other_embeddings_where_its_own_are():
    step = after_a_round(World(classes=4, tokens=3), "gaussian")
    found, space = map_in_space(step, 1)
    np.testing.assert_array_equal(space.coordinates(space.points), found.coordinates)
    rows = step.bank.rows().embeddings.double().mean(dim=1).numpy()
    np.testing.assert_array_equal(np.sort(space.points[~found.synthetic], axis=0), np.sort(rows, axis=0))
    for row in (0, len(space.points) - 1):
        similarities = space.similarities(space.points[row])
        assert similarities.argmax() == row
        assert similarities[row] == pytest.approx(1)
        assert similarities.min() >= -1 - 1e-9
    opposite = 2 * space.mean - space.points[0]
    assert space.similarities(opposite)[0] == pytest.approx(-1)
    assert not space.similarities(space.mean).any()


def test_without_replies_there_is_no_map():
    assert embedding_map(step_of(World(classes=4)), 1) is None


def test_many_prototypes_are_thinned_evenly():
    world = World(classes=4, width=4)
    step = step_of(world)
    step.fill_bank(1, world.updates(clips_per_class=2 * MOST_POINTS // 4, kind="samples"))
    found = embedding_map(step, 1)
    assert len(found.labels) == MOST_POINTS
    assert np.bincount(found.labels).tolist() == [MOST_POINTS // 4] * 4


def test_samples_that_are_not_finite_are_left_out():
    world = World(classes=4)
    generator = StubGenerator(world, float("inf"))
    step = step_of(world, generator)
    step.fill_bank(1, world.updates())
    step.finetuned_rounds = 1
    found = embedding_map(step, 1)
    assert not found.synthetic.any()
    assert np.isfinite(found.coordinates).all()
