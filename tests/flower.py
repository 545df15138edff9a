"""Flower's own programs for tests: each in a separate folder, on a separate port, ended by its process ID."""

import io
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import psutil
from typer.testing import CliRunner

REPOSITORY = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
# For anything that takes seconds on a machine that does nothing else.
PATIENCE = 240


_HELD = []


def own_port():
    """A port for a program that needs one as an argument; no other program gets it while these tests run.

    It is bound here without listening. Linux does not assign it to programs that request any port, but a program that
    requests it with SO_REUSEADDR, as Flower's do, gets it. Other systems refuse, so there the port is released at once.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    port = holder.getsockname()[1]
    if sys.platform == "linux":
        _HELD.append(holder)
    else:
        holder.close()
    return port


def environment(home):
    """The environment of Flower's programs and of deploy/ on a machine whose home is `home`."""
    return os.environ | {
        "HOME": str(home),
        "FLWR_HOME": str(home / "flwr_home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # flwr starts its processes by name
    }


def copy_of_app(folder):
    """The files of Flower's app, in a new folder, because Flower reads every file of a checkout, including .venv."""
    folder.mkdir()
    for name in ("fed_a2v", "conf"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


def wait_until(happened, what, seconds=PATIENCE, log=None, pause=0.2):
    """The result of `happened()`, once it is true; called again after a pause, which is longer if the call is slow."""
    deadline = time.monotonic() + seconds
    while not (result := happened()):
        assert time.monotonic() < deadline, (
            f"{what} did not happen within {seconds} s\n{log.read_text() if log else ''}"
        )
        time.sleep(pause)
    return result


class Program:
    """A program that runs until it is ended, with all the processes that it started."""

    def __init__(self, command, home, prefix=()):
        self.command = [*map(str, prefix), *map(str, command)]
        self.home = home
        home.mkdir(exist_ok=True)
        self.log = home / "log"
        self.process = None

    def start(self):
        with self.log.open("a") as output:
            self.process = subprocess.Popen(
                self.command, env=environment(self.home), cwd=self.home, stdout=output, stderr=subprocess.STDOUT
            )
        return self

    @property
    def alive(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        """SIGKILL for the program only; the processes that it started notice it."""
        self.process.kill()
        self.process.wait()

    def end(self):
        """End the program and all that it started."""
        if self.process is not None:
            end_tree(self.process.pid)
            self.process.wait()
            self.process = None


def end_tree(pid, request=signal.SIGTERM):
    """End a process and all that it started, each by its own number; those that do not listen are killed."""
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        processes = [top, *top.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(request)
        for process in psutil.wait_procs(processes, timeout=20)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@dataclass(frozen=True)
class Ended:
    """How a run ended, in Flower's words, and what it showed."""

    status: str
    details: str
    shown: str


class SuperLink(Program):
    """A SuperLink, and the operator who uses it from the same machine.

    Args:
        home: its folder.
        command: starts it; `PORT` stands for the port.
        authority: the certificate that its own is signed with; None: it speaks plain HTTP.
    """

    def __init__(self, home, command, authority=None):
        self.port = own_port()
        super().__init__([str(self.port) if word == "PORT" else word for word in command], home)
        self.authority = authority
        flwr_home = home / "flwr_home"
        flwr_home.mkdir(parents=True)
        trust = "insecure = true" if authority is None else f'root-certificates = "{authority}"'
        (flwr_home / "config.toml").write_text(
            f'[superlink]\ndefault = "test"\n\n[superlink.test]\naddress = "127.0.0.1:{self.port}"\n{trust}\n'
        )

    def start(self):
        super().start()
        wait_until(self.healthy, "the SuperLink's start", log=self.log)
        return self

    def healthy(self):
        assert self.alive, self.log.read_text()
        scheme, trust = "http", None
        if self.authority is not None:
            scheme, trust = "https", ssl.create_default_context(cafile=self.authority)
        try:
            with urllib.request.urlopen(f"{scheme}://127.0.0.1:{self.port}/health", timeout=5, context=trust):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def flwr(self, *words, seconds=PATIENCE):
        """The output of an operator's command."""
        done = subprocess.run(
            [BIN / "flwr", *words],
            env=environment(self.home),
            cwd=self.home,
            text=True,
            capture_output=True,
            timeout=seconds,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def listed(self, *words):
        """What an operator's command lists, as JSON; in this process, because `flwr` takes a second to start."""
        from flwr.cli.app import app

        shown = io.StringIO()
        with patch.object(sys, "__stdout__", shown):  # where it prints JSON
            done = CliRunner().invoke(app, [*words, "--format", "json"], env=environment(self.home))
        answer = json.loads(shown.getvalue())
        assert (done.exit_code, answer["success"]) == (0, True), answer
        return answer

    def submit(self, app, overrides, folder, *options):
        """Start a run; returns its number."""
        config = self.home / "run-config.toml"
        config.write_text(f"overrides = {json.dumps(overrides)}\noutput-dir = {json.dumps(str(folder))}\n")
        said = self.flwr("run", str(app), "test", "--format", "json", "--run-config", str(config), *options)
        return str(json.loads(said)["run-id"])

    def state(self, run_id):
        """A run's status and the reason of it. `flwr run` exits 0 whatever happens: the status counts."""
        run = self.listed("list", "test", "--run-id", run_id)["runs"][0]
        return run["status"], run["status-details"]

    def end_of(self, run_id, seconds=4 * PATIENCE):
        """Wait for the end of a run: its log is shown until then."""
        deadline = time.monotonic() + seconds
        while True:
            shown = self.flwr("log", run_id, "test", "--stream", seconds=seconds)
            if (state := self.state(run_id))[0].startswith("finished"):
                return Ended(*state, shown)
            assert time.monotonic() < deadline, f"run {run_id} did not end within {seconds} s: {self.log.read_text()}"

    def run(self, app, overrides, folder, *options):
        """A whole run."""
        return self.end_of(self.submit(app, overrides, folder, *options))
