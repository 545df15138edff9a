"""Start-up time of `fed-a2v`: processor seconds of commands that do not train, each in a separate process.

python benchmarks/start.py [--repeats 5] [--write]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path

from common import machine, write_block

COMMAND = Path(sys.executable).parent / "fed-a2v"
# Commands, and their expected exit codes.
WORDS = {"--help": 0, "train --help": 0, "train rouns=3": 2, "train generator=vea": 2, "config": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the table into docs/engineering.md")
    given = parser.parse_args()
    rows = [f"| `fed-a2v {words}` | {seconds(words, code, given.repeats):.2f} |" for words, code in WORDS.items()]
    lines = ["| | processor seconds |", "|---|---|", *rows, "", f"Minimum of {given.repeats}. {machine()}."]
    text = "\n".join(lines)
    print(text)
    if given.write:
        write_block("start", text)


def seconds(words: str, code: int, repeats: int) -> float:
    """Processor seconds of a command, the minimum of several calls."""
    taken = []
    for _ in range(repeats):
        before = used()
        done = subprocess.run([COMMAND, *words.split()], capture_output=True, text=True, check=False)
        taken.append(used() - before)
        if done.returncode != code:
            raise SystemExit(f"fed-a2v {words} ended with {done.returncode}: {done.stderr}")
    return min(taken)


def used() -> float:
    """Processor seconds of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
