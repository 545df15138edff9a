"""Writes the map of the embedding space (real and synthetic points) after the last round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_a2v.callbacks.base import Callback, RunContext
from fed_a2v.core.projection import embedding_map
from fed_a2v.core.server_step import ServerStep
from fed_a2v.runs.embedding_map import save_map


class EmbeddingMapFile(Callback):
    """Writes `map.npz`, which the report, W&B and TensorBoard show."""

    def on_run_start(self, run: RunContext) -> None:
        """Remember the folder."""
        self.folder, self.rounds = run.folder, run.config["rounds"]

    def on_evaluate_end(self, round_number: int, step: ServerStep, evaluation: Mapping[str, Any]) -> None:
        """Write the map after the last round."""
        found = embedding_map(step, round_number) if round_number == self.rounds else None
        if found is not None:
            save_map(self.folder.map, found)
