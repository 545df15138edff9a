"""Sites that raise, hang, run out of memory, are killed or cut off: the round ends, and the others' work counts.

All of it goes wrong in one run of three rounds, in which each test looks for its own. What takes Flower a minute to
notice happens at two sites at once; a round begins when those that were lost are back.
"""

import shutil
import subprocess
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest

from tests.flower import Program, wait_until

from .conftest import CLASSES, OVERRIDES, rows_of, supernode
from .network import Cable, forwarder

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.flower,
    pytest.mark.timeout(1500),
    pytest.mark.xdist_group("deployment"),
]

LONG = 600
ROUND_TIMEOUT = 900


@pytest.fixture(scope="module")
def eventful(_deployment, tmp_path_factory):
    """The run in which everything goes wrong: its end, its rows, and why nobody could be cut off in it, if so."""
    deployment, folder = _deployment.ready(), tmp_path_factory.mktemp("eventful") / "run"
    log = deployment.superlink.log
    north, east, south = deployment.sites.values()
    east.goes_wrong("killed for memory", 1)
    east.goes_wrong("hang", 2)
    south.goes_wrong("wait", 2)
    north.goes_wrong("raise", 3)
    south.goes_wrong("memory", 3)
    hold = folder.with_name("run.hold")
    hold.mkdir()
    for number in (2, 3):
        (hold / str(number)).touch()

    def next_round(number):
        """All sites are there again, so that what happens to them does not depend on when they come."""
        deployment.wait_for_all()
        (hold / str(number)).unlink()

    overrides = f"{OVERRIDES} rounds=3 federation.round_timeout={ROUND_TIMEOUT} federation.site_timeout=60"
    with ExitStack() as stack:
        supernode_of_south, obstacle = south, None
        try:
            cable = stack.enter_context(cable_to(deployment.far_address))
        except CableError as error:
            obstacle = str(error)
        else:
            south.goes_wrong("wait", 1)
            supernode_of_south = stack.enter_context(moved(deployment, south, cable))
        run = deployment.superlink.submit(deployment.app, overrides, folder)

        if obstacle is None:
            wait_until(lambda: south.is_wrong(1), "the south's work in the first round", LONG, log)
            cable.pull_out()
        wait_until(lambda: len(rows_of(folder)) == 1, "the end of the first round", LONG, log)
        if obstacle is None:
            cable.plug_in()
            south.goes_on(1)
        next_round(2)

        wait_until(lambda: south.is_wrong(2), "the south's work in the second round", LONG, log)
        supernode_of_south.kill()
        wait_until(lambda: len(rows_of(folder)) == 2, "the end of the second round", LONG, log)
        south.goes_on(2)
        supernode_of_south.start()
        next_round(3)

        ended = deployment.superlink.end_of(run)
    return SimpleNamespace(ended=ended, rows=rows_of(folder), obstacle=obstacle)


class CableError(Exception):
    """This machine allows no network of its own."""


@contextmanager
def cable_to(address):
    if shutil.which("ip") is None:
        raise CableError("no `ip` on PATH")
    cable = Cable(address)
    try:
        cable.__enter__()
    except subprocess.CalledProcessError as error:
        raise CableError(f"no network namespaces on this machine: {error.stderr.strip()}") from error
    try:
        yield cable
    finally:
        cable.__exit__()


@contextmanager
def moved(deployment, site, cable):
    """The SuperNode of a site, moved behind the cable."""
    site.end()
    with forwarder(cable.here, deployment.superlink.port) as port:
        command = supernode(site.home, f"{cable.here}:{port}", deployment.authority)
        far = Program(command, site.home, prefix=["ip", "netns", "exec", cable.namespace])
        try:
            far.start()
            deployment.wait_for_all()
            yield far
        finally:
            far.end()


def test_the_run_goes_on_to_its_end(eventful):
    assert eventful.ended.status == "finished:completed", eventful.ended
    assert [row["round"] for row in eventful.rows] == [1, 2, 3]
    assert all(row["accuracy"] > 0 for row in eventful.rows)
    # Sites that were lost were missed by Flower; no round was ended by its own limit.
    assert all(row["seconds/sites"] < ROUND_TIMEOUT for row in eventful.rows)


def test_a_process_that_the_kernel_kills_costs_its_own_work_and_its_site_is_back_in_the_next_round(eventful):
    first, second, _ = eventful.rows
    assert (first["sites"]["site-east"], first["sites"]["site-north"]) == ("failed", "replied")
    assert reasons_with(second, "site-east", "federation.site_timeout"), "it serves the next round, if late"


def test_a_site_that_hangs_says_so_in_time_and_is_back_in_the_next_round(eventful):
    _, second, third = eventful.rows
    assert (second["sites"]["site-east"], second["sites"]["site-north"]) == ("failed", "replied")
    assert len(reasons_with(second, "site-east", "federation.site_timeout=60")) == 1
    assert third["sites"]["site-east"] == "replied"


def test_a_supernode_that_is_killed_costs_its_own_work_and_may_come_back(eventful):
    _, second, third = eventful.rows
    assert (second["sites"]["site-south"], second["sites"]["site-north"]) == ("failed", "replied")
    assert "site-south" in third["sites"]


def test_a_site_that_is_cut_off_costs_its_own_work_and_comes_back_by_itself(eventful):
    if eventful.obstacle:
        pytest.skip(eventful.obstacle)
    first, second, _ = eventful.rows
    assert (first["sites"]["site-south"], first["sites"]["site-north"]) == ("failed", "replied")
    assert "site-south" in second["sites"]


def test_sites_that_raise_or_run_out_of_memory_cost_their_own_work_and_go_on(eventful):
    third = eventful.rows[2]
    assert third["sites"] == {"site-east": "replied", "site-north": "failed", "site-south": "failed"}
    assert len(reasons_with(third, "RuntimeError", "the microphone is on fire")) == 1
    assert len(reasons_with(third, "memory")) == 1
    # Every site has scored its own classes after that.
    assert set(third["per_class"]) == set(CLASSES.split(","))


def reasons_with(row, *words):
    return [reason for reason in row["failure_reasons"] if all(word in reason for word in words)]


def test_a_run_that_cannot_go_on_fails_and_says_why_in_one_line(deployment, tmp_path):
    overrides = f"{OVERRIDES} federation.min_nodes=4 federation.start_timeout=1"
    ended = deployment.superlink.run(deployment.app, overrides, tmp_path / "run")
    assert ended.status == "finished:failed"
    assert "federation.min_nodes" in ended.details
    assert len(ended.details.splitlines()) == 1
