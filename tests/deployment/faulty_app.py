"""Flower's entry point for sites that go wrong on demand; the tests put it into a copy of the program.

A file `fault.json` beside a site's data says what goes wrong, in which task of which round:
`{"kind": "raise", "task": "train", "round": 2}`. When it does, `fault.reached` appears beside it.
"""

import json
import os
import resource
import signal
import time
from pathlib import Path

import torch
from flwr.clientapp import ClientApp

from fed_a2v.federation.client import A2VClient
from fed_a2v.federation.node import Node

FOREVER = 100_000


def go_wrong(kind):
    if kind == "raise":
        raise RuntimeError("the microphone is on fire")
    if kind == "hang":
        time.sleep(FOREVER)
    if kind == "memory":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
        torch.ones(2**30)  # 4 GiB
    if kind == "killed for memory":
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does it


class FaultyNode(Node):
    """A node that looks for its fault before it works."""

    def _site(self, config):
        file = Path(self.node_config["data-dir"]).with_name("fault.json")
        if file.is_file():
            fault = json.loads(file.read_text())
            if (fault["task"], fault["round"]) == (config["task"], config["round"]):
                file.with_name("fault.reached").touch()
                go_wrong(fault["kind"])
        return super()._site(config)


class FaultyClient(A2VClient):
    """A client whose node goes wrong on demand."""

    def node(self):
        return FaultyNode(self.node_config)


app = ClientApp(client_fn=lambda context: FaultyClient(dict(context.node_config)).to_client())
