"""The folder of one run: what lies in it, and how it grows by a row a round."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fed_a2v.runs.checkpoint import drop_states_after
from fed_a2v.runs.files import append_jsonl, plain, read_jsonl, write_json, write_text

GUIDE_METRICS = (
    "server/generator_loss",
    "server/adapter_finetuning_loss",
    "server/generator_validation_similarity",
    "server/generator_validation_mse",
    "server/generator_validation_l1",
)


@dataclass(frozen=True)
class RunFolder:
    """A run's folder and the files in it.

    `config.yaml` and `partition.json` say what was run, `metrics.jsonl` has a JSON object a round,
    `checkpoints/` the states to resume from; `results.json` holds the final figures and is there only once
    the run has ended.
    """

    path: Path

    @property
    def metrics(self) -> Path:
        """`metrics.jsonl`."""
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> Path:
        """`results.json`."""
        return self.path / "results.json"

    def start(self, config: str, partition: Any = None, after_round: int = 0) -> None:
        """Make the folder ready for the rounds after `after_round`; 0 starts anew.

        Rows and states of later rounds, and the results of an earlier run, are removed.

        Args:
            config: the resolved settings as YAML.
            partition: which clips each site has; None writes no `partition.json`.
            after_round: the last round that counts as done.

        Raises:
            OSError: the folder cannot be written; names it.
        """
        write_text(self.path / "config.yaml", config)
        if partition is not None:
            write_json(self.path / "partition.json", partition)
        self.results.unlink(missing_ok=True)
        drop_states_after(self.path, after_round)
        kept = [row for row in read_jsonl(self.metrics) if row.get("round", 0) <= after_round]
        write_text(self.metrics, "".join(json.dumps(plain(row)) + "\n" for row in kept))

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a round's row to `metrics.jsonl`; a guide metric without a value in this round is null."""
        append_jsonl(self.metrics, {**row, **{name: None for name in GUIDE_METRICS if name not in row}})

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl` so far."""
        return read_jsonl(self.metrics)

    def write_results(self, results: Mapping[str, Any]) -> Path:
        """Write `results.json`, the last thing a run does."""
        return write_json(self.results, results)
