"""The SuperLink is killed in the middle of a run: once more with the same folder ends as if nothing had happened."""

import json

import pytest

from fed_a2v.config import compose_settings
from fed_a2v.federation.client import A2VClient
from fed_a2v.federation.engine import run_in_process
from tests.federation.helpers import Finished, assert_same_run
from tests.flower import wait_until

from .conftest import OVERRIDES, processes_in, rows_of

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.flower,
    pytest.mark.timeout(1500),
    pytest.mark.xdist_group("deployment"),
]


def test_a_run_whose_superlink_is_killed_goes_on_to_the_very_end_of_an_undisturbed_one(deployment, tmp_path):
    folder, overrides = tmp_path / "killed", f"{OVERRIDES} rounds=2"
    east = deployment.sites["east"]
    east.goes_wrong("wait", 2)
    run = deployment.superlink.submit(deployment.app, overrides, folder)
    wait_until(lambda: east.is_wrong(2), "the middle of the second round", 600)
    deployment.superlink.kill()
    before = rows_of(folder)
    assert [row["round"] for row in before] == [1]
    server = deployment.superlink.home
    wait_until(lambda: not processes_in(server), "the end of the processes that the SuperLink had started")
    deployment.ready()
    assert deployment.superlink.end_of(run).status == "finished:failed"
    again = deployment.superlink.run(deployment.app, overrides, folder)
    assert again.status == "finished:completed", again
    # With the seconds that it took: the first round is the one from before.
    assert rows_of(folder)[:-1] == before

    nodes = iter(
        [
            A2VClient({"site": site.name, "dataset": "esc50", "data-dir": str(site.sounds)})
            for site in deployment.sites.values()
        ]
    )
    settings = compose_settings([*overrides.split(), "partition.sites=3"])
    undisturbed = run_in_process(settings, tmp_path / "undisturbed", make_client=lambda: next(nodes))
    killed = Finished(folder, json.loads((folder / "results.json").read_text()))
    assert_same_run(killed, Finished(tmp_path / "undisturbed", undisturbed))
