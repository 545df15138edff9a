"""A run to resume knows its clips by name and content, site and split, and its classes by their clips."""

import logging

import pytest

from fed_a2v.runs.checkpoint import CheckpointError
from fed_a2v.runs.same_data import changes, check_same_data
from tests.refusals import refused


def described(clips, contents=True, classes=None):
    """Two sites and their clips: {key: (site, split, class, content)}."""
    sites = {}
    for key, (site, split, name, content) in clips.items():
        entry = sites.setdefault(site, {"classes": {}, "clips": {}, "contents": {}})
        entry["classes"].setdefault(name, {"train": 0, "test": 0})[split] += 1
        entry["clips"].setdefault(split, []).append(key)
        entry["contents"].setdefault(split, []).append(content if contents else "")
    return {"sites": sites, "unassigned": []}


CLIPS = {
    "dog/1": ("a", "train", "dog", "11"),
    "dog/2": ("a", "test", "dog", "22"),
    "rain/1": ("b", "train", "rain", "33"),
    "rain/2": ("b", "test", "rain", "44"),
}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"rain/1": None, "rain/2": None}, {"classes": "rain", "clips": "rain/1, rain/2"}),
        ({"cat/1": ("b", "train", "cat", "55")}, {"classes": "cat", "clips": "cat/1"}),
        ({"dog/3": ("a", "train", "dog", "55")}, {"clips": "dog/3"}),
        ({"dog/2": None}, {"clips": "dog/2"}),
        ({"dog/1": ("a", "train", "dog", "other")}, {"content": "dog/1"}),
        ({"dog/1": ("b", "train", "dog", "11")}, {"site": "dog/1"}),
        ({"dog/1": ("a", "test", "dog", "11")}, {"split": "dog/1"}),
        ({"dog/1": ("a", "train", "rain", "11")}, {"classes": "dog"}),
    ],
    ids=["class gone", "class new", "clip new", "clip gone", "content", "site", "split", "class of a clip"],
)
def test_each_kind_of_change_is_named(changed, named):
    now = {key: value for key, value in (CLIPS | changed).items() if value is not None}
    found = list(changes(described(CLIPS), described(now)))
    assert len(found) == len(named)
    for (word, names), line in zip(named.items(), found, strict=True):
        assert word in line
        assert names in line
    with refused(CheckpointError, *named.values(), "accept_new_data=true", "resume=never"):
        check_same_data(described(CLIPS), described(now), accept=False)


def test_accepted_changes_are_a_warning(caplog):
    with caplog.at_level(logging.WARNING, "fed_a2v"):
        check_same_data(described(CLIPS), described({key: CLIPS[key] for key in ("dog/1", "dog/2")}), accept=True)
    (line,) = caplog.messages
    assert "rain/1" in line


@pytest.mark.parametrize(
    "before", [described(CLIPS), described(CLIPS, contents=False), {}], ids=["same", "old", "none"]
)
def test_the_same_data_with_unknown_contents_is_accepted(before):
    check_same_data(before, described(CLIPS), accept=False)


@pytest.mark.parametrize(
    "damaged", [{"sites": []}, {"sites": {"a": 1}}, {"other": {}}, {"sites": {"a": {"classes": {}}}}]
)
def test_a_damaged_description_is_refused(damaged):
    with refused(CheckpointError, "partition.json", "resume=never"):
        check_same_data(damaged, described(CLIPS), accept=False)
