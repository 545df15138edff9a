"""The server's process ends when the SuperLink does."""

import subprocess
import sys

import psutil

CHILD = """
import threading, time
from fed_a2v.federation.server_app import _end_with_parent
_end_with_parent(grace=0.2)
threading.Thread(target=time.sleep, args=(1000,)).start()  # as Flower's threads wait for a lost SuperLink
print("waiting", flush=True)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_a_server_that_has_lost_its_superlink_ends_though_threads_still_wait():
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        try:
            assert child.is_running()
            parent.kill()
            child.wait(240)
        finally:
            if child.is_running():
                child.kill()
