"""Flower's entry point for a server whose rounds wait on demand, for a copy of the program.

The folder RUN.hold next to the run's folder has a file, named by its number, for every round that must wait; the
round begins when it is removed.
"""

import time
from pathlib import Path

from flwr.serverapp import ServerApp

from fed_a2v.federation.server import server_app

PATIENCE = 600


def server_fn(context):
    components = server_app.server_fn(context)
    strategy, hold = components.server.strategy, Path(f"{context.run_config['output-dir']}.hold")
    begin = strategy.configure_fit

    def begin_when_told(server_round, parameters, client_manager):
        held = hold / str(server_round + strategy.start_round)
        if held.exists():
            while held.exists():
                time.sleep(0.1)
            # It notices a returned node some seconds later than the SuperLink.
            client_manager.wait_for(strategy.settings.federation.min_nodes, timeout=PATIENCE)
        return begin(server_round, parameters, client_manager)

    strategy.configure_fit = begin_when_told
    return components


app = ServerApp(server_fn=server_fn)
