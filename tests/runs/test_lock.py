"""Only one process at a time writes to a run's folder."""

import os
import subprocess
import sys

import pytest

from fed_a2v.runs.lock import LOCK, FolderInUseError, hold
from fed_a2v.storage.untrusted import UntrustedFileError
from tests.refusals import refused

HOLDER = """
import sys, time
from pathlib import Path
from fed_a2v.runs.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_process_is_told_the_folder_and_the_process_that_holds_it(other, tmp_path):
    with refused(FolderInUseError, tmp_path / "run", other.pid, "--out") as caught, hold(tmp_path / "run"):
        pass
    assert "\n" not in str(caught.value)


def test_the_lock_of_a_process_that_was_killed_is_gone(other, tmp_path):
    other.kill()
    other.wait()
    with hold(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / LOCK).read_text()
    with hold(tmp_path / "run"):
        pass


def test_two_runs_of_one_process_do_not_share_a_folder_either(tmp_path):
    with hold(tmp_path):
        with refused(FolderInUseError, tmp_path, os.getpid()), hold(tmp_path):
            pass
        with hold(tmp_path / "other"):
            pass
    with hold(tmp_path):
        pass


def test_what_stands_in_a_lock_is_shown_only_if_it_is_a_process(other, tmp_path):
    (tmp_path / "run" / LOCK).write_text("process \x1b[31m1")
    with refused(FolderInUseError, tmp_path / "run") as caught, hold(tmp_path / "run"):
        pass
    assert str(caught.value).isprintable()


def test_a_lock_that_leads_out_of_the_folder_is_not_written(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "victim")
    with refused(UntrustedFileError, LOCK), hold(tmp_path / "run"):
        pass
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with refused(OSError, tmp_path / "file" / "run"), hold(tmp_path / "file" / "run"):
        pass
