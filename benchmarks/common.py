"""Shared parts of the benchmarks: data, processes, memory, the machine in words, spreads, and tables in the docs."""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fed_a2v.runs.environment import environment

ROOT = Path(__file__).resolve().parent.parent
PAGES = (*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md")
# Notes on the class prompts, for the tables.
PROMPTS = {
    "random": "Class prompts: random vectors that are seeded by the classes' names (`targets=random`) and have no "
    "meaning.",
    "CLIP": "Class prompts: CLIP ViT-B/32's text vectors of the 31 classes that have one (`targets=file`).",
}


def data(kind: str) -> list[str]:
    """Overrides for the data: `yamnet`, `logmel`, or `clip`, which is YAMNet's with CLIP's text vectors."""
    root = os.environ.get("FED_A2V_DATA")
    if not root:
        raise SystemExit("set FED_A2V_DATA to the folder that contains esc50_yamnet.npz and esc50/")
    if kind == "logmel":
        return ["dataset=esc50", f"dataset.root={Path(root) / 'esc50'}"]
    words = ["dataset=embeddings", f"dataset.path={Path(root) / 'esc50_yamnet.npz'}"]
    if kind == "clip":
        vectors = Path(root) / "clip_vitb32_text.npz"
        with np.load(vectors, allow_pickle=False) as file:
            names = ",".join(sorted(str(name) for name in file["category"]))
        words += [f"dataset.classes=[{names}]", "targets=file", f"targets.path={vectors}"]
    return words


def head() -> list[str]:
    """Override for YAMNet's label head, with `projection=head`."""
    return [f"projection.path={Path(os.environ.get('FED_A2V_DATA', '')) / 'esc50_yamnet_head.npz'}"]


def measured(benchmark: str, *words: object) -> Any:
    """What a benchmark measures with `--measure WORDS`, the JSON in the last line of its output.

    A process of its own: its memory is not that of an earlier measurement, and its clock starts with the same imports.
    """
    command = [sys.executable, benchmark, "--measure", *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def resident() -> float:
    """Resident size of this process in bytes."""
    return float(psutil.Process().memory_info().rss)


class PeakMemory:
    """The largest resident size of this process while the block runs, in bytes, measured every 2 ms."""

    def __enter__(self) -> PeakMemory:
        self.peak, self.running = 0.0, True
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.running = False
        self.thread.join()

    def _look(self) -> None:
        while self.running:
            self.peak = max(self.peak, resident())
            time.sleep(0.002)


def require_no_refusals(rows: Sequence[Mapping[str, Any]]) -> None:
    """End a benchmark whose made-up replies are refused: what it measures is then not the work on them."""
    for row in rows:
        if row["rejected"] or row["failures"]:
            raise SystemExit(f"round {row['round']}: {row['rejections'] or row['failure_reasons']}")


def machine() -> str:
    """Processor, cores, and versions."""
    found = environment()
    return f"{found['processor']}, {found['cores']} cores, torch {found['torch']}, Python {found['python']}"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """All rows of a CSV of runs; empty if it does not exist or has other columns."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return list(reader) if list(reader.fieldnames or ()) == list(columns) else []


def write_block(name: str, text: str) -> None:
    """Replace the block `name`, between its two marker comments, in every page with such a block."""
    start, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pages = [page for page in PAGES if start in page.read_text(encoding="utf-8")]
    if not pages:
        raise SystemExit(f"no page has a block {name}: add the lines {start} and {end} to a page of docs/")
    for page in pages:
        before, rest = page.read_text(encoding="utf-8").split(start, 1)
        after = rest.split(end, 1)[1]
        page.write_text(f"{before}{start}\n{text.strip()}\n{end}{after}", encoding="utf-8")
