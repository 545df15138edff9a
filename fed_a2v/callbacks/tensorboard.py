"""TensorBoard: an event file in the run's folder, under `tensorboard/`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_a2v.callbacks.base import Callback, RunContext
from fed_a2v.errors import ConfigError
from fed_a2v.install import install_hint
from fed_a2v.runs.embedding_map import load_map
from fed_a2v.runs.embedding_map_plot import map_pixels
from fed_a2v.storage.files import numbers


class TensorBoard(Callback):
    """Writes every number of a round, and the map of the embeddings, if `tracking.tensorboard=true`.

    Every start writes the file again from all rows, so a resumed run has each round once.
    """

    def on_run_start(self, run: RunContext) -> None:
        """Open the file.

        Raises:
            ConfigError: TensorBoard is not installed.
        """
        self.folder = run.folder
        self.writer: Any = None
        if not run.config["tracking"]["tensorboard"]:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(f"tracking.tensorboard=true needs TensorBoard: {install_hint('tensorboard')}") from error
        place = run.folder.path / "tensorboard"
        for old in place.glob("events.out.tfevents.*"):
            old.unlink()
        # `purge_step` makes a running TensorBoard discard the values of the old file.
        self.writer = SummaryWriter(str(place), purge_step=1)
        for metrics in run.folder.rows():
            self.on_round_end(metrics)

    def on_round_end(self, metrics: Mapping[str, Any]) -> None:
        """Write the numbers."""
        if self.writer is None:
            return
        for name, value in numbers(metrics).items():
            self.writer.add_scalar(name, value, int(metrics["round"]))
        self.writer.flush()

    def on_run_end(self, results: Mapping[str, Any] | None) -> None:
        """Add the map of a finished run, and close the file."""
        if self.writer is None:
            return
        if results is not None and self.folder.map.exists():
            pixels = map_pixels(load_map(self.folder.map))
            if pixels is not None:
                self.writer.add_image("embeddings", pixels, int(results["rounds"]), dataformats="HWC")
        self.writer.close()
