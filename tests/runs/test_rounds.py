"""Summaries of the rows of a run, computed by hand."""

import pytest

from fed_a2v.runs.rounds import (
    accuracy_words,
    best_row,
    closing_lines,
    fully_evaluated,
    gain_over,
    gain_words,
    gains,
    interval_words,
    remarks,
    scored_on,
    step_words,
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


INTERVAL = {"accuracy_low": 0.4, "accuracy_high": 0.6}


def step(better, worse, p):
    return {"server_step/better": better, "server_step/worse": worse, "server_step/p": p}


def test_an_accuracy_is_said_with_its_interval_and_its_clips():
    whole = row(5, 0.5, 0.25, **INTERVAL, accuracy_before_low=0.2, accuracy_before_high=0.3)
    whole |= {"t5/accuracy": 0.125, "t5/accuracy_low": 0.1, "t5/accuracy_high": 0.2}
    assert interval_words(whole) == "95 % 0.400 to 0.600"
    words = accuracy_words(whole)
    for part in ("round 5", "80 test clips", "0.500 (95 % 0.400 to 0.600)", "0.250 (95 % 0.200 to 0.300)", "T5 0.125"):
        assert part in words
    assert "48 of 80 test clips, 3 of 5 sites" in accuracy_words(row(5, 0.5, **INTERVAL, **PART))
    assert interval_words(row(1, 0.5)) == accuracy_words(row(1, 0.5)) == "", "rows of an earlier version"
    assert accuracy_words(row(1, None, accuracy_low=None, accuracy_high=None)) == ""


def test_what_the_server_step_changed_is_said_of_the_first_and_the_last_round():
    rows = [row(1, **step(31, 4, 4e-6)), row(2, **step(9, 2, 0.065)), row(3, **step(0, 0, 1.0))]
    words = step_words(rows)
    assert "round 1: 31 test clips better, 4 worse (McNemar's test: p < 0.001);" in words
    assert "round 2" not in words
    assert "round 3: no test clip" in words
    assert "9 test clips better, 2 worse (McNemar's test: p = 0.065, no difference shown)" in step_words(rows[1:2])
    assert "no difference" not in step_words([row(1, **step(8, 1, 0.039))])
    assert step_words(rows[:1]).count("round 1") == 1
    assert step_words([row(1), row(2)]) == ""


def test_closing_lines_have_the_changed_clips_of_a_run_with_a_server_step_only():
    rows = [row(1, 0.5, **INTERVAL, **step(31, 4, 4e-6))]
    with_step = closing_lines(rows, {"rounds": 1, "gain_first_round": 0.25, "gain_last_round": 0.25})
    assert len(with_step) == 3
    assert "0.400 to 0.600" in with_step[0]
    assert "p < 0.001" in with_step[2]
    assert len(closing_lines(rows, {"rounds": 1})) == 1


@pytest.mark.parametrize(("clips", "warned"), [(99, True), (100, False)])
def test_a_small_test_is_remarked_on_once(clips, warned):
    lines = remarks(
        [row(1, 0.5, **INTERVAL, clips=clips, total=clips), row(2, 0.5, **INTERVAL, clips=clips, total=clips)]
    )
    assert len(lines) == warned
    assert all("99 test clips" in line and "0.400 to 0.600" in line for line in lines)


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
