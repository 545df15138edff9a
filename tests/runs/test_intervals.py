"""Intervals and verdicts of differences, computed by hand."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

from fed_a2v.runs.intervals import (
    Interval,
    caption,
    crossed_table,
    figures_table,
    mean_interval,
    paired_interval,
    summarise,
    verdict,
)

DIFFERENCES = [0.01, 0.03, 0.02, 0.04]  # mean 0.025, deviation 0.0129099


def test_an_interval_is_students_where_the_pairs_have_nothing_in_common():
    found = paired_interval(DIFFERENCES)
    reach = 3.182446 * 0.0129099 / 2  # t of three degrees of freedom; the root of four
    assert (found.mean, found.low, found.high) == pytest.approx((0.025, 0.025 - reach, 0.025 + reach), abs=1e-6)
    two = paired_interval([0.0, 0.02])
    assert two.high == pytest.approx(0.01 + 12.706205 * 0.01, abs=1e-6)


def test_folds_that_share_training_clips_widen_it():
    found = paired_interval(DIFFERENCES, test_per_training=1 / 3)
    reach = 3.182446 * 0.0129099 * math.sqrt(1 / 4 + 1 / 3)
    assert (found.low, found.high) == pytest.approx((0.025 - reach, 0.025 + reach), abs=1e-6)


def test_the_order_and_the_sign_of_the_pairs_do_not_matter():
    found, turned = paired_interval(DIFFERENCES), paired_interval([-value for value in reversed(DIFFERENCES)])
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


def test_one_pair_has_no_spread_and_equal_pairs_have_none_either():
    assert paired_interval([0.3]) == Interval(0.3, -math.inf, math.inf)
    assert paired_interval([0.5, 0.5, 0.5], 0.25) == Interval(0.5, -math.inf, math.inf)
    single_precision = float(np.float32(0.55)) - 0.05
    assert math.isinf(paired_interval([0.5, single_precision]).reach)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    draws = random.normal(0.2, 1.0, size=(2000, 5))
    found = [paired_interval(row.tolist()) for row in draws]
    assert sum(each.low <= 0.2 <= each.high for each in found) / 2000 == pytest.approx(0.95, abs=0.015)


# Words


def said(**intervals):
    """The arms that the sentence names as below, as above, and as on no side; and the sentence."""
    text = verdict({name: Interval(*ends) for name, ends in intervals.items()})
    known, _, unclear = text.partition("no established difference")
    below, _, above = known.partition("above prototypes")
    return tuple({name for name in intervals if f'"{name}"' in part} for part in (below, above, unclear)), text


def test_a_difference_is_established_where_its_interval_leaves_zero_out():
    parts, text = said(
        worse=(-0.2, -0.3, -0.1), better=(0.01, 0.001, 0.02), same=(0.0, -0.01, 0.01), edge=(0.1, 0.0, 0.2)
    )
    assert parts == ({"worse"}, {"better"}, {"same", "edge"})
    assert "±0.200" in text
    assert "(-0.200)" in text
    assert "(+0.010)" in text


def test_nothing_is_established_by_one_pair():
    parts, text = said(vae=(0.3, -math.inf, math.inf))
    assert parts == (set(), set(), {"vae"})
    assert "inf" not in text


def test_a_verdict_without_unclear_arms_has_one_part():
    parts, text = said(FedAvg=(-0.2, -0.3, -0.1))
    assert parts == ({"FedAvg"}, set(), set())
    assert "no established" not in text


@pytest.mark.parametrize(
    ("ends", "word"),
    [
        ((0.002, -0.011, 0.015), "no difference shown"),
        ((0.02, 0.001, 0.039), "better"),
        ((-0.02, -0.039, -0.001), "worse"),
        ((0.02, -math.inf, math.inf), "without an interval"),
    ],
)
def test_a_pair_of_arms_has_one_sentence_in_points(ends, word):
    said = Interval(*ends).sentence("vae", "prototypes")
    assert said.startswith(f"vae against prototypes: {100 * ends[0]:+.1f} points")
    assert word in said
    assert "inf" not in said
    assert (f"95 % {100 * ends[1]:+.1f} to {100 * ends[2]:+.1f}" in said) == (-1 < ends[1] < ends[2])


def test_an_interval_of_a_mean_accuracy_stays_an_accuracy():
    assert mean_interval([0.9, 1.0]).high == 1.0
    assert mean_interval([0.0, 0.1]).low == 0.0
    assert mean_interval([0.2, 0.3, 0.4]).high == pytest.approx(0.3 + 4.302653 * 0.1 / math.sqrt(3), abs=1e-6)
    assert math.isinf(mean_interval([0.5]).reach)
    assert math.isinf(mean_interval([]).reach)


# Summaries


def rows(accuracy, site=5, server=40):
    taken = {"site/optimiser_steps": site, "server/optimiser_steps": server}
    return [{"accuracy": 0.1, **taken}, {"accuracy": accuracy, **taken}]


PAIRS = [(1, 0), (1, 1), (2, 0), (2, 1)]
ARMS = {
    "FedAvg, as many steps": [rows(value, 45, 0) for value in (0.5, 0.6, 0.5, 0.6)],
    "prototypes": [rows(value) for value in (0.90, 0.91, 0.92, 0.93)],
    "vae": [rows(value) for value in (0.91, 0.94, 0.94, 0.97)],
}


def test_a_summary_pairs_runs_of_the_same_fold_and_seed():
    found = summarise(PAIRS, ARMS, 1 / 3)
    vae = found["arms"]["vae"]
    assert (vae["mean"], vae["deviation"]) == pytest.approx((0.94, 0.0244949), abs=1e-6)
    assert vae["accuracy"] == [0.91, 0.94, 0.94, 0.97]
    wanted = paired_interval(DIFFERENCES, 1 / 3)
    assert (vae["difference"], vae["low"], vae["high"]) == pytest.approx((wanted.mean, wanted.low, wanted.high))
    assert "difference" not in found["arms"]["prototypes"]
    assert (found["arms"]["FedAvg, as many steps"]["site_steps"], vae["site_steps"], vae["server_steps"]) == (
        90,
        10,
        80,
    )
    assert found["pairs"][2] == {"fold": 2, "seed": 0}


def test_the_experiment_is_set_against_every_arm():
    found = summarise(PAIRS, ARMS, 1 / 3)
    assert list(found["against"]) == ["FedAvg, as many steps", "prototypes"]
    vae = found["arms"]["vae"]
    assert found["against"]["prototypes"] == {key: vae[key] for key in ("difference", "low", "high")}
    assert found["against"]["FedAvg, as many steps"]["difference"] == pytest.approx(0.39)
    assert [sentence.split(":")[0] for sentence in found["sentences"]] == [
        "vae against FedAvg, as many steps",
        "vae against prototypes",
    ]


def test_another_arm_can_be_the_reference():
    found = summarise(PAIRS, {"sums": ARMS["prototypes"], "gaussian": ARMS["vae"]}, 0.0, "sums")
    assert found["arms"]["gaussian"]["difference"] == pytest.approx(0.025)
    assert "minus sums, 95 %" in crossed_table(found).header
    assert "difference to sums" in caption(found)
    assert found["covers"] in caption(found)


def test_the_file_of_figures_has_all_digits_and_the_number_of_runs():
    found = summarise(PAIRS, ARMS | {"vae": [*ARMS["vae"][:3], rows(None)]}, 0.0)
    table = figures_table(found)
    vae = dict(zip(table.header, table.rows[-1], strict=True))
    assert (vae["arm"], vae["runs"], vae["mean"]) == ("vae", "3", repr(found["arms"]["vae"]["mean"]))
    assert dict(zip(table.header, table.rows[1], strict=True))["difference"] == "-"


def test_a_run_without_an_accuracy_is_left_out_of_its_pair():
    arms = ARMS | {"vae": [*ARMS["vae"][:3], rows(None)]}
    vae = summarise(PAIRS, arms, 0.0)["arms"]["vae"]
    assert vae["mean"] == pytest.approx(0.93)
    assert vae["difference"] == pytest.approx(0.02)


def test_without_the_reference_there_are_no_differences():
    found = summarise(PAIRS, {"vae": ARMS["vae"]}, 0.0)
    assert "difference" not in found["arms"]["vae"]
    assert "prototypes" in found["says"]


def test_intervals_over_seeds_alone_claim_nothing_about_other_clips():
    seeds = summarise([(None, 0), (None, 1)], {name: runs[:2] for name, runs in ARMS.items()}, 0.0)
    assert "not other clips" in seeds["covers"]
    assert "not other clips" not in summarise(PAIRS, ARMS, 1 / 3)["covers"]
    clips = {name: [[row | {"test_clips": 60} for row in run] for run in runs[:1]] for name, runs in ARMS.items()}
    one = summarise([(None, 0)], clips, 0.0)["covers"]
    assert ("60 test clips" in one, "without intervals" in one) == (True, True)


def test_the_table_has_a_line_an_arm_in_eighty_columns():
    arms = {name: [[row | {"site/optimiser_steps": 625} for row in run] for run in runs] for name, runs in ARMS.items()}
    console = Console(file=io.StringIO(), width=80)
    console.print(crossed_table(summarise(PAIRS, arms, 1 / 3), "title").rich())
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    (line,) = [line for line in lines if "FedAvg, as many steps" in line]
    assert "0.550 ± 0.058" in line
    assert "1250 + 0" in line
    assert len([line for line in lines if "±" in line]) == 3


def test_a_run_in_which_sites_were_not_evaluated_is_left_out_and_that_is_said():
    partly = {"round": 1, "accuracy": 1.0, "sites_evaluated": 3, "sites_total": 5}
    arms = {
        "prototypes": [[{"round": 1, "accuracy": value}] for value in (0.5, 0.6, 0.7)],
        "vae": [[{"round": 1, "accuracy": 0.52}], [partly], [{"round": 1, "accuracy": 0.72}]],
    }
    summary = summarise([(1, 0), (2, 0), (3, 0)], arms, 0.0)
    assert summary["arms"]["vae"]["accuracy"] == [0.52, None, 0.72]
    assert summary["arms"]["vae"]["mean"] == pytest.approx(0.62)
    assert summary["arms"]["vae"]["difference"] == pytest.approx(0.02)
    assert "Left out: 1 run " in summary["covers"]
    arms["vae"][1] = [{"round": 1, "accuracy": 0.62}]
    assert "Left out" not in summarise([(1, 0), (2, 0), (3, 0)], arms, 0.0)["covers"]
