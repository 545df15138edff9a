"""The server's process ends when the SuperLink does; a run that is finished needs no nodes."""

import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
from flwr.server import Server, SimpleClientManager

from fed_a2v.config.compose import compose_settings
from fed_a2v.federation.server.server_app import SITES_AT_ONCE, server_fn
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.runs.lock import LOCK, FolderInUseError, hold
from tests.federation.helpers import SMALL
from tests.refusals import refused

CHILD = """
import threading, time
from fed_a2v.federation.server.server_app import _end_with_parent
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


def test_a_server_without_its_superlink_exits_although_threads_still_wait():
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


def test_a_second_server_does_not_touch_the_folder_of_a_run_in_progress(tmp_path):
    config = {"overrides": " ".join(SMALL), "output-dir": str(tmp_path)}
    with hold(tmp_path), refused(FolderInUseError, tmp_path, os.getpid()):
        server_fn(SimpleNamespace(run_config=config, run_id=1))
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_finished_run_sends_no_requests(tmp_path):
    words = [*SMALL, "rounds=1", "wandb.mode=disabled"]
    run_in_process(compose_settings(words), tmp_path)
    results = (tmp_path / "results.json").read_bytes()
    config = {"overrides": " ".join([*words, "federation.start_timeout=1"]), "output-dir": str(tmp_path)}
    parts = server_fn(SimpleNamespace(run_config=config, run_id=1))
    assert parts.config.num_rounds == 0
    Server(client_manager=SimpleClientManager(), strategy=parts.strategy).fit(0, timeout=None)
    assert (tmp_path / "results.json").read_bytes() == results


def test_a_deployed_server_waits_for_more_sites_at_once_than_it_has_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("fed_a2v.federation.server.server_app.is_deployed_server", lambda: True)
    monkeypatch.setattr("fed_a2v.federation.server.server_app._end_with_parent", lambda: None)
    config = {"overrides": " ".join([*SMALL, "wandb.mode=disabled"]), "output-dir": str(tmp_path)}
    parts = server_fn(SimpleNamespace(run_config=config, run_id=1))
    assert parts.server.max_workers == parts.server.strategy.max_workers == SITES_AT_ONCE
