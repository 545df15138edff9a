"""Summaries of the rows of a run, computed by hand."""

import pytest

from fed_a2v.runs.rounds import (
    best_row,
    closing_lines,
    fully_evaluated,
    gain_over,
    gain_words,
    gains,
    remarks,
    scored_on,
)


def row(number, accuracy=None, before=None, clips=80, total=80, sites=5, of=5, **more):
    coverage = {"test_clips": clips, "test_clips_total": total, "sites_evaluated": sites, "sites_total": of}
    return {"round": number, "accuracy": accuracy, "accuracy_before": before, **coverage, **more}


PART = {"clips": 48, "sites": 3}


def test_the_clips_of_a_figure_are_given():
    assert scored_on(row(1, 0.5)) == "80 test clips"
    assert scored_on(row(1, 1.0, **PART)) == "48 of 80 test clips, 3 of 5 sites"
    assert scored_on(row(1, 1.0, total=None, **PART)) == "48 of an unknown number of test clips, 3 of 5 sites"
    assert fully_evaluated({"round": 1, "accuracy": 0.9}), "pooled training has no sites"


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([row(1, 0.5), row(2, 1.0, **PART), row(3, 0.7), row(4, 0.6)], 3),
        ([row(1, 0.7), row(2, 0.7)], 1),
        ([row(1, 1.0, clips=16, sites=1), row(2, 0.6, **PART), row(3, 0.8, **PART), row(4, None)], 3),
        ([row(1, 1.0, total=None, **PART), row(2, 0.2, clips=64, sites=4)], 2),
        ([row(1, 0.9, accuracy_validation=0.5), row(2, 0.5, accuracy_validation=0.6), row(3, 1.0)], 2),
        ([row(1, 0.5, accuracy_validation=0.5), row(2, 0.5, accuracy_validation=0.9, **PART)], 1),
        (
            [
                row(1, 0.5, accuracy_validation=0.9, validation_clips=5, **PART),
                row(2, 0.5, accuracy_validation=0.8, validation_clips=9, clips=16, sites=1),
            ],
            2,
        ),
        ([row(1, None)], None),
        ([], None),
    ],
    ids=[
        "full before part",
        "the first of equals",
        "most clips",
        "an unknown total",
        "validation decides",
        "full before part there, too",
        "most clips for validation",
        "no accuracy",
        "no rows",
    ],
)
def test_the_best_round_is_one_in_which_all_sites_were_evaluated_or_else_the_most_clips(rows, best):
    found = best_row(rows)
    assert (found and found["round"]) == best


def test_the_gains_of_the_first_round_of_the_last_and_over_the_run_without_the_step():
    rows = [row(1, 0.75, 0.25), row(2, 0.875, 0.75), row(3, 0.875, 0.875)]
    without = [row(1, 0.25), row(2, 0.375), row(3, 0.5), row(4, 0.625)]
    assert gains(rows, without) == {"gain_first_round": 0.5, "gain_last_round": 0.0, "gain_over_fedavg": 0.375}
    assert gains(rows)["gain_over_fedavg"] is None
    assert gains(rows, without[:2])["gain_over_fedavg"] is None, "another round's is no measure"
    assert gains([row(2, 0.5, 0.25)])["gain_first_round"] is None
    assert gains([row(1, 0.5)]) == dict.fromkeys(("gain_first_round", "gain_last_round", "gain_over_fedavg"))


def test_accuracies_on_different_clips_are_not_compared():
    assert gain_over(row(3, 0.875), row(3, 0.5)) == 0.375
    assert gain_over(row(3, 0.875), row(3, 0.5, **PART)) is None
    assert gain_over(row(3, 1.0, **PART), row(3, 0.5)) is None


def test_each_gain_is_named_for_what_it_is():
    results = {"rounds": 5, "gain_first_round": 0.32, "gain_last_round": 0.0, "gain_over_fedavg": 0.326}
    words = gain_words(results)
    for part in ("+0.320 in round 1", "+0.000 in round 5", "average of the same round", "+0.326 over FedAvg"):
        assert part in words
    assert gain_words({"rounds": 1, "gain_first_round": 0.5, "gain_last_round": 0.5}).count("+0.500") == 1
    assert gain_words({"rounds": 5}) == ""


def test_closing_lines_give_the_clips_of_marked_rounds_and_the_gains():
    rows = [row(1, 0.5), row(2, 0.6, **PART), row(3, 0.7), row(4, 0.8, **PART), row(5, 0.8, clips=64, sites=4)]
    lines = closing_lines(rows, {"rounds": 5, "gain_over_fedavg": 0.25})
    assert lines[:2] == [
        "* Round 2, 4: 48 of 80 test clips, 3 of 5 sites.",
        "* Round 5: 64 of 80 test clips, 4 of 5 sites.",
    ]
    assert "+0.250" in lines[2]
    assert closing_lines([row(1, 0.5)], {"rounds": 1}) == []


def test_remarks_on_partly_evaluated_rounds_and_on_a_weak_t5_side():
    assert remarks([row(1, 0.5), row(2, 0.6)]) == []
    (last,) = remarks([row(1, 0.5), row(2, 1.0, **PART)])
    assert "48 of 80 test clips, 3 of 5 sites" in last
    last, best = remarks([row(1, 0.5, **PART), row(2, 1.0, clips=16, sites=1)])
    assert "16 of 80" in last
    assert "round 1 " in best
    assert "48 of 80" in best
    t5 = {"cosine": 0.44, "t5/cosine": 0.09, "t5/accuracy": 0.125}
    assert remarks([row(1, 0.8, **t5, **{"t5/far_behind": False})]) == []
    (line,) = remarks([row(1, 0.8, **t5, **{"t5/far_behind": True})])
    for part in ("T5", "0.090", "0.440", "0.125", "0.800", "finetune.first_steps"):
        assert part in line
