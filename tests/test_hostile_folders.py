"""Manipulated run folders, in watched processes: a small and a full run of the benchmark.

Its exit code is 0 only if no code was run, no file outside was read or written, and no folder ended in a traceback.
"""

import subprocess
import sys

import pytest

from tests.flower import REPOSITORY


@pytest.mark.parametrize("number", [18, pytest.param(2000, marks=pytest.mark.long)])
def test_no_manipulated_folder_runs_code_accesses_other_files_or_crashes(number):
    command = [sys.executable, REPOSITORY / "benchmarks" / "hostile_folders.py", f"--folders={number}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
