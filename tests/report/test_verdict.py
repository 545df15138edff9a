"""The first sentence of a report claims what is established, and nothing else."""

import json
import re

import pytest

from fed_a2v.report.collect import Collection, collect
from fed_a2v.report.record import RunRecord
from fed_a2v.report.verdict import verdict
from tests.report.conftest import written_run


def alone(*rows, config=None, classes=10):
    """A run of these rows, each (accuracy before, accuracy after, test clips, more)."""
    written = [
        {"round": number, "accuracy_before": before, "accuracy": after, "test_clips": clips, **more}
        for number, (before, after, clips, more) in enumerate(rows, 1)
    ]
    return RunRecord("mine", None, written, config or {}, evaluation={"classes": {str(k): {} for k in range(classes)}})


def of(*runs, **more):
    return verdict(Collection(list(runs), **more))


def changes(better, worse, p):
    return {"server_step/better": better, "server_step/worse": worse, "server_step/p": p}


@pytest.mark.parametrize(
    ("row", "tone"),
    [
        ((0.5, 0.9, 400, {}), "good"),
        ((0.5, 0.6, 30, {}), "open"),
        ((0.9, 0.5, 400, {}), "bad"),
        ((0.6, 0.7, 100, changes(10, 0, 0.002)), "good"),
        ((0.6, 0.7, 100, changes(30, 20, 0.2)), "open"),
        ((0.7, 0.6, 100, changes(0, 10, 0.002)), "bad"),
    ],
)
def test_a_gain_is_claimed_only_if_it_is_established(row, tone):
    found = of(alone(row))
    assert found.tone == tone
    assert f"{row[1] - row[0]:+.3f} over the plain average of round 1" in found.says
    assert "\n" not in found.says
    assert ("not established" in found.says) == (tone == "open")
    assert found.next.words


def test_it_says_what_was_reached_and_what_guessing_gives():
    says = of(alone((0.5, 0.6, 30, {"accuracy_low": 0.42, "accuracy_high": 0.75}))).says
    assert "18 of 30 test clips" in says
    assert "0.420 to 0.750" in says
    assert "guessing: 0.100" in says
    unseen = alone((0.5, 0.6, 30, {}), config={"dataset": {"unseen": 2}})
    assert "guessing" not in of(unseen).says


def test_the_yardstick_is_the_run_without_the_server_step_where_there_is_one(tmp_path):
    written_run(tmp_path / "FedAvg", rounds=2, overrides=["finetune.enabled=false"])
    says = verdict(collect([written_run(tmp_path / "vae", rounds=2, lead=0.1)])).says
    assert "+0.100 over FedAvg" in says


def test_undone_fine_tuning_is_named_with_its_rounds_and_the_remedy():
    rows = [(0.5, 0.5, 30, {"rolled_back": number > 1}) for number in (1, 2, 3)]
    words = " ".join(of(alone(*rows)).next.words)
    assert "rounds 2, 3" in words
    assert "finetune.steps" in words


def test_without_a_server_step_or_scores_there_is_no_claim():
    plain = of(alone((None, 0.5, 30, {}), config={"finetune": {"enabled": False}}))
    assert "no server step" in plain.says
    closed = of(alone((None, 0.5, 30, {})))
    assert "not scored" in closed.says
    secret = of(alone((None, None, 0, {})))
    assert "no accuracy" in secret.says.lower()
    assert {plain.tone, closed.tone, secret.tone} == {"open"}


def test_a_comparison_names_each_yardstick_with_its_difference(comparison):
    says = verdict(collect([comparison])).says
    assert says.startswith("vae: ")
    for name in ("FedAvg", "prototypes", "pooled"):
        assert re.search(rf"{name} \([+-]0\.\d{{3}}\)", says), name
    assert "no difference shown from" in says


@pytest.mark.parametrize(("leads", "tone"), [((0.10, 0.11, 0.12), "good"), ((-0.2, 0.0, 0.3), "open")])
def test_seeds_are_judged_by_their_paired_differences(leads, tone, tmp_path):
    """Rows of FedAvg are those of vae less `leads`."""
    runs = {}
    for name, sign in (("vae", 1), ("FedAvg", 0)):
        overrides = [] if sign else ["finetune.enabled=false"]
        runs[name] = [
            written_run(tmp_path / name / f"seed={seed}", lead=sign * lead, overrides=[*overrides, f"seed={seed}"])
            for seed, lead in enumerate(leads)
        ]
    found = collect([*runs["vae"], *runs["FedAvg"]])
    compared = Collection(found.runs, compared=True)
    assert [len(arm.members) for arm in compared.arms] == [3, 3]
    says = verdict(compared).says
    assert ("better than" in says) == (tone == "good")
    assert "over 3 seeds" in says


def test_the_best_of_a_sweep_is_not_called_better_if_it_may_be_luck(tmp_path):
    for epochs, lead in ((1, 0.0), (2, 0.05), (3, 0.02)):
        written_run(tmp_path / str(epochs), lead=lead, overrides=[f"site.epochs={epochs}"])
    found = verdict(collect([tmp_path]))
    assert "no difference shown" in found.says
    assert found.says.startswith("2: ")


def test_a_cross_validation_says_what_its_summary_says(comparison):
    crossed = {"says": "At 95 %, above prototypes: vae.", "arms": {}, "covers": ""}
    found = Collection(collect([comparison / "vae"]).runs, crossed=[crossed])
    assert "At 95 %, above prototypes: vae." in verdict(found).says


def test_a_cross_validation_says_the_differences_to_each_arm_and_how_to_go_on(tmp_path):
    for fold in (1, 2):
        written_run(tmp_path / f"fold-{fold}_seed-0" / "vae", overrides=[f"dataset.test_fold={fold}", "rounds=2"])
    sentences = ["vae against FedAvg: +14.1 points, 95 % +7.3 to +20.8: better"]
    pairs = [{"fold": fold, "seed": 0} for fold in (1, 2)]
    summary = {"pairs": pairs, "arms": {"FedAvg": {}, "vae": {}}, "sentences": sentences, "says": "", "covers": ""}
    summary["against"] = {"FedAvg": {"difference": 0.141, "low": 0.073, "high": 0.208}}
    (tmp_path / "comparison.json").write_text(json.dumps({"cross_validation": summary}))
    found = verdict(collect([tmp_path]))
    assert found.tone == "good"
    assert found.says.startswith("vae: ")
    assert sentences[0] in found.says
    assert found.next.command.endswith("--folds --seeds 0,1,2,3,4")
    assert "test_fold" not in found.next.command
    summary["against"]["FedAvg"] |= {"low": -0.3, "high": -0.1}
    (tmp_path / "comparison.json").write_text(json.dumps({"cross_validation": summary}))
    assert verdict(collect([tmp_path])).tone == "bad"


def test_untrusted_names_stay_text(tmp_path):
    folder = written_run(tmp_path / "mine")
    (tmp_path / "comparison.json").write_text(json.dumps({"a\nb": [{"round": 4, "accuracy": 0.1}]}))
    assert "\n" not in verdict(collect([folder])).says
