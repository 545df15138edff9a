import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.data.errors import PartitionError
from fed_a2v.data.flwr_partition import pathological, shards
from fed_a2v.data.partition import partition
from fed_a2v.install import install_hint
from tests.data.test_partition import asked, classes_at, even, random_clips, rows_of
from tests.refusals import refused


@pytest.fixture(scope="module", autouse=True)
def _flwr_datasets():
    pytest.importorskip("flwr_datasets")


@pytest.mark.parametrize("kind", ["pathological", "shards"])
@given(st.data())
def test_any_partition_is_disjoint_seeded_and_complete_or_our_error(make_clips, kind, data):
    clips = random_clips(make_clips, data)
    wanted = asked(
        kind, data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4)), shards=data.draw(st.integers(1, 3))
    )
    try:
        sites = partition(clips, wanted, seed=1)
    except PartitionError as error:
        assert "partition.sites" in str(error) or "partition.classes_per_site" in str(error)
        return
    assert rows_of(sites) == rows_of(partition(clips, wanted, seed=1))
    assert all(len(site.train) for site in sites)
    trained = np.concatenate([site.train for site in sites])
    assert len(set(trained.tolist())) == len(trained)
    taught = set(clips.labels[clips.rows("train")].tolist())
    for site in sites:
        assert classes_at(site, clips, "test") & taught <= classes_at(site, clips)
    if kind == "shards":
        assert len(clips.rows("train")) - len(trained) < wanted.sites * wanted.shards_per_site


def test_every_site_draws_its_number_of_classes(make_clips):
    clips = even(make_clips, 10, train=20, validation=5, test=10)
    sites = partition(clips, asked("pathological", 8, 3), seed=0)
    assert all(len(classes_at(site, clips)) == 3 for site in sites)
    assert all(classes_at(site, clips, "test") == classes_at(site, clips) for site in sites)
    site_of_clip = [pathological(clips.labels.numpy(), 8, 3, seed).tolist() for seed in (0, 0, 1)]
    assert site_of_clip[0] == site_of_clip[1] != site_of_clip[2]


def test_classes_that_no_site_draws_are_of_no_site_and_named(make_clips, caplog):
    clips = even(make_clips, 6)
    (site,) = partition(clips, asked("pathological", 1, 2), seed=0)
    assert classes_at(site, clips, "test") == classes_at(site, clips)
    assert "4 of 6" in caplog.text


def test_shards_are_of_one_size_and_of_few_classes(make_clips):
    clips = even(make_clips, 10, train=20, test=10)
    sites = partition(clips, asked("shards", 10, shards=2), seed=0)
    assert all(len(site.train) == 20 for site in sites)
    assert all(len(classes_at(site, clips)) <= 2 for site in sites)
    site_of_clip = [shards(clips.labels.numpy(), 10, 2, seed).tolist() for seed in (0, 0, 1)]
    assert site_of_clip[0] == site_of_clip[1] != site_of_clip[2]


def test_what_cannot_be_is_an_error_with_the_remedy(make_clips):
    with refused(PartitionError, "partition.classes_per_site=3", 2):
        partition(even(make_clips, 2), asked("pathological", 2, 3), seed=0)
    with refused(PartitionError, 30, 2, "partition.sites", "partition.classes_per_site"):
        partition(even(make_clips, 2, train=3), asked("pathological", 30, 2), seed=0)
    with refused(PartitionError, 8, 5, 2, "partition.sites", "partition.shards_per_site"):
        partition(even(make_clips, 2, train=4), asked("shards", 5), seed=0)


@pytest.mark.parametrize("kind", ["pathological", "shards"])
def test_without_the_package_the_error_says_what_to_install(make_clips, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with refused(PartitionError, f"partition={kind}", "flwr-datasets", install_hint("partitions")):
        partition(even(make_clips, 4), asked(kind, 2, 2), seed=0)
