"""A site in a network of its own that is cut off for a minute: the others go on, and it comes back by itself."""

import os
import select
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.flower import Program, free_port, wait_until

from .conftest import OVERRIDES, SITES, supernode

pytestmark = [pytest.mark.deployment, pytest.mark.flower, pytest.mark.timeout(1500)]

CUT_SECONDS = 60


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Cable:
    """A network namespace, and the cable that joins it to this machine.

    Args:
        here: this end's address; the far end's ends in .2.
    """

    def __init__(self, here):
        self.namespace = f"fed_a2v_{os.getpid()}"
        self.plug, self.far_plug = f"near{os.getpid()}"[:15], f"far{os.getpid()}"[:15]
        self.here, self.there = here, here.rsplit(".", 1)[0] + ".2"

    def __enter__(self):
        ip("netns", "add", self.namespace)
        try:
            ip("link", "add", self.plug, "type", "veth", "peer", "name", self.far_plug, "netns", self.namespace)
            ip("address", "add", f"{self.here}/24", "dev", self.plug)
            self.plug_in()
            far = ("-n", self.namespace)
            ip(*far, "address", "add", f"{self.there}/24", "dev", self.far_plug)
            ip(*far, "link", "set", self.far_plug, "up")
            ip(*far, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        ip("netns", "delete", self.namespace)

    def plug_in(self):
        ip("link", "set", self.plug, "up")

    def pull_out(self):
        """Nothing gets through, and nobody is told: packets are lost, as behind a router that has died."""
        ip("link", "set", self.plug, "down")


@contextmanager
def forwarder(address, port, to):
    """Whoever connects to `address` speaks to 127.0.0.1 at the port `to`."""

    class Connection(socketserver.BaseRequestHandler):
        def handle(self):
            # Whoever hangs up is gone for both sides.
            with suppress(ConnectionError), socket.create_connection(("127.0.0.1", to)) as far:
                other = {self.request: far, far: self.request}
                while True:
                    for side in select.select(list(other), [], [])[0]:
                        data = side.recv(2**16)
                        if not data:
                            return
                        other[side].sendall(data)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server((address, port), Connection) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


@pytest.fixture
def cable(deployment):
    """A cable to the far network; skips where this machine allows none."""
    if shutil.which("ip") is None:
        pytest.skip("no `ip` on PATH")
    with ExitStack() as stack:
        try:
            joined = stack.enter_context(Cable(deployment.far_address))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces on this machine: {error.stderr.strip()}")
        yield joined


@pytest.fixture
def far_south(deployment, cable):
    """The south's SuperNode, moved to the far network."""
    near, port = deployment.sites["south"], free_port()
    near.end()
    command = supernode(near.home, f"{cable.here}:{port}", deployment.authority)
    moved = Program(command, near.home, prefix=["ip", "netns", "exec", cable.namespace])
    with forwarder(cable.here, port, deployment.superlink.port):
        moved.start()
        try:
            wait_until(lambda: deployment.online() == set(SITES), "all sites online", log=near.log)
            yield near
        finally:
            moved.end()


def test_a_site_that_is_cut_off_for_a_minute_costs_its_own_work_and_comes_back(
    deployment, cable, far_south, rows_of, tmp_path
):
    folder = tmp_path / "run"
    far_south.goes_wrong("hang", 2)  # in the middle of its work when the cable goes
    overrides = f"{OVERRIDES} rounds=5 federation.round_timeout=300 federation.site_timeout=100"
    run = deployment.superlink.submit(deployment.app, overrides, folder)
    wait_until(far_south.is_wrong, "the middle of the second round", 600)
    cable.pull_out()
    time.sleep(CUT_SECONDS)
    far_south.is_well()
    cable.plug_in()
    ended = deployment.superlink.end_of(run)
    assert ended.status == "finished:completed", ended
    rows = rows_of(folder)
    everybody = dict.fromkeys(["site-east", "site-north", "site-south"], "replied")
    assert rows[0]["sites"] == everybody
    assert rows[1]["sites"] == everybody | {"site-south": "failed"}
    assert rows[1]["accuracy"] > 0
    assert rows[-1]["sites"] == everybody
