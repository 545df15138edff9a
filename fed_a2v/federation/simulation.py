"""A federation in one process with Flower's server and client classes, without network and without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.client import Client
from flwr.common import (
    DisconnectRes,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetParametersIns,
    GetParametersRes,
    GetPropertiesIns,
    GetPropertiesRes,
    ReconnectIns,
)
from flwr.server import Server, SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from rich.console import Console

from fed_a2v.config.schema import Settings
from fed_a2v.federation.client.flower_client import A2VClient
from fed_a2v.federation.server.trainer import Trainer
from fed_a2v.runs.output import Output


class InProcessClient(ClientProxy):
    """Passes messages to a client in the same process, encoded and decoded as for a network."""

    def __init__(self, cid: str, client: Client) -> None:
        super().__init__(cid)
        self.client = client

    def get_properties(self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None) -> GetPropertiesRes:
        """See `ClientProxy`."""
        return self.client.get_properties(ins)

    def get_parameters(self, ins: GetParametersIns, timeout: float | None, group_id: int | None) -> GetParametersRes:
        """See `ClientProxy`."""
        return self.client.get_parameters(ins)

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        """See `ClientProxy`."""
        return self.client.fit(ins)

    def evaluate(self, ins: EvaluateIns, timeout: float | None, group_id: int | None) -> EvaluateRes:
        """See `ClientProxy`."""
        return self.client.evaluate(ins)

    def reconnect(self, ins: ReconnectIns, timeout: float | None, group_id: int | None) -> DisconnectRes:
        """See `ClientProxy`."""
        return DisconnectRes(reason="")


def run_in_process(
    settings: Settings,
    folder: Path,
    console: Console | None = None,
    make_client: Callable[[], A2VClient] = lambda: A2VClient({}),
    output: Output = "full",
    title: str = "",
    announce: bool = True,
) -> dict[str, Any]:
    """Run or resume an experiment, one site after the other, and return its results.

    Args:
        settings: settings of the experiment.
        folder: folder of the run.
        console: console for messages and progress; default: standard error, in a notebook standard output.
        make_client: makes the client of each site; tests pass clients that send invalid messages.
        output: what the console shows during the run.
        title: title of the run, if there are several.
        announce: print the paths of results and report at the end.

    Returns:
        The content of `results.json`.
    """
    with Trainer(settings, folder, console, output, title, announce) as trainer:
        if trainer.rounds_left:
            manager = SimpleClientManager()
            for number in range(max(settings.partition.sites, settings.federation.min_nodes)):
                manager.register(InProcessClient(f"{number:06d}", make_client().to_client()))
            server = Server(client_manager=manager, strategy=trainer.strategy)
            # Sites in several threads are no faster, and Python 3.11 fails at times if they read arrays at once:
            # numpy parses the header of each, and the parser counts the recursion of all threads together.
            server.set_max_workers(1)
            trainer.strategy.max_workers = 1
            server.fit(trainer.rounds_left, settings.federation.round_timeout)
    return trainer.results
