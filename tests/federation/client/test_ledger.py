"""The clips of all averages that leave a site: two runs together may not request what one may not."""

import json

import numpy as np
import pytest
from flwr.common import parameters_to_ndarrays

from fed_a2v.federation.client.flower_client import A2VClient
from fed_a2v.federation.client.ledger import Ledger, LedgerError
from fed_a2v.federation.client.node_config import NodeConfigError
from fed_a2v.federation.client.privacy_policy import PolicyViolationError
from tests.federation.helpers import Federation
from tests.refusals import refused


def clips(*numbers):
    return frozenset(f"clip {number}" for number in numbers)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "site" / "ledger.json", min_clips=3)


def test_the_same_averages_may_be_requested_again(ledger):
    for _ in range(2):
        ledger.admit([clips(1, 2, 3, 4, 5, 6), clips(1, 2, 3), clips(4, 5, 6)])


@pytest.mark.parametrize(
    ("other", "apart"), [((1, 2, 3, 4, 5), 1), ((1, 2, 3, 4, 5, 6, 7, 8), 2), ((1, 2, 3, 4, 5, 7), 1), ((1, 2), 2)]
)
def test_an_average_that_differs_by_a_few_clips_from_an_earlier_one_is_refused(ledger, tmp_path, other, apart):
    ledger.admit([clips(1, 2, 3, 4, 5, 6)])
    with refused(PolicyViolationError, apart, "min-clips=3") as caught:
        Ledger(tmp_path / "site" / "ledger.json", 3).admit([clips(*other)])
    assert "clip 1" not in str(caught.value)


@pytest.mark.parametrize("other", [(1, 2, 3), (4, 5, 6, 7, 8, 9), (11, 12, 13), (1, 2, 3, 4, 5, 6, 7, 8, 9)])
def test_an_average_that_differs_by_min_clips_is_allowed(ledger, other):
    ledger.admit([clips(1, 2, 3, 4, 5, 6)])
    ledger.admit([clips(*other)])


def test_averages_that_reveal_a_clip_only_in_combination_are_refused(ledger):
    """Each two differ by six clips or more; half of the first and the second less the third is clip 4."""
    ledger.admit([clips(1, 2, 3, 5, 6, 7)])
    ledger.admit([clips(8, 9, 10)])
    with refused(PolicyViolationError, 1):
        ledger.admit([clips(1, 2, 3, 4), clips(4, 5, 6, 7)])


def test_averages_within_one_message_are_compared_and_none_is_recorded_after_a_refusal(ledger):
    with refused(PolicyViolationError, 1):
        ledger.admit([clips(1, 2, 3, 4), clips(1, 2, 3, 4, 5), clips(20, 21, 22)])
    ledger.admit([clips(1, 2, 3, 4, 5, 6)])
    ledger.admit([clips(20, 21, 22, 23)])


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"version": 9, "averages": []}', '{"version":1,"averages":3}']
)
def test_a_damaged_ledger_lets_nothing_out(ledger, content):
    ledger.admit([clips(1, 2, 3)])
    ledger.path.write_text(content)
    with refused(LedgerError) as caught:
        ledger.admit([clips(1, 2, 3)])
    assert str(ledger.path) not in str(caught.value)
    assert ledger.path.read_text() == content


def test_a_ledger_that_cannot_be_written_lets_nothing_out(tmp_path):
    (tmp_path / "file").touch()
    with refused(LedgerError) as caught:
        Ledger(tmp_path / "file" / "ledger.json", 3).admit([clips(1, 2, 3)])
    assert str(tmp_path) not in str(caught.value)


def test_the_ledger_contains_no_names_of_clips(ledger):
    ledger.admit([frozenset({"Miller.wav", "Smith.wav", "\udcff.wav"})])
    assert "Miller" not in ledger.path.read_text()


# Through messages

CLASSES = ["dog", "rain"]


@pytest.fixture
def site(tmp_path):
    """A node with min-clips=4 and a ledger, and a function that sends it changed settings."""
    labels = np.repeat(["dog", "rain", "siren"], [48, 48, 8])
    rows = np.random.default_rng(0).normal(size=(len(labels), 20)).astype(np.float32)
    np.savez(tmp_path / "clips.npz", embeddings=rows, category=labels, fold=np.tile([1, 2, 3, 4], 26))
    own = {"site": "lab", "data-dir": str(tmp_path / "clips.npz"), "cache-dir": str(tmp_path / "cache")}
    words = ("dataset=embeddings", "partition=own", "dataset.classes=[dog,rain,siren]", "share.min_clips=4")
    federation = Federation(*words, node_configs=[own]).start()
    own |= {"min-clips": 4, "ledger": str(tmp_path / "ledger.json")}

    def ask(task="train", **changes):
        more = {"held": ""} if task != "evaluate" else {"models": json.dumps(["after"])}
        asked = federation.strategy._message(task, 0 if task == "register" else 1, "site-x", 0, **more)
        settings = json.loads(asked["settings"])
        for key, value in changes.items():
            section, _, name = key.partition("__")
            settings[section][name] = value
        asked["settings"] = json.dumps(settings)
        node = A2VClient(own, deployed=True)
        weights = parameters_to_ndarrays(federation.parameters)
        return (node.evaluate if task == "evaluate" else node.fit)(weights, asked)

    return ask


def test_runs_that_differ_by_a_clip_a_class_are_refused(site):
    assert site("register", dataset__max_clips_per_class=40)[1]
    with refused(PolicyViolationError, "min-clips=4"):
        site("register", dataset__max_clips_per_class=41)
    assert site("register", dataset__max_clips_per_class=40)[1]


@pytest.mark.parametrize("prototypes", [4, 5])
def test_the_same_clips_in_other_groups_are_refused(site, prototypes):
    assert site("register", share__prototypes=3)[1]
    with refused(PolicyViolationError, "min-clips=4"):
        site("register", share__prototypes=prototypes)


def test_another_name_for_the_class_does_not_help(site):
    assert site("register", dataset__max_clips_per_class=40)[1]
    with refused(PolicyViolationError, "min-clips=4"):
        site("register", dataset__max_clips_per_class=41, dataset__aliases={"dog": "rain", "rain": "dog"})


def test_classes_of_few_clips_take_no_part_in_anything(site):
    """Of the 8 clips of a siren 6 are for training and 2 for the test."""
    for task in ("register", "train"):
        _, clips, metrics = site(task)
        manifest = json.loads(metrics["manifest"])
        assert {entry["name"]: entry["count"] for entry in manifest["classes"]} == {"dog": 36, "rain": 36, "siren": 6}
        assert manifest["test_clips"] == {"dog": 12, "rain": 12}
        assert clips == 36 + 36 + 6
    scores = json.loads(site("evaluate")[2]["manifest"])["models"]["after"]
    assert set(scores) == {"dog", "rain"}


def test_a_class_that_a_run_reduces_to_one_clip_is_not_used(site):
    with refused(PolicyViolationError, "min-clips=4"):
        site("train", dataset__max_clips_per_class=4)  # of which 3 are for training


def test_min_clips_need_a_ledger(tmp_path):
    with refused(NodeConfigError, "ledger", "min-clips"):
        A2VClient({"min-clips": 4, "cache-dir": str(tmp_path)}, deployed=True).fit([], {})
