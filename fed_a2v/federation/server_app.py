"""Flower's entry point for the server."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.server import ServerAppComponents, ServerConfig
from flwr.serverapp import ServerApp
from rich.console import Console

from fed_a2v.config import compose_settings
from fed_a2v.federation.run import Run


def server_fn(context: Context) -> ServerAppComponents:
    """Compose the settings from `--run-config "overrides='...' output-dir='...'"`, and start or resume the run.

    Without `output-dir` the run goes to outputs/flwr/RUN_ID under the folder in which the SuperLink was started.
    """
    settings = compose_settings(str(context.run_config["overrides"]))
    output = str(context.run_config["output-dir"])
    folder = Path(output) if output else Path.cwd() / "outputs" / "flwr" / str(context.run_id)
    run = Run(settings, folder, Console(stderr=True, force_terminal=False))
    config = ServerConfig(num_rounds=run.rounds_left, round_timeout=settings.federation.round_timeout)
    return ServerAppComponents(strategy=run.strategy, config=config)


app = ServerApp(server_fn=server_fn)
