"""Where MLflow stores runs: its variable of the environment, and its database in a folder.

A sweep gives its jobs one database in its folder; a single run has its own. `fed_a2v.callbacks.mlflow` logs to it.
"""

from __future__ import annotations

from pathlib import Path

# MLflow's own variable of the environment, and the start of the address of a database that is a file.
URI = "MLFLOW_TRACKING_URI"
SQLITE = "sqlite:///"


def database(folder: Path) -> str:
    """Address of the database in the folder of a run or of a sweep."""
    return f"{SQLITE}{folder / 'mlflow.db'}"
