"""Seconds and memory for an index of 200,000 clips in VGGSound's layout: empty files, since none is opened.

python benchmarks/index.py [--clips 200000]
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine, write_block

CLASSES = 309


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=200_000)
    parser.add_argument("--root", type=Path, help="index this folder and print the figures as JSON")
    given = parser.parse_args()
    if given.root:
        print(json.dumps(index(given.root)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), given.clips)
        # A separate process, so that its peak is that of the index and the imports.
        words = [sys.executable, __file__, "--root", folder]
        found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert found["clips"] == given.clips - missing(given.clips)
    write_block("index", report(found, given.clips))
    print(report(found, given.clips))


def missing(clips: int) -> int:
    """Every hundredth video has disappeared."""
    return len(range(0, clips, 100))


def make(root: Path, clips: int) -> None:
    """Write a table with the given number of rows, one in ten for the test, and an empty file for nearly each."""
    (root / "audio").mkdir()
    with (root / "vggsound.csv").open("w", newline="") as file:
        table = csv.writer(file)
        for number in range(clips):
            split = "test" if number % 10 == 9 else "train"
            table.writerow([f"v{number:010d}", number % 600, f"sound {number % CLASSES}, or so", split])
            if number % 100:
                (root / "audio" / f"v{number:010d}_{number % 600:06d}.wav").touch()


def index(root: Path) -> dict[str, float]:
    """Index the folder as a run does, and assign the clips to sites."""
    from fed_a2v.config.compose import compose_settings
    from fed_a2v.data.index import index_clips

    settings = compose_settings(["dataset=vggsound", f"dataset.root={root}"])
    idle = peak()
    start = time.perf_counter()
    found = index_clips(settings.dataset)
    seconds = time.perf_counter() - start
    assert len(found.classes) == CLASSES
    return {"clips": len(found), "seconds": seconds, "peak": peak(), "idle": idle}


def peak() -> float:
    """Peak memory of this process in MB."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1024 if sys.platform != "darwin" else 1024**2)


def report(found: dict[str, float], clips: int) -> str:
    return (
        f"{clips:,} rows of a table in VGGSound's layout, {found['clips']:,} of them with a file, {CLASSES} classes: "
        f"index in **{found['seconds']:.1f} s**, peak memory of the process **{found['peak']:.0f} MB** "
        f"({found['idle']:.0f} MB of it before the start). {machine()}."
    )


if __name__ == "__main__":
    main()
