"""The folder of one run: its files, read and written in one place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fed_a2v.core.adapters import ClassPrompts
from fed_a2v.runs.checkpoint import drop_states_after, same_results
from fed_a2v.storage.files import (
    append_jsonl,
    parse_row,
    plain,
    read_jsonl,
    read_lines,
    remove_leftovers,
    write_json,
    write_text,
)
from fed_a2v.storage.npz import ArrayFileError, as_floats, as_names, read_arrays
from fed_a2v.storage.untrusted import inside, read_json, read_yaml

GUIDE_METRICS = (
    "server/generator_loss",
    "server/adapter_finetuning_loss",
    "server/generator_validation_similarity",
    "server/generator_validation_mse",
    "server/generator_validation_l1",
)
# Sibling folder with the same run without the server step, and the sections that only the server step uses.
WITHOUT_STEP = "FedAvg"
OF_THE_STEP = ("finetune", "generator")


@dataclass(frozen=True)
class RunFolder:
    """A run's folder and the files in it.

    `config.yaml` and `partition.json` describe the experiment, `environment.json` the machine; `targets.npz` has the
    class prompts in the layout of targets=file, `metrics.jsonl` one JSON object per round, and `checkpoints/` the
    states to resume from. After the last round follow `evaluation.json` (figures by class, and the confusion of
    classes), `map.npz` (real and synthetic embeddings, see `embedding_map`), `results.json` (final figures) and
    `report.html`.

    The folder may be untrusted: its files are read as data (`fed_a2v.storage.untrusted`), and the property of a file
    that is a link out of the folder raises UntrustedFileError.
    """

    path: Path

    @property
    def metrics(self) -> Path:
        """`metrics.jsonl`."""
        return self._file("metrics.jsonl")

    @property
    def results(self) -> Path:
        """`results.json`."""
        return self._file("results.json")

    @property
    def targets(self) -> Path:
        """`targets.npz`."""
        return self._file("targets.npz")

    @property
    def environment(self) -> Path:
        """`environment.json`."""
        return self._file("environment.json")

    @property
    def partition(self) -> Path:
        """`partition.json`."""
        return self._file("partition.json")

    @property
    def evaluation(self) -> Path:
        """`evaluation.json`."""
        return self._file("evaluation.json")

    @property
    def map(self) -> Path:
        """`map.npz`."""
        return self._file("map.npz")

    @property
    def report(self) -> Path:
        """`report.html`."""
        return self._file("report.html")

    def pictures(self, round_number: int) -> Path:
        """Folder of the images that were generated after a round; may be missing."""
        return self.path / "images" / f"round_{round_number}"

    def _file(self, name: str) -> Path:
        return inside(self.path / name, self.path)

    def start(self, config: str, partition: Any = None, after_round: int = 0) -> None:
        """Prepare the folder for the rounds after `after_round`; 0 starts from the beginning.

        Removes metrics and states of later rounds, results of an earlier run, and incomplete files of a killed run.

        Args:
            config: resolved settings as YAML.
            partition: clips of each site; None writes no `partition.json`.
            after_round: last round to keep.

        Raises:
            OSError: the folder cannot be written; names it.
        """
        for folder in (self.path, self.path / "checkpoints"):
            remove_leftovers(folder)
        write_text(self.path / "config.yaml", config)
        if partition is not None:
            write_json(self.partition, partition)
        for late in (self.results, self.report, *(() if after_round else (self.evaluation, self.map))):
            late.unlink(missing_ok=True)
        drop_states_after(self.path, after_round)
        kept, _ = self.whole_rows() if after_round else ([], "")
        write_text(self.metrics, "".join(json.dumps(plain(row)) + "\n" for row in kept[:after_round]))

    def append(self, row: Mapping[str, Any]) -> None:
        """Append the metrics of a round to `metrics.jsonl`; one of `GUIDE_METRICS` without a value is null."""
        append_jsonl(self.metrics, {**row, **{name: None for name in GUIDE_METRICS if name not in row}})

    def rows(self) -> list[dict[str, Any]]:
        """The metrics of each round in `metrics.jsonl` so far."""
        return read_jsonl(self.metrics)

    def whole_rows(self) -> tuple[list[dict[str, Any]], str]:
        """The lines of `metrics.jsonl` as long as they are rounds 1, 2, 3, ..., and the reason why they end there.

        Lines of two runs in one folder, or a line cut by a crash, do not count.

        Raises:
            UntrustedFileError: the file is not a regular file, or too large.
        """
        rows: list[dict[str, Any]] = []
        for number, line in read_lines(self.metrics):
            expected = len(rows) + 1
            row = parse_row(line, self.metrics)
            if row is None:
                return rows, f"{self.metrics}, line {number}: the metrics of round {expected} are incomplete"
            if row.get("round") != expected:
                return rows, f"{self.metrics}, line {number}: round {row.get('round')!r} instead of {expected}"
            rows.append(row)
        return rows, f"{self.metrics} ends before round {len(rows) + 1}"

    def write_results(self, results: Mapping[str, Any]) -> Path:
        """Write `results.json`, which marks the run as finished."""
        return write_json(self.results, results)

    def read_results(self) -> dict[str, Any]:
        """The content of `results.json`.

        Raises:
            FileNotFoundError: the run has not finished.
        """
        if not self.results.is_file():
            raise FileNotFoundError(f"{self.path} has no results.json: resume the run to finish it")
        return read_json(self.results)

    def read_config(self) -> dict[str, Any]:
        """The content of `config.yaml`.

        Raises:
            FileNotFoundError: the file is missing.
            UntrustedFileError: the file is damaged, or not a mapping.
        """
        path = self._file("config.yaml")
        if not path.is_file():
            raise FileNotFoundError(f"{self.path} is not the folder of a run: it has no config.yaml; choose another")
        return read_yaml(path)

    def rows_without_step(self) -> list[dict[str, Any]]:
        """Metrics of the same run without the server step, in the sibling folder of `fed-a2v compare`; else empty."""
        sibling = RunFolder(self.path.parent / WITHOUT_STEP)
        if sibling.path == self.path or not (sibling.results.is_file() and (self.path / "config.yaml").is_file()):
            return []
        mine, its = self.read_config(), sibling.read_config()
        if mine.get("aggregation", {}).get("mode") == "kd":  # distillation is a server step on top of the plain mean
            mine = mine | {"aggregation": mine["aggregation"] | {"mode": "avg"}, "finetune": {"enabled": True}}
        same = same_results(mine, its, but=OF_THE_STEP)
        return sibling.rows() if same and not has_server_step(its) and has_server_step(mine) else []

    def read_targets(self) -> ClassPrompts:
        """The class prompts of `targets.npz`, on the CPU.

        Raises:
            ArrayFileError: the file is missing or damaged, or lacks a finite prompt for a class.
        """
        arrays = read_arrays(self.targets, ("category", "vectors"), ("t5_vectors",), most="file")
        tensors = {
            name: torch.from_numpy(as_floats(arrays[name], f"{name} of {self.targets}", (3,)))
            for name in ("vectors", "t5_vectors")
            if name in arrays
        }
        names = tuple(as_names(arrays["category"], f"category of {self.targets}"))
        for name, vectors in tensors.items():
            if len(vectors) != len(names) or not torch.isfinite(vectors).all():
                raise ArrayFileError(
                    f"{name} of {self.targets} has shape {tuple(vectors.shape)} for {len(names)} classes, finite: "
                    f"{bool(torch.isfinite(vectors).all())}; expected one finite prompt for each class"
                )
        return ClassPrompts(names, tensors["vectors"], tensors.get("t5_vectors"))


def has_server_step(config: Mapping[str, Any]) -> bool:
    """Whether a run with these settings trains the adapters on the server, by fine-tuning or by distillation."""
    enabled = config.get("finetune", {}).get("enabled", True)
    return bool(enabled) or config.get("aggregation", {}).get("mode") == "kd"
