"""Sites that raise, hang, run out of memory, are killed or cut off: the round ends, and the others' work counts."""

import sys
import time

import pytest

from tests.flower import wait_until

from .conftest import OVERRIDES

pytestmark = [pytest.mark.deployment, pytest.mark.flower, pytest.mark.timeout(1500)]


def test_sites_that_raise_hang_or_run_out_of_memory_cost_their_own_work_and_no_other(deployment, rows_of, tmp_path):
    deployment.sites["north"].goes_wrong("raise", 1)
    deployment.sites["east"].goes_wrong("hang", 1)
    deployment.sites["south"].goes_wrong("memory", 2)
    overrides = f"{OVERRIDES} rounds=3 federation.site_timeout=25 federation.round_timeout=200"
    ended = deployment.superlink.run(deployment.app, overrides, tmp_path / "run")
    assert ended.status == "finished:completed", ended
    first, second, third = rows_of(tmp_path / "run")
    assert first["sites"] == {"site-east": "failed", "site-north": "failed", "site-south": "replied"}
    reasons = "\n".join(first["failure_reasons"])
    assert "RuntimeError: the microphone is on fire" in reasons
    assert "the training of site-east took longer than federation.site_timeout=25 s" in reasons
    assert second["sites"] == {"site-east": "replied", "site-north": "replied", "site-south": "failed"}
    assert "memory" in second["failure_reasons"][0]
    assert set(third["sites"].values()) == {"replied"}


def test_a_process_that_the_kernel_kills_is_missed_after_a_minute_and_its_site_is_back_in_the_next_round(
    deployment, rows_of, tmp_path
):
    deployment.sites["east"].goes_wrong("killed for memory", 1)
    ended = deployment.superlink.run(deployment.app, f"{OVERRIDES} rounds=2", tmp_path / "run")
    assert ended.status == "finished:completed", ended
    first, second = rows_of(tmp_path / "run")
    assert first["sites"] == {"site-east": "failed", "site-north": "replied", "site-south": "replied"}
    assert set(second["sites"].values()) == {"replied"}


def test_a_supernode_that_is_killed_costs_its_own_work_and_no_other_and_may_come_back(
    deployment, rows_of, tmp_path, capsys
):
    """Prints how long the round lasts that a SuperNode does not survive."""
    south, folder = deployment.sites["south"], tmp_path / "run"
    south.goes_wrong("hang", 1)
    overrides = f"{OVERRIDES} rounds=4 federation.round_timeout=300"
    run = deployment.superlink.submit(deployment.app, overrides, folder)
    wait_until(south.is_wrong, "the middle of the first round")
    killed = time.monotonic()
    south.kill()
    wait_until(lambda: rows_of(folder), "the end of the round")
    seconds = time.monotonic() - killed
    row = rows_of(folder)[0]
    with capsys.disabled():
        evaluation, others = row["seconds/evaluate"], row["replies"]
        sys.stdout.write(
            f"\nSuperNode lost: the round ended {seconds:.0f} s later, {evaluation:.0f} s of it evaluation, "
        )
        sys.stdout.write(f"with the work of {others} of 3 sites\n")
    assert row["sites"] == {"site-east": "replied", "site-north": "replied", "site-south": "failed"}
    assert row["accuracy"] > 0
    assert seconds - row["seconds/evaluate"] < 90
    south.is_well()
    south.start()
    ended = deployment.superlink.end_of(run)
    assert ended.status == "finished:completed", ended
    assert rows_of(folder)[-1]["sites"] == dict.fromkeys(["site-east", "site-north", "site-south"], "replied")


def test_a_run_that_cannot_go_on_fails_and_says_why_in_one_line(deployment, tmp_path):
    overrides = f"{OVERRIDES} federation.min_nodes=4 federation.start_timeout=12"
    ended = deployment.superlink.run(deployment.app, overrides, tmp_path / "run")
    assert ended.status == "finished:failed"
    assert "3 of 4 nodes came within 12 s" in ended.details
    assert len(ended.details.splitlines()) == 1
    assert "Waiting for 1 more of 4 nodes" in ended.shown
