"""Manipulated messages to a deployed node: a small run of the benchmark.

Its exit code is 0 only if no code was run, no other file was read or written, every message that must be refused was,
and no message ended in a traceback.
"""

import subprocess
import sys

from tests.flower import REPOSITORY


def test_no_manipulated_message_runs_code_accesses_other_files_or_crashes():
    command = [sys.executable, REPOSITORY / "benchmarks" / "hostile_messages.py", "--messages=420"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
