"""`flwr run`: the same experiment through Flower's own processes. It exits 0 whatever happens: the status counts."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from .helpers import FAST, Finished, assert_same_run, without_seconds

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.flower, pytest.mark.timeout(600)]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def descendants(pid):
    """The processes that `pid` started, and those that they started."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found, wanted = [], [pid]
    while wanted:
        parent = wanted.pop()
        children = [child for child, its_parent in pairs if its_parent == parent]
        found += children
        wanted += children
    return found


def end(process):
    """End the SuperLink and all that it started, each by its own number."""
    started = descendants(process.pid)
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in started:
        try:
            os.kill(pid, 15)
        except ProcessLookupError:
            continue


def wait_until_healthy(process, port, log):
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert time.monotonic() < deadline, f"no SuperLink within 120 s: {log.read_text()}"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def superlink(tmp_path_factory):
    """A SuperLink with a home and a port of its own, started in an empty folder."""
    folder, port = tmp_path_factory.mktemp("superlink"), free_port()
    home = folder / "flwr_home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n\n[superlink.test]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = os.environ | {
        "HOME": str(folder),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # flwr starts its processes by name
    }
    log = folder / "superlink.log"
    command = [BIN / "flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until_healthy(process, port, log)
        yield environment
    finally:
        end(process)


@pytest.fixture
def flwr_run(superlink, tmp_path):
    """`flwr run` with overrides; returns its status, the details, and what it showed."""

    def run(overrides, folder, *options):
        config = tmp_path / "run-config.toml"
        config.write_text(f"overrides = {json.dumps(overrides)}\noutput-dir = {json.dumps(str(folder))}\n")
        command = [BIN / "flwr", "run", REPOSITORY, "--stream", "--run-config", config, *options]
        shown = subprocess.run(command, env=superlink, cwd=tmp_path, text=True, capture_output=True, timeout=400)
        started = re.search(r"Successfully started run (\d+)", shown.stdout)
        assert started, shown.stdout + shown.stderr
        listing = [BIN / "flwr", "list", "--run-id", started[1], "--format", "json"]
        listed = subprocess.run(listing, env=superlink, cwd=tmp_path, text=True, capture_output=True, check=True)
        entry = json.loads(listed.stdout)["runs"][0]
        return entry["status"], entry["status-details"], shown.stdout

    return run


@pytest.mark.parametrize(
    "options",
    [[], ["--federation-config", "num-supernodes=3 client-resources-num-cpus=1"]],
    ids=["default number of nodes", "three nodes"],
)
def test_flwr_run_ends_with_the_same_bits_as_a_run_in_one_process(flwr_run, finished_run, tmp_path, options):
    status, details, shown = flwr_run(" ".join(FAST), tmp_path / "run", *options)
    assert status == "finished:completed", f"{details}\n{shown}"
    through_flower = Finished(tmp_path / "run", json.loads((tmp_path / "run" / "results.json").read_text()))
    here = finished_run()
    assert without_seconds(through_flower.results) == without_seconds(here.results)
    assert_same_run(through_flower, here)
    assert "=== Round 2: Training Generator and Global Adapters ===" in through_flower.log
    assert "=== Round 2: Training Generator and Global Adapters ===" in shown


def test_a_wrong_override_fails_the_run_and_the_reason_is_in_its_status(flwr_run, tmp_path):
    status, details, _ = flwr_run("rouns=3", tmp_path / "run")
    assert status == "finished:failed"
    assert "did you mean rounds?" in details
    assert not (tmp_path / "run").exists()
