"""Run folders that a stranger has changed, in watched processes: the benchmark, in small and in full.

It ends with 0 only if no code was run, nothing outside was read or written, and nothing ended in a traceback.
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
