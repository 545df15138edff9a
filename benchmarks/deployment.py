"""Processor seconds of all processes of `deploy/local.sh`, by program, and the messages to the sites.

python benchmarks/deployment.py [--rounds 5] [--processes forked|new] [--write] [KEY=VALUE ...]

Each process is looked at every 20 ms, so what it uses in its last moments is missing. The system's own total would miss
forks that nobody waits for.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress

import psutil
from common import ROOT, machine, write_block

PR_SET_CHILD_SUBREAPER = 36
# The rows of the table, and a word in the name or the command line of their processes; the first that fits counts.
ROWS = {
    "processes of messages": "flwr-clientapp",
    "ServerApp": "flwr-serverapp",
    "SuperLink": "flower-superlink",
    "SuperExecs, and the processes that are forked": "superexec",
    "SuperNodes": "flower-supernode",
    "the operator's `flwr`": "bin/flwr",
    "scripts, certificates, sounds": "",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", choices=["forked", "new"], default="forked")
    parser.add_argument("--write", action="store_true", help="write the table into docs/engineering.md")
    given, overrides = parser.parse_known_args()
    seconds, messages = measure(given.rounds, given.processes, overrides)
    rows = [f"| {row} | {seconds[row]:.1f} |" for row in ROWS if seconds[row]]
    rows.append(f"| all | {seconds.total():.0f} |")
    note = f"{given.rounds} rounds, three sites, {messages} messages to them. {machine()}."
    text = "\n".join(["| | processor seconds |", "|---|---|", *rows, "", note])
    print(text)
    if given.write:
        write_block("deployment", text)


def measure(rounds: int, processes: str, overrides: list[str]) -> tuple[Counter[str], int]:
    """Processor seconds of each row of the table, and the number of messages."""
    # Processes whose parent has ended become children of this one, and so are looked at.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    used: dict[psutil.Process, float] = {}
    row_of: dict[psutil.Process, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [ROOT / "deploy" / "local.sh", "--rounds", str(rounds), "--folder", f"{folder}/run"]
        command += ["--processes", processes, "--start-timeout", "3000", *overrides]
        script = subprocess.Popen(command, stdout=sys.stderr)
        while script.poll() is None:
            look(used, row_of)
            time.sleep(0.02)
        with suppress(ChildProcessError):
            while True:
                os.wait()
    if script.returncode:
        raise SystemExit(f"deploy/local.sh ended with {script.returncode}")
    seconds: Counter[str] = Counter()
    for process, value in used.items():
        # A process that was not seen alive has no row.
        seconds[row_of.get(process, "scripts, certificates, sounds")] += value
    messages = sum(row == "processes of messages" for row in row_of.values())
    return seconds, messages


def look(used: dict[psutil.Process, float], row_of: dict[psutil.Process, str]) -> None:
    """Update the seconds that each descendant of this process has used, and its row."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            times = process.cpu_times()
            used[process] = times.user + times.system
            words = " ".join([process.name(), *process.cmdline()[:3]])
            row = next(row for row, word in ROWS.items() if word in words)
            # A process that has ended has no command line.
            if process.status() != psutil.STATUS_ZOMBIE or process not in row_of:
                row_of[process] = row


if __name__ == "__main__":
    main()
