"""The time until a lost SuperNode is noticed: a figure for docs/engineering.md."""

import sys
import time

import pytest

from tests.deployment.conftest import OVERRIDES, rows_of
from tests.flower import wait_until

pytestmark = [pytest.mark.long, pytest.mark.flower, pytest.mark.timeout(1500)]


def test_how_long_a_round_lasts_in_which_a_supernode_that_is_killed_was_at_work(deployment, tmp_path, capsys):
    """Prints it."""
    south, folder = deployment.sites["south"], tmp_path / "run"
    south.goes_wrong("wait", 1)
    overrides = f"{OVERRIDES} rounds=1 federation.round_timeout=900"
    run = deployment.superlink.submit(deployment.app, overrides, folder)
    wait_until(lambda: south.is_wrong(1), "the middle of the round", 600)
    killed = time.monotonic()
    south.kill()
    wait_until(lambda: rows_of(folder), "the end of the round", 600)
    seconds = time.monotonic() - killed
    (row,) = rows_of(folder)
    with capsys.disabled():
        sys.stdout.write(
            f"\nSuperNode lost: the round ended {seconds:.0f} s later, {row['seconds/evaluate']:.0f} s of it "
            f"evaluation, with the work of {row['replies']} of 3 sites\n"
        )
    assert row["sites"] == {"site-east": "replied", "site-north": "replied", "site-south": "failed"}
    assert row["accuracy"] > 0
    assert deployment.superlink.end_of(run).status == "finished:completed"
