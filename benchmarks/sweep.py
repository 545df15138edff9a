"""A sweep of 12 quick jobs with one worker and with two: seconds, and whether the results are equal.

    python benchmarks/sweep.py [--write]

Both start from an empty folder and the same cache of embeddings, one after the other; every job has one thread.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from common import machine, write_block

# Quick, but longer than the start of the workers, since jobs are compared, not imports.
JOBS = ("experiment=quick", "rounds=6", "generator=gaussian,vae,none", "seed=0,1,2,3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the figures into docs/sweeps.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        swept(folder, "warm", 1, ("experiment=quick", "rounds=1", "generator=none"))  # fills the cache of embeddings
        one = min((swept(folder, f"one-{i}", 1) for i in range(given.repeats)), key=lambda found: found[0])
        two = min((swept(folder, f"two-{i}", 2) for i in range(given.repeats)), key=lambda found: found[0])
    same = one[1] == two[1]
    text = (
        "| workers | seconds | times faster |\n|---|---|---|\n"
        f"| 1 | {one[0]:.1f} | 1 |\n| 2 | {two[0]:.1f} | {one[0] / two[0]:.2f} |\n\n"
        f"{len(one[1])} jobs (`{' '.join(JOBS)}`), start of the program included; "
        f"{'the same numbers in every job' if same else 'THE NUMBERS DIFFER'}. {machine()}."
    )
    print(text)
    if given.write:
        write_block("sweep", text)
    if not same:
        raise SystemExit(1)


def swept(folder: Path, name: str, workers: int, jobs: Sequence[str] = JOBS) -> tuple[float, list[dict[str, str]]]:
    """Seconds of a sweep, and its table without times."""
    command = [str(Path(sys.executable).parent / "fed-a2v"), "train", "-m", *jobs, f"hydra.sweep.dir={folder / name}"]
    command += ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={workers}"]
    env = os.environ | {"FED_A2V_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}: {done.stderr}")
    with (folder / name / "summary.csv").open(newline="") as file:
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
    return seconds, rows


if __name__ == "__main__":
    main()
