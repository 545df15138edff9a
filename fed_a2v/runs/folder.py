"""The folder of one run: what lies in it, and how it grows by a row a round."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
    replacing,
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


# The folder, beside an experiment's, of the same run without the server step; and the sections that only the step uses.
WITHOUT_STEP = "FedAvg"
OF_THE_STEP = ("finetune", "generator")


@dataclass(frozen=True)
class RunFolder:
    """A run's folder and the files in it.

    `config.yaml` and `partition.json` say what was run, `environment.json` where, `targets.npz` has the class prompts,
    in the layout of targets=file, `metrics.jsonl` a JSON object a round, `checkpoints/` the states to go on from. After
    the last round come `evaluation.json` (figures by class, and which class was taken for which), `map.npz` (real and
    synthetic embeddings, see `embedding_map`), `results.json` (the final figures) and `report.html`.

    The folder may be a stranger's: what is read is data (`fed_a2v.storage.untrusted`), and where one of these files is
    a link that leads out of the folder, asking for it raises UntrustedFileError.
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
        """The folder of the pictures that were drawn after a round, where any were."""
        return self.path / "images" / f"round_{round_number}"

    def _file(self, name: str) -> Path:
        return inside(self.path / name, self.path)

    def start(self, config: str, partition: Any = None, after_round: int = 0) -> None:
        """Make the folder ready for the rounds after `after_round`; 0 starts anew.

        Rows and states of later rounds, the results of an earlier run, and what a kill left half written are removed.

        Args:
            config: the resolved settings as YAML.
            partition: which clips each site has; None writes no `partition.json`.
            after_round: the last round that counts as done.

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
        """Add a round's row to `metrics.jsonl`; a guide metric without a value in this round is null."""
        append_jsonl(self.metrics, {**row, **{name: None for name in GUIDE_METRICS if name not in row}})

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl` so far."""
        return read_jsonl(self.metrics)

    def whole_rows(self) -> tuple[list[dict[str, Any]], str]:
        """The rows of `metrics.jsonl` as far as they count the rounds 1, 2, 3, ...; and what is wrong behind them.

        The rounds of a folder that two runs have written, or a line that an accident tore, are no row.

        Raises:
            UntrustedFileError: the file is no regular file, or too large.
        """
        rows: list[dict[str, Any]] = []
        for number, line in read_lines(self.metrics):
            expected = len(rows) + 1
            row = parse_row(line, self.metrics)
            if row is None:
                return rows, f"{self.metrics}, line {number}: the row of round {expected} is torn"
            if row.get("round") != expected:
                return rows, f"{self.metrics}, line {number}: round {row.get('round')!r} where {expected} belongs"
            rows.append(row)
        return rows, f"{self.metrics} ends before round {len(rows) + 1}"

    def write_results(self, results: Mapping[str, Any]) -> Path:
        """Write `results.json`, the last thing a run does."""
        return write_json(self.results, results)

    def read_results(self) -> dict[str, Any]:
        """What `results.json` holds.

        Raises:
            FileNotFoundError: the run has not finished.
        """
        if not self.results.is_file():
            raise FileNotFoundError(f"{self.path} has no results.json: the run has not finished")
        return read_json(self.results)

    def read_config(self) -> dict[str, Any]:
        """What `config.yaml` holds.

        Raises:
            FileNotFoundError: there is none.
            UntrustedFileError: it is damaged, or no mapping.
        """
        path = self._file("config.yaml")
        if not path.is_file():
            raise FileNotFoundError(f"{self.path} is no run's folder: it has no config.yaml")
        return read_yaml(path)

    def rows_without_step(self) -> list[dict[str, Any]]:
        """Rows of the finished run beside this one that is the same but for the server step; empty where there is none.

        `fed-a2v compare` leaves it there.
        """
        beside = RunFolder(self.path.parent / WITHOUT_STEP)
        if beside.path == self.path or not (beside.results.is_file() and (self.path / "config.yaml").is_file()):
            return []
        mine, its = self.read_config(), beside.read_config()
        if mine.get("aggregation", {}).get("mode") == "kd":  # that is a server step; without it the mean is plain
            mine = mine | {"aggregation": mine["aggregation"] | {"mode": "avg"}, "finetune": {"enabled": True}}
        same = same_results(mine, its, but=OF_THE_STEP)
        return beside.rows() if same and not has_server_step(its) and has_server_step(mine) else []

    def write_targets(self, prompts: ClassPrompts) -> None:
        """Write `targets.npz`: with it the folder can be used where the data and the text models are not."""
        arrays = {"category": np.array(prompts.names), "vectors": prompts.clip.cpu().numpy()}
        if prompts.t5 is not None:
            arrays["t5_vectors"] = prompts.t5.cpu().numpy()
        with replacing(self.targets) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def read_targets(self) -> ClassPrompts:
        """The class prompts of `targets.npz`, on the CPU.

        Raises:
            ArrayFileError: the file is missing or broken, or has not one finite prompt for each of its names.
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
                    f"{bool(torch.isfinite(vectors).all())}; one prompt of finite numbers for each class is needed"
                )
        return ClassPrompts(names, tensors["vectors"], tensors.get("t5_vectors"))


def has_server_step(config: Mapping[str, Any]) -> bool:
    """Whether a run with these settings trains the adapters on the server, by fine-tuning or by distillation."""
    enabled = config.get("finetune", {}).get("enabled", True)
    return bool(enabled) or config.get("aggregation", {}).get("mode") == "kd"
