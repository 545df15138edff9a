"""Malformed replies of every kind, through the strategy's own hooks: the benchmark, in small."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_no_malformed_reply_crashes_the_server_or_is_accepted():
    command = [sys.executable, ROOT / "benchmarks" / "hostile_replies.py", "--replies=400"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 crashes, 0 accepted" in done.stdout
    assert "last state equal those of the honest site alone" in done.stdout
