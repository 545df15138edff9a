import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_a2v.config.sections.data import PartitionSettings
from fed_a2v.data.clips import SPLITS
from fed_a2v.data.errors import PartitionError
from fed_a2v.data.partition import SiteClips, check_disjoint, describe, partition
from tests.refusals import refused


def asked(kind, sites, each=None, alpha=0.5, shards=2, least=1, by_set=False):
    return PartitionSettings(
        kind=kind,
        sites=sites,
        classes_per_site=each,
        alpha=alpha,
        shards_per_site=shards,
        min_clips=least,
        by_set=by_set,
    )


def even(make_clips, classes, train=6, test=2, validation=0):
    splits = ["train"] * train + ["validation"] * validation + ["test"] * test
    labels = [label for label in range(classes) for _ in splits]
    return make_clips(labels, splits * classes)


def classes_at(site, clips, split="train"):
    return set(clips.labels[site.rows(split)].tolist())


def rows_of(sites):
    return [[site.rows(split).tolist() for split in SPLITS] for site in sites]


def random_clips(make_clips, data):
    classes = data.draw(st.integers(1, 6))
    count = data.draw(st.integers(1, 60))
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    splits = data.draw(st.lists(st.sampled_from(SPLITS), min_size=count, max_size=count))
    return make_clips(labels, splits, classes)


@given(st.data())
def test_any_partition_is_disjoint_complete_and_seeded_or_our_error(make_clips, data):
    clips = random_clips(make_clips, data)
    settings_ = asked(
        data.draw(st.sampled_from(["classes", "dirichlet", "iid", "own"])),
        data.draw(st.integers(1, 12)),
        data.draw(st.none() | st.integers(1, 8)),
        data.draw(st.sampled_from([1e-300, 1e-3, 0.1, 1.0, 1e3, 1e308])),
    )
    seed = data.draw(st.integers(0, 3))
    try:
        sites = partition(clips, settings_, seed)
    except PartitionError:
        assert settings_.kind == "classes" or len(clips.rows("train")) < settings_.sites
        return
    assert rows_of(sites) == rows_of(partition(clips, settings_, seed))
    assert len(sites) == (1 if settings_.kind == "own" else settings_.sites)
    rows = sorted(row for site in sites for split in SPLITS for row in site.rows(split).tolist())
    assert len(rows) == len(set(rows))
    for site in sites:
        assert len(site.train)
        for split in SPLITS:
            assert all(clips.splits[row] == split for row in site.rows(split))
    if settings_.kind == "dirichlet":
        taught = set(clips.labels[clips.rows("train")].tolist())
        assert all(classes_at(site, clips, "test") & taught <= classes_at(site, clips) for site in sites)
    if settings_.kind != "classes":
        assert rows == list(range(len(clips)))
    else:
        trained = set().union(*(classes_at(site, clips, split) for site in sites for split in SPLITS))
        assert rows == [row for row in range(len(clips)) if int(clips.labels[row]) in trained]


@pytest.mark.parametrize(("sites", "each"), [(5, 2), (5, None), (10, 1), (10, None)])
def test_classes_are_dealt_whole_where_they_go_round(make_clips, sites, each):
    clips = even(make_clips, 10)
    parts = partition(clips, asked("classes", sites, each), seed=0)
    assert [len(classes_at(site, clips)) for site in parts] == [10 // sites] * sites
    assert set().union(*(classes_at(site, clips) for site in parts)) == set(range(10))
    assert all(classes_at(site, clips) == classes_at(site, clips, "test") for site in parts)
    assert all(len(site.train) == 6 * 10 // sites for site in parts)


def test_the_seed_decides_who_gets_which_class(make_clips):
    clips = even(make_clips, 10)
    dealt = {
        tuple(tuple(sorted(classes_at(site, clips))) for site in partition(clips, asked("classes", 5, 2), seed))
        for seed in range(5)
    }
    assert len(dealt) == 5


def test_a_class_of_several_sites_is_divided_among_them(make_clips):
    clips = even(make_clips, 2, train=6, test=4)
    parts = partition(clips, asked("classes", 4, 1), seed=0)
    assert [len(site.train) for site in parts] == [3, 3, 3, 3]
    assert [len(site.test) for site in parts] == [2, 2, 2, 2]


def test_classes_that_no_site_records_are_warned_of_and_written_down(make_clips, caplog):
    clips = even(make_clips, 5)
    parts = partition(clips, asked("classes", 2, 2), seed=0)
    (unassigned,) = describe(parts, clips)["unassigned"]
    assert unassigned in caplog.text
    assert "1 of 5" in caplog.text


@pytest.mark.parametrize("kind", ["classes", "dirichlet", "iid"])
def test_more_sites_than_can_get_a_clip_is_an_error_with_the_remedy(make_clips, kind):
    with refused(PartitionError, "partition.sites"):
        partition(even(make_clips, 2, train=2), asked(kind, 5, 1), seed=0)


def test_more_classes_a_site_than_there_are_is_an_error(make_clips):
    with refused(PartitionError, "partition.classes_per_site=3", 2, "null"):
        partition(even(make_clips, 2), asked("classes", 2, 3), seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_dirichlet_tests_a_site_on_what_it_trains_on(make_clips, seed):
    clips = even(make_clips, 10, train=24, validation=8, test=8)
    parts = partition(clips, asked("dirichlet", 10, alpha=0.1), seed)
    for site in parts:
        assert len(site.train)
        assert classes_at(site, clips, "test") <= classes_at(site, clips)
        assert classes_at(site, clips, "validation") <= classes_at(site, clips)
        for label in classes_at(site, clips):
            train = int((clips.labels[site.train] == label).sum())
            assert abs(train / 3 - int((clips.labels[site.test] == label).sum())) <= 1


def test_a_small_alpha_is_more_skewed_than_a_large_one(make_clips):
    clips = even(make_clips, 10, train=24)
    spread = {
        alpha: np.mean([len(classes_at(s, clips)) for s in partition(clips, asked("dirichlet", 5, alpha=alpha), 0)])
        for alpha in (0.05, 100.0)
    }
    assert spread[0.05] < 5 < spread[100.0] == 10


def test_the_most_even_dirichlet_draw_is_even(make_clips):
    clips = even(make_clips, 2, train=10)
    parts = partition(clips, asked("dirichlet", 5, alpha=1e308), seed=0)
    assert [len(site.train) for site in parts] == [4] * 5


def test_iid_gives_every_site_a_like_share_of_every_class(make_clips):
    clips = even(make_clips, 4, train=10, test=5)
    parts = partition(clips, asked("iid", 5), seed=0)
    for site in parts:
        assert np.bincount(clips.labels[site.train]).tolist() == [2, 2, 2, 2]
        assert np.bincount(clips.labels[site.test]).tolist() == [1, 1, 1, 1]


def test_own_is_one_site_with_everything(make_clips):
    clips = even(make_clips, 3, validation=1)
    (site,) = partition(clips, asked("own", 7), seed=0)
    assert (len(site.train), len(site.validation), len(site.test)) == (18, 3, 6)


def test_every_partition_is_checked_for_overlap(make_clips, monkeypatch):
    checked = []
    monkeypatch.setattr("fed_a2v.data.partition.check_disjoint", lambda sites, clips: checked.append(sites))
    sites = partition(even(make_clips, 2), asked("iid", 2), seed=0)
    assert checked == [sites]


def test_overlap_is_found_between_sites_and_between_splits(make_clips):
    clips = make_clips([0, 0, 0], ["train", "train", "test"])
    none = np.array([], dtype=np.int64)
    a = SiteClips("site-000", np.array([0]), none, np.array([2]))
    check_disjoint([a, SiteClips("site-001", np.array([1]), none, none)], clips)
    with refused(PartitionError, "clip-2", "test", "site-000", "site-001"):
        check_disjoint([a, SiteClips("site-001", np.array([1]), none, np.array([2]))], clips)
    with refused(PartitionError, "clip-2", "test", "train", "site-000"):
        check_disjoint([SiteClips("site-000", np.array([0, 2]), none, none)], clips)


def test_the_description_says_who_has_what_as_json(make_clips):
    clips = even(make_clips, 2, train=3, test=1)
    described = json.loads(json.dumps(describe(partition(clips, asked("classes", 2, 1), seed=0), clips)))
    assert described["unassigned"] == []
    assert sorted(described["sites"]) == ["site-000", "site-001"]
    for site in described["sites"].values():
        ((_, counts),) = site["classes"].items()
        assert counts == {"train": 3, "validation": 0, "test": 1}
        assert len(site["clips"]["train"]) == 3
    keys = [key for site in described["sites"].values() for split in site["clips"].values() for key in split]
    assert sorted(keys) == sorted(clips.keys)


@pytest.mark.parametrize("kind", ["classes", "dirichlet", "iid"])
def test_test_clips_of_unseen_classes_are_divided_among_all_sites_and_no_site_trains_on_them(make_clips, kind):
    clips = even(make_clips, 6, train=12, test=8)
    # Class 2 is unseen: it has test clips only.
    pairs = list(zip(clips.labels.tolist(), clips.splits, strict=True))
    labels, splits = zip(*(pair for pair in pairs if pair[0] != 2 or pair[1] == "test"), strict=True)
    clips = make_clips(list(labels), list(splits))
    clips = replace(clips, unseen=(clips.classes[2],))
    sites = partition(clips, asked(kind, 5, alpha=5.0), 0)
    assert all(2 not in classes_at(site, clips) for site in sites)
    tested = [int((clips.labels.numpy()[site.test] == 2).sum()) for site in sites]
    assert sum(tested) == 8
    if kind == "classes":
        assert tested == [2, 2, 2, 1, 1]
        # The others are dealt as if there were no class 2.
        assert sorted(len(classes_at(site, clips)) for site in sites) == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("seed", range(3))
def test_dirichlet_gives_every_site_its_least_number_of_clips(make_clips, seed):
    clips = even(make_clips, 4, train=25, test=8)
    sites = partition(clips, asked("dirichlet", 20, alpha=0.05, least=4), seed)
    assert min(len(site.train) for site in sites) == 4
    assert sum(len(site.train) for site in sites) == 100
    with refused(PartitionError, "partition.min_clips", 4, 100, 26, "partition.sites", 25):
        partition(clips, asked("dirichlet", 26, least=4), seed)


@pytest.mark.parametrize("kind", ["classes", "iid"])
def test_sites_below_the_least_number_of_clips_are_an_error(make_clips, kind):
    with refused(PartitionError, 7, "site-000", "partition.sites=3"):
        partition(even(make_clips, 3), asked(kind, 3, 1, least=7), seed=0)


def test_every_data_set_of_a_mix_can_have_sites_of_its_own(make_clips):
    clips = replace(even(make_clips, 4, test=4), sets=np.repeat([0, 0, 1, 2], 10))
    sites = partition(clips, asked("iid", 5, by_set=True), seed=0)
    assert [site.name for site in sites] == [f"site-00{i}" for i in range(5)]
    assert [classes_at(site, clips) for site in sites] == [{0, 1}, {0, 1}, {2}, {2}, {3}]
    assert [classes_at(site, clips, "test") for site in sites] == [{0, 1}, {0, 1}, {2}, {2}, {3}]
    assert sum(len(site.train) for site in sites) == 24
