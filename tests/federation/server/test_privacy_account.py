"""The epsilon of a run, and runs with privacy=dp from start to end."""

import math

import pytest

pytest.importorskip("dp_accounting")

from fed_a2v.callbacks.progress import result_line
from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.federation.server.privacy_account import PrivacyAccount
from fed_a2v.install import install_hint
from fed_a2v.report.collect import collect
from fed_a2v.report.page import render
from fed_a2v.runs.rounds import closing_lines
from tests.federation.helpers import assert_same_run
from tests.refusals import refused

PRIVATE = (
    "share=statistics",
    "projection=random",
    "projection.columns=16",
    "privacy=dp",
    "adapters.closed_form=true",
    "generator=none",
    "dataset.square_root=never",
    "rounds=2",
)


def account_of(*overrides):
    settings = compose_settings(["experiment=quick", *PRIVATE, *overrides])
    return PrivacyAccount(settings.privacy, settings.secure_sums)


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
@pytest.mark.parametrize("level", ["clip", "site"])
def test_centre_and_sums_are_the_budget_and_sums_of_changed_data_cost_more(epsilon, level):
    account = account_of(f"privacy.epsilon={epsilon}", f"privacy.level={level}")
    assert account.epsilon == 0.0
    for site in ("a", "b"):
        account.count(site, centre=True)
        account.count(site, centre=False)
    assert account.epsilon == pytest.approx(epsilon, rel=1e-6), "sites have different clips"
    account.count("b", centre=False)
    assert epsilon < account.epsilon < 2 * epsilon
    again = account_of(f"privacy.epsilon={epsilon}", f"privacy.level={level}")
    again.load_state_dict(account.state_dict())
    assert again.figures() == account.figures()
    assert again.figures()["privacy/level"] == level


def test_as_many_releases_as_a_stranger_writes_take_no_memory():
    account = account_of()
    account.load_state_dict({"centres": {"a": 10**15}, "sums": {"a": 3}})
    assert account.epsilon > 1000


def test_without_privacy_there_are_no_figures():
    assert account_of("privacy=none").figures() == {}


@pytest.fixture(scope="module")
def private_run(finished_run):
    return finished_run(*PRIVATE)


def test_a_run_states_what_it_reveals(private_run):
    for row in private_run.rows:
        assert row["privacy/epsilon"] == pytest.approx(8.0, rel=1e-6)
        assert (row["privacy/delta"], row["privacy/level"], row["privacy/scores"]) == (1e-5, "clip", True)
        assert (row["failures"], row["rejected"], row["cosine"], row["loss"]) == (0, 0, None, None)
        assert row["accuracy"] is not None
    assert private_run.results["privacy/epsilon"] == private_run.rows[-1]["privacy/epsilon"]
    assert {"privacy/relation", "privacy/public", "privacy/level", "privacy/delta"} <= private_run.results.keys()


def test_noise_larger_than_the_sums_does_not_stop_the_sites(run_in):
    run = run_in("noise", *PRIVATE, "privacy.epsilon=0.1")
    assert run.rows[0]["failures"] == 0
    assert float(run.state["adapters"]["space_centre"].norm()) == pytest.approx(1.0)
    assert run.results["privacy/epsilon"] == pytest.approx(0.1, rel=1e-6)


def test_the_console_and_the_report_state_it_too(private_run):
    results = private_run.results
    assert "epsilon 8 at delta 1e-05" in result_line(results, private_run.folder)
    *_, line = closing_lines(private_run.rows, results)
    report = render(collect([private_run.folder]))
    for words in (results["privacy/relation"], ", ".join(results["privacy/public"])):
        assert words in line
        assert words in report


def test_a_run_repeats_with_the_same_bits(private_run, run_in):
    assert_same_run(private_run, run_in("again", *PRIVATE))


def test_a_run_without_scores_ends_without_an_accuracy(run_in):
    run = run_in("run", *PRIVATE, "privacy.scores=false", "privacy.epsilon=1")
    assert [row["round"] for row in run.rows] == [1, 2]
    for row in run.rows:
        assert "accuracy" not in row
        assert (row["sites_evaluated"], row["failures"], row["rejected"]) == (0, 0, 0)
        assert row["privacy/scores"] is False
    assert run.results["accuracy"] is None
    assert run.state["sums"]["sites"]["site-000"]["scatter"].numel() == 0, "below epsilon 8 there is none"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ("dataset.square_root=auto", "dataset.square_root"),
        ("finetune.from_nodes_adapters=true site.epochs=5", "finetune.from_nodes_adapters"),
    ],
)
def test_what_privacy_excludes(overrides, named):
    changes = ("adapters.closed_form=false", "site.epochs=0", *overrides.split())
    with refused(ConfigError, "privacy=dp", named):
        compose_settings(["experiment=quick", *PRIVATE, *changes])


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with refused(ConfigError, "privacy=dp", "dp_accounting", install_hint("privacy")):
        account_of()


@pytest.mark.parametrize(
    ("overrides", "has_scatter"),
    [
        ([], True),
        (["privacy.epsilon=4"], False),
        (["privacy.epsilon=4", "secure_sums=secagg"], True),
        (["privacy.epsilon=2", "secure_sums=secagg"], False),
        (["privacy.epsilon=2", "privacy.scatter=true"], True),
        (["privacy.scatter=false"], False),
        (["privacy.level=site"], False),
    ],
)
def test_when_the_scatter_is_sent(overrides, has_scatter):
    assert math.isfinite(account_of(*overrides).noise.scatter) is has_scatter
