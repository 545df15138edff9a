"""Where the page listens, and what is stored meanwhile; and the command that starts it."""

import asyncio
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from fed_a2v.cli import main
from fed_a2v.demo.server import host_names, is_loopback, opened, temporary_files
from fed_a2v.errors import ConfigError
from tests.demo.conftest import SYNTH
from tests.refusals import refused


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("10.0.0.1", False), ("a.b", False)],
)
def test_only_this_machine_reaches_a_loopback_address(host, loopback):
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(("host", "own"), [("127.0.0.1", "127.0.0.1:7860"), ("::1", "[::1]:7860")])
def test_a_page_on_loopback_answers_to_its_own_names_only(host, own):
    app = TrustedHostMiddleware(PlainTextResponse("the page"), host_names(host))

    def status(name):
        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", name.encode())]}
        asyncio.run(app(scope, None, send))
        return sent[0]["status"]

    assert status(own) == status("localhost:7860") == 200
    assert status("example.org:7860") == 400


def test_a_taken_port_is_refused():
    with opened("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert port > 0
        with refused(ConfigError, f"--port {port}", "127.0.0.1"):
            opened("127.0.0.1", port)
    with refused(ConfigError, "--port 70000"):
        opened("127.0.0.1", 70_000)
    with refused(ConfigError, "--host no.such.host.invalid"):
        opened("no.such.host.invalid", 0)


def test_files_are_in_a_folder_that_is_deleted(monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "before")
    with temporary_files() as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == folder
        (Path(folder) / "sound.wav").touch()
    assert not Path(folder).exists()
    assert os.environ["GRADIO_TEMP_DIR"] == "before"
    monkeypatch.delenv("GRADIO_TEMP_DIR")
    with temporary_files():
        pass
    assert "GRADIO_TEMP_DIR" not in os.environ


# The command


@pytest.fixture
def ended(monkeypatch):
    """Ctrl-C as soon as the server runs; remembers its sockets and the folder of files."""
    seen = []

    def run(self, sockets):
        seen.append((sockets[0].getsockname(), os.environ["GRADIO_TEMP_DIR"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", run)
    before = signal.getsignal(signal.SIGTERM)
    yield seen
    signal.signal(signal.SIGTERM, before)


def test_ctrl_c_ends_the_command_and_deletes_its_files(trained, ended, capsys):
    main(["demo", str(trained(*SYNTH)), "--port", "0"])
    (((host, port), files),) = ended
    assert host == "127.0.0.1"
    assert f"http://127.0.0.1:{port}" in capsys.readouterr().out
    assert not Path(files).exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["images.steps=2"], ("images.steps=2", "--images")),
        (["--images", "sd"], ("adapters=compact", "adapters=sd")),
        (["--port", "-1"], ("--port -1",)),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(words, named, trained, capsys, ended):
    with pytest.raises(SystemExit) as caught:
        main(["demo", str(trained(*SYNTH)), "--port", "0", *words])
    assert caught.value.code == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("fed-a2v: ")
    assert all(name in line for name in named)
    assert not ended


def test_without_gradio_the_package_is_named(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        main(["demo", "nowhere"])
    assert caught.value.code == 2
    assert ".[demo]" in capsys.readouterr().err


@pytest.mark.deployment
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_while_a_page_is_open(sent, trained, tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    words = [sys.executable, "-m", "fed_a2v", "demo", str(trained(*SYNTH)), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        address = next(word for word in process.stdout.readline().split() if word.startswith("http"))
        heartbeat = urllib.request.urlopen(f"{address}/gradio_api/heartbeat/abc", timeout=120)
        assert heartbeat.readline()
        assert list(tmp_path.glob("fed-a2v-demo-*"))
        process.send_signal(sent)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("fed-a2v-demo-*"))
