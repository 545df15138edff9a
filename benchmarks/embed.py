"""Clips per second of `fed-a2v embed` on ESC-50, time of a second call, and cost of an epoch from the cache.

    FED_A2V_DATA=FOLDER python benchmarks/embed.py

FOLDER/esc50 is a copy of the data set. The epoch reads memory-mapped embeddings and embeddings in memory in turn;
batches of both go through the same matrix product.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import machine, write_block

from fed_a2v.data.cache.embedding_store import EmbeddingStore

ROWS, WIDTH, HIDDEN, BATCH, REPEATS = 100_000, 512, 512, 256, 7


def main() -> None:
    folder = os.environ.get("FED_A2V_DATA")
    if not folder:
        raise SystemExit("set FED_A2V_DATA to the folder that contains esc50/")
    with tempfile.TemporaryDirectory() as place:
        words = ["dataset=esc50", f"dataset.root={folder}/esc50", f"cache_dir={place}/cache"]
        before = processor_seconds()
        first, output = embed(words)
        work = processor_seconds() - before
        second, again = embed(words)
        ratio, mapped, held = epoch(Path(place) / "store")
    clips = int(output.split(" clips in ")[0].split()[-1])
    assert f"{clips} from the cache" in again
    text = (
        f"{clips} clips of ESC-50 with `logmel`, the whole command with its start and {cores()} processes: "
        f"**{clips / first:.0f} clips/s** ({first:.1f} s; {work:.1f} s of processor time, "
        f"{clips / work:.0f} clips/s per core). A second call: **{second:.1f} s**.\n\n"
        f"One epoch over {ROWS:,} embeddings in batches of {BATCH} through a {WIDTH} x {HIDDEN} matrix: "
        f"{mapped:.2f} s memory-mapped, {held:.2f} s from memory, ratio of the medians of {REPEATS} turns "
        f"**{ratio:.2f}**. {machine()}."
    )
    write_block("embed", text)
    print(text)


def cores() -> int:
    return len(os.sched_getaffinity(0))


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def embed(words: list[str]) -> tuple[float, str]:
    """Seconds of the command as called by a user, and its output."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "fed_a2v", "embed", *words], check=True, capture_output=True, text=True
    )
    return time.perf_counter() - start, done.stdout


def epoch(folder: Path) -> tuple[float, float, float]:
    """Ratio of the times of one epoch of shuffled batches, and its seconds memory-mapped and from memory."""
    torch.set_num_threads(1)
    store = EmbeddingStore(folder, "float32")
    names = [str(row) for row in range(ROWS)]
    store.write(names, np.random.default_rng(0).standard_normal((ROWS, 1, WIDTH)))
    mapped = torch.from_numpy(store.read(names)[0])
    assert isinstance(store.read(names)[0], np.memmap)
    held = mapped.clone()
    weight = torch.randn(WIDTH, HIDDEN)
    seconds: dict[str, list[float]] = {"mapped": [], "held": []}
    for _ in range(REPEATS):
        order = torch.randperm(ROWS)
        for name, rows in (("mapped", mapped), ("held", held)):
            start = time.perf_counter()
            for batch in order.split(BATCH):
                _ = rows[batch] @ weight
            seconds[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return medians["mapped"] / medians["held"], medians["mapped"], medians["held"]


if __name__ == "__main__":
    main()
