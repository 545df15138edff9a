"""Weights & Biases: numbers and images of each round, and a summary at the end."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Container, Mapping
from functools import partial
from typing import Any

from fed_a2v.callbacks.base import Callback, RunContext
from fed_a2v.config.sections.output import WandbSettings
from fed_a2v.runs.embedding_map import load_map
from fed_a2v.runs.embedding_map_plot import map_pixels
from fed_a2v.runs.wandb_file import logged_rounds
from fed_a2v.storage.files import numbers, plain
from fed_a2v.storage.untrusted import read_json

# Variable of the environment by which W&B finds a service process that runs already, such as that of a parent process.
SERVICE = "WANDB_SERVICE"


class Wandb(Callback):
    """One W&B run, in the mode `wandb.mode`.

    When a run is resumed, the earlier rows that W&B lacks are logged first, so W&B has every round once.
    """

    def __init__(self) -> None:
        self.id: str | None = None
        self._run: Any = None
        self._logged: Container[int] = ()

    def state_dict(self) -> dict[str, Any]:
        """The id of the W&B run."""
        return {} if self.id is None else {"id": self.id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume the W&B run with this id."""
        self.id = state["id"]

    def on_run_start(self, run: RunContext) -> None:
        """Start or resume the W&B run; after an error, the experiment continues without W&B."""
        self.folder, self.settings = run.folder, WandbSettings(**run.config["wandb"])
        if self.settings.mode == "disabled":
            return
        is_inherited = SERVICE in os.environ and "wandb" not in sys.modules
        import wandb

        earlier, path = self.id, run.folder.path
        start = partial(
            wandb.init,
            mode=self.settings.mode,
            project=self.settings.project,
            entity=self.settings.entity,
            group=self.settings.group,
            name=path.name,
            id=self.id,
            resume="allow",
            dir=str(path),
            config=dict(run.config),
            settings=wandb.Settings(silent=True, console="off"),
        )
        try:
            self._run = start()
        except Exception:
            if not is_inherited:
                raise
            # To the service of a parent process, a run that was killed and is resumed may still be in use.
            os.environ.pop(SERVICE, None)
            wandb.teardown()
            self._run = start()
        self.id = self._run.id
        if self._online:  # the W&B server refuses steps that it already has
            self._logged = range(self._run.starting_step)
        elif earlier is not None:
            self._logged = logged_rounds(path, earlier)
        for metrics in run.folder.rows():
            self._log_numbers(metrics)

    @property
    def _online(self) -> bool:
        return self.settings.mode == "online"

    def on_round_end(self, metrics: Mapping[str, Any]) -> None:
        """Log the numbers of the round, and its images if there are any."""
        if self._run is None:
            return
        drawn = self.folder.pictures(int(metrics["round"]))
        if drawn.is_dir():
            import wandb

            from fed_a2v.images.gallery import pictures_in

            media = {name: wandb.Image(str(path)) for name, path in pictures_in(drawn).items()}
            self._run.log(media, step=int(metrics["round"]))
        self._log_numbers(metrics)

    def _log_numbers(self, metrics: Mapping[str, Any]) -> None:
        if metrics["round"] not in self._logged:
            self._run.log(numbers(metrics), step=int(metrics["round"]))

    def on_run_end(self, results: Mapping[str, Any] | None) -> None:
        """Log figures by class, map and results, and close the W&B run; a failed run is marked as failed."""
        if self._run is None:
            return
        try:
            if results is not None:
                self._log_last()
                self._run.summary.update(numbers(results))
        finally:
            self._run.finish(exit_code=1 if results is None else 0)
            self._run = None

    def _log_last(self) -> None:
        """Log a table of the figures by class, and a plot of the map."""
        import wandb

        media: dict[str, Any] = {}
        if classes := read_json(self.folder.evaluation).get("classes"):
            figures = list(dict.fromkeys(name for row in classes.values() for name in row))
            rows = [[name, *(plain(row.get(figure)) for figure in figures)] for name, row in classes.items()]
            media["classes"] = wandb.Table(columns=["class", *figures], data=rows)
        if self.folder.map.exists():
            # Offline, which is the default, a missing plot is no warning, because the report has the map.
            pixels = map_pixels(load_map(self.folder.map), logging.WARNING if self._online else logging.DEBUG)
            if pixels is not None:
                media["embeddings"] = wandb.Image(pixels)
        if media:
            self._run.log(media)
