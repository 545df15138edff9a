"""Flower's entry point for the server, used by `flwr run` in simulations and deployments."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from flwr.app import Context
from flwr.common import ndarrays_to_parameters
from flwr.server import Server, ServerAppComponents, ServerConfig, SimpleClientManager
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp
from rich.console import Console

from fed_a2v.config.compose import compose_settings
from fed_a2v.federation.process import is_deployed_server
from fed_a2v.federation.server.strategy import FedA2V
from fed_a2v.federation.server.trainer import Trainer

# Sites that a deployed server waits for at the same time, each in a thread; others wait for a free one. Flower's own
# number is four more than the cores, as if the work were here and not at the sites.
SITES_AT_ONCE = 64


def server_fn(context: Context) -> ServerAppComponents:
    """Compose the settings from `--run-config "overrides='...' output-dir='...'"`, and start or resume the run.

    Without `output-dir` the run goes to outputs/flwr/RUN_ID under the folder in which the SuperLink was started.
    """
    if is_deployed_server():
        _end_with_parent()
    settings = compose_settings(str(context.run_config["overrides"]))
    output = str(context.run_config["output-dir"])
    folder = Path(output).expanduser() if output else Path.cwd() / "outputs" / "flwr" / str(context.run_id)
    trainer = Trainer(settings, folder, Console(stderr=True, force_terminal=False))
    config = ServerConfig(num_rounds=trainer.rounds_left, round_timeout=settings.federation.round_timeout)
    # A finished run must not send requests: FedAvg with no rounds and no parameters does nothing.
    strategy = trainer.strategy if trainer.rounds_left else FedAvg(initial_parameters=ndarrays_to_parameters([]))
    if not is_deployed_server():  # in a simulation more requests at once take longer: Flower searches all for messages
        return ServerAppComponents(strategy=strategy, config=config)
    server = Server(client_manager=SimpleClientManager(), strategy=strategy)
    server.set_max_workers(SITES_AT_ONCE)
    if isinstance(strategy, FedA2V):  # its registration
        strategy.max_workers = SITES_AT_ONCE
    return ServerAppComponents(server=server, config=config)


def _end_with_parent(grace: float = 10.0) -> None:
    """Exit this process `grace` seconds after the SuperLink's process that started it has exited.

    Flower's own shutdown first waits for the threads that wait for the sites, and these try to reach the lost SuperLink
    forever. The state of the last finished round is on disk; the run resumes from it when it is started again.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, name="watch of the SuperLink", daemon=True).start()


app = ServerApp(server_fn=server_fn)
