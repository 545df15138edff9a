"""A separate network for a site, with a cable that can be disconnected."""

import os
import select
import shutil
import socket
import socketserver
import subprocess
import threading
from contextlib import contextmanager, suppress


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
        """Drop all packets without an error, as a dead router does."""
        ip("link", "set", self.plug, "down")


class CableError(Exception):
    """This machine allows no separate network."""


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
def forwarder(address, to):
    """Forward connections to `address`, at the port that this returns, to 127.0.0.1 at the port `to`."""

    class Connection(socketserver.BaseRequestHandler):
        def handle(self):
            # If one side closes its connection, close the other.
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

    with Server((address, 0), Connection) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
