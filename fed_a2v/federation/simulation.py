"""A federation in one process with Flower's server and client classes, without network and without Ray."""

from __future__ import annotations

import logging
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
from fed_a2v.federation.batches import Announced, RoundBatches
from fed_a2v.federation.client.flower_client import A2VClient
from fed_a2v.federation.server.trainer import Trainer
from fed_a2v.runs.output import Output

log = logging.getLogger("fed_a2v")


class InProcessClient(ClientProxy):
    """Passes messages to a client in the same process, encoded and decoded as for a network."""

    def __init__(self, cid: str, client: Client, batches: RoundBatches | None = None) -> None:
        super().__init__(cid)
        self.client, self.batches = client, batches

    def get_properties(self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None) -> GetPropertiesRes:
        """See `ClientProxy`."""
        return self.client.get_properties(ins)

    def get_parameters(self, ins: GetParametersIns, timeout: float | None, group_id: int | None) -> GetParametersRes:
        """See `ClientProxy`."""
        return self.client.get_parameters(ins)

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        """See `ClientProxy`."""
        reply = None if self.batches is None else self.batches.fit(self.cid, ins)
        return self.client.fit(ins) if reply is None else reply

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
    make_client: Callable[[], A2VClient] | None = None,
    output: Output = "full",
    title: str = "",
    announce: bool = True,
) -> dict[str, Any]:
    """Run or resume an experiment and return its results.

    Sites work one after the other. With `engine=batched` they train together, see `RoundBatches`, unless there is
    nothing to train or they have clients of their own.

    Args:
        settings: settings of the experiment.
        folder: folder of the run.
        console: console for messages and progress; default: standard error, in a notebook standard output.
        make_client: makes the client of each site, for tests with clients that send invalid messages; default: the
            client of a node without a configuration.
        output: what the console shows during the run.
        title: title of the run, if there are several.
        announce: print the paths of results and report at the end.

    Returns:
        The content of `results.json`.
    """
    with Trainer(settings, folder, console, output, title, announce) as trainer:
        if trainer.rounds_left:
            manager, strategy = SimpleClientManager(), trainer.strategy
            batches = None
            if settings.engine == "batched":
                if settings.site_trains and make_client is None:
                    batches = RoundBatches(settings.partition.sites)
                else:
                    log.info("engine=batched: the sites of this run work one after the other")
            make_client = make_client or (lambda: A2VClient({}))
            for number in range(max(settings.partition.sites, settings.federation.min_nodes)):
                manager.register(InProcessClient(f"{number:06d}", make_client().to_client(), batches))
            server = Server(
                client_manager=manager, strategy=strategy if batches is None else Announced(strategy, batches)
            )
            # Sites in several threads are no faster, and Python 3.11 fails at times if they read arrays at once:
            # numpy parses the header of each, and the parser counts the recursion of all threads together.
            server.set_max_workers(1)
            strategy.max_workers = 1
            server.fit(trainer.rounds_left, settings.federation.round_timeout)
    return trainer.results
