"""Flower's entry point for sites with faults on demand; the tests put it into a copy of the program.

The folder `faults` next to a site's data has a file for each task that fails, named by task and round, such as
`train-2`, with the kind of the fault. When the task reaches the fault, `train-2.reached` is created.
"""

import os
import resource
import signal
import time
from pathlib import Path

import torch
from flwr.clientapp import ClientApp

from fed_a2v.federation.client.flower_client import A2VClient
from fed_a2v.federation.client.message_handler import MessageHandler
from fed_a2v.federation.client.secure_sums import secure_sums_mod

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


class FaultyNode(MessageHandler):
    """A node that looks for its fault before it works."""

    def _fault(self, order):
        """The file of this task's fault, and its kind."""
        file = Path(self.node_config.data_dir).with_name("faults") / f"{order.task}-{order.round}"
        if not file.is_file():
            return file, None
        file.with_name(f"{file.name}.reached").touch()
        return file, file.read_text()

    def _in_time(self, order, work):
        file, kind = self._fault(order)
        while kind == "wait" and file.is_file():  # before the site's time limit begins
            time.sleep(0.1)
        return super()._in_time(order, work)

    def _site(self, order):
        go_wrong(self._fault(order)[1])
        return super()._site(order)


class FaultyClient(A2VClient):
    """A client whose node has faults on demand."""

    def handler(self):
        return FaultyNode(self.node_config, self.deployed)


app = ClientApp(
    client_fn=lambda context: FaultyClient(dict(context.node_config), deployed=True).to_client(), mods=[secure_sums_mod]
)
