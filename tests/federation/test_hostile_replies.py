"""Malformed replies of every kind through the strategy's hooks: a small run of the benchmark.

Its exit code is 0 only if no reply was accepted or crashed the server, and the run ended as with the honest site alone.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_no_malformed_reply_crashes_the_server_or_is_accepted():
    command = [sys.executable, ROOT / "benchmarks" / "hostile_replies.py", "--replies=400"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
