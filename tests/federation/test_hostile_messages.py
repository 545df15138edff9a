"""Messages that a server has changed, to a node on a machine of its own: the benchmark, in small.

It ends with 0 only if no code was run, nothing elsewhere was read or written, nothing was answered that must be
refused, and nothing ended in a traceback.
"""

import subprocess
import sys

from tests.flower import REPOSITORY


def test_no_manipulated_message_runs_code_accesses_other_files_or_crashes():
    command = [sys.executable, REPOSITORY / "benchmarks" / "hostile_messages.py", "--messages=420"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
