"""The time limit works for every kind of work."""

import subprocess
import sys
import time

import pytest

from fed_a2v.federation.client.time_limit import DeadlineError, within
from tests.refusals import refused

# A regular expression with endless backtracking holds the interpreter's lock.
DEADLOCK = """
import re, sys, time
from fed_a2v.federation.client import time_limit as deadline
deadline.GRACE = 0.2
sys.argv[0] = {program!r}
print("started", flush=True)
deadline.within(0.2, "work", lambda: re.match("(a+)+$", "a" * 60 + "b") if {holds} else time.sleep(1000))
"""


def test_work_in_time_gives_its_result():
    assert within(60, "work", lambda: 3) == 3


def test_an_exception_is_that_of_the_work():
    with pytest.raises(ZeroDivisionError):
        within(60, "work", lambda: 1 / 0)


def test_work_that_takes_too_long_is_an_error_that_names_it():
    with refused(DeadlineError, "the work", "federation.site_timeout=0.1"):
        within(0.1, "the work", lambda: time.sleep(1000))


def run(program, holds):
    script = DEADLOCK.format(program=program, holds=holds)
    return subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, timeout=240)


def test_a_process_whose_work_is_stuck_can_end():
    ended = run("anything", holds=False)
    assert ended.returncode == 1
    assert "DeadlineError" in ended.stderr


def test_a_process_of_one_message_ends_even_where_the_interpreters_lock_is_held():
    ended = run("/usr/bin/flwr-clientapp", holds=True)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert "DeadlineError" not in ended.stderr
