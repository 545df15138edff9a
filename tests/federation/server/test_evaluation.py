"""Figures from the scores of some of the sites, computed by hand."""

import pytest

from fed_a2v.core.prototype_bank import PrototypeBank
from fed_a2v.federation.protocol import Changes, ClassScores, Scores, SideScores
from fed_a2v.federation.server.evaluation import Coverage, class_figures
from fed_a2v.federation.server.metrics.accuracy import Accuracy
from fed_a2v.federation.server.metrics.base import Evaluation, compute_metrics
from fed_a2v.federation.server.metrics.server_step import ServerStepTest
from fed_a2v.federation.server.metrics.t5 import T5, t5_is_far_behind

TOLD = {"a": {"dog": 10, "rain": 6}, "b": {"dog": 4}, "c": {"siren": 12}}


def scores(t5=None, **clips):
    """Scores of so many clips of each class, half of them right; `t5` is (right, cosine, loss)."""
    side = t5 and SideScores(right_at_1=t5[0], cosine=t5[1], loss=t5[2])
    each = {
        name: ClassScores(clips=n, right_at_1=n // 2, right_at_5=n, cosine=0.6 * n, loss=2.0 * n, t5=side)
        for name, n in clips.items()
    }
    return Scores(each)


def round_figures(by_model, coverage, candidates):
    classes = [str(number) for number in range(candidates)]
    return compute_metrics({"accuracy": Accuracy(), "t5": T5()}, Evaluation(by_model, coverage, classes, None, None))


class Overwriting:
    def compute(self, evaluation):
        return {"loss": 0.0, "own": 1.0}


@pytest.mark.parametrize("taken", [("loss",), ("own", "round"), ("round",)])
def test_a_metric_does_not_replace_a_value_that_the_round_has(taken):
    evaluation = Evaluation({"after": scores(dog=10)}, Coverage(["a"], {"a"}, TOLD), ["dog"], None, None)
    values = compute_metrics({"mine": Overwriting(), "accuracy": Accuracy()}, evaluation, taken)
    assert ("own" in values) == (taken == ("round",) and values["loss"] == 0.0)


def test_failed_sites_count_with_their_reported_test_clips():
    coverage = Coverage(["a"], {"a", "b", "c"}, TOLD)
    assert coverage.figures == {
        "test_clips_total": 32,
        "sites_evaluated": 1,
        "sites_total": 3,
        "not_evaluated": ["b", "c"],
    }
    figures = round_figures({"after": scores(dog=10, rain=6)}, coverage, 3)
    assert figures["per_class"] == {"dog": 0.5, "rain": 0.5, "siren": None}


@pytest.mark.parametrize(
    ("coverage", "sites"),
    [
        (Coverage(["a"], {"a", "b", "c", "d"}, TOLD), 4),  # d has never said how many it has
        (Coverage(["a", "b", "c"], {"a", "b", "c"}, TOLD, nameless=2), 5),
    ],
)
def test_the_total_of_clips_is_unknown_for_sites_that_never_replied(coverage, sites):
    assert coverage.figures["test_clips_total"] is None
    assert coverage.figures["sites_total"] == sites
    figures = class_figures({"after": scores(dog=10)}, PrototypeBank(), 1, coverage)["classes"]
    assert {name: each["test_clips_total"] for name, each in figures.items()} == dict.fromkeys(("dog", "rain", "siren"))


def test_a_class_whose_sites_have_failed_is_listed_with_the_clips_that_were_not_scored():
    coverage = Coverage(["b"], {"a", "b", "c"}, TOLD)
    figures = class_figures({"after": scores(dog=4)}, PrototypeBank(), 1, coverage)["classes"]
    assert {name: (each["test_clips"], each["test_clips_total"]) for name, each in figures.items()} == {
        "dog": (4, 14),
        "rain": (0, 6),
        "siren": (0, 12),
    }
    assert (figures["dog"]["accuracy"], figures["siren"]["accuracy"]) == (0.5, None)


def test_t5_has_figures_only_if_it_is_scored():
    coverage = Coverage(["a"], {"a"}, {"a": {"dog": 8, "rain": 8}})
    row = round_figures({"after": scores((4, 2.0, 24.0), dog=8, rain=8)}, coverage, 50)
    assert {name: value for name, value in row.items() if name.startswith("t5/")} == {
        "t5/accuracy": 0.5,
        "t5/accuracy_low": pytest.approx(0.2800, abs=1e-4),  # of 16 clips
        "t5/accuracy_high": pytest.approx(0.7200, abs=1e-4),
        "t5/cosine": 0.25,
        "t5/loss": 3.0,
        "t5/far_behind": True,  # 0.25 is less than half of 0.6
    }
    by_class = class_figures({"after": scores((4, 2.0, 24.0), dog=8)}, PrototypeBank(), 1, coverage)["classes"]
    assert (by_class["dog"]["t5/accuracy"], by_class["dog"]["t5/cosine"]) == (0.5, 0.25)
    assert (by_class["rain"]["t5/accuracy"], by_class["rain"]["t5/cosine"]) == (None, None)
    plain = round_figures({"after": scores(dog=8)}, coverage, 50)
    assert not [name for name in plain if name.startswith("t5/")]
    assert "t5/accuracy" not in class_figures({"after": scores(dog=8)}, PrototypeBank(), 1, coverage)["classes"]["dog"]


@pytest.mark.parametrize(
    ("right", "cosine", "clip_right", "behind"),
    [
        (50, 30.0, 50, False),  # 0.30 of a cosine of 0.60
        (50, 29.0, 50, True),
        (16, 60.0, 50, True),  # among ten classes 0.16 of 100 clips is within two standard errors of chance
        (17, 60.0, 50, False),
        (10, 0.0, 16, False),  # CLIP has learned nothing either
    ],
)
def test_t5_is_far_behind_where_it_is_at_chance_or_at_less_than_half_of_clips_cosine(right, cosine, clip_right, behind):
    side = SideScores(right_at_1=right, cosine=cosine, loss=0.0)
    of_dogs = ClassScores(clips=100, right_at_1=clip_right, right_at_5=100, cosine=60.0, loss=0.0, t5=side)
    assert t5_is_far_behind(Scores({"dog": of_dogs}), candidates=10) == behind


def step_scores(better, worse, before=10, clips=20):
    """Scores of one class before the server step, and after it."""
    sums = {"clips": clips, "right_at_5": clips, "cosine": 0.0, "loss": 0.0}
    changes = Changes(better=better, worse=worse)
    return {
        "before": Scores({"dog": ClassScores(right_at_1=before, **sums)}),
        "after": Scores({"dog": ClassScores(right_at_1=before + better - worse, changes=changes, **sums)}),
    }


def test_the_server_step_is_tested_on_the_clips_that_it_changes():
    metrics = {"accuracy": Accuracy(), "server_step": ServerStepTest()}
    coverage = Coverage(["a"], {"a", "b"}, {"a": {"dog": 20}})
    row = compute_metrics(metrics, Evaluation(step_scores(9, 2), coverage, ["dog"], None, None))
    assert (row["server_step/better"], row["server_step/worse"]) == (9, 2)
    assert row["server_step/p"] == pytest.approx(134 / 2048)
    assert row["accuracy"] == 17 / 20
    assert row["accuracy_before"] == 10 / 20
    for name in ("accuracy", "accuracy_at_5", "accuracy_before"):
        assert 0 <= row[f"{name}_low"] < 1
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] <= 1
    # Of the 20 clips that were scored, though site b's are missing: (17 + z²/2) / (20 + z²) is the centre.
    assert (row["accuracy_low"] + row["accuracy_high"]) / 2 == pytest.approx(18.9208 / 23.8416)
    alone = {"after": scores(dog=20)}
    row = compute_metrics(metrics, Evaluation(alone, coverage, ["dog"], None, None))
    assert not [name for name in row if name.startswith(("server_step/", "accuracy_before"))]


def test_the_figures_by_class_have_their_intervals_and_the_changed_clips():
    coverage = Coverage(["a"], {"a", "b"}, {"a": {"dog": 20}, "b": {"siren": 4}})
    classes = class_figures(step_scores(9, 2), PrototypeBank(), 1, coverage)["classes"]
    dog, siren = classes["dog"], classes["siren"]
    assert list(dog) == list(siren)
    assert (dog["better"], dog["worse"], siren["better"], siren["worse"]) == (9, 2, None, None)
    for name in ("accuracy", "accuracy_at_5", "accuracy_before"):
        assert dog[f"{name}_low"] <= dog[name] <= dog[f"{name}_high"]
        assert (siren[f"{name}_low"], siren[f"{name}_high"]) == (None, None)
    assert "better" not in class_figures({"after": scores(dog=4)}, PrototypeBank(), 1, coverage)["classes"]["dog"]
