"""The fenced code blocks of the documentation, and a place to run them."""

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.flower import REPOSITORY, own_port

PAGES = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").rglob("*.md"))]
# Stands above a block that takes half a minute or more; `make test-deployment` runs it.
SLOW = "<!-- slow -->"
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)[^\n`]*\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    body: str
    slow: bool

    def __str__(self):
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks_of(page, *languages):
    """The blocks of a page in some languages, in their order; what is included from a file is not among them."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        indent = match["indent"]
        body = "".join(line.removeprefix(indent) for line in match["body"].splitlines(keepends=True))
        if match["language"] in languages and "--8<--" not in body:
            before = text[: match.start()]
            slow = before.rstrip().endswith(SLOW)
            found.append(Block(page, before.count("\n") + 1, match["language"], body, slow))
    return found


def name_of(page):
    """A page's place in the repository, for the name of a test."""
    return str(page.relative_to(REPOSITORY))


class Workplace:
    """A copy of the tracked files in a folder of its own, with an environment in which nothing of the user's is met.

    Args:
        folder: an empty one.
        command: what `fed-a2v` is here, and `python -c`, as the text of a script; None: the programs themselves.
        more: words that `fed-a2v` gets in addition.
    """

    def __init__(self, folder, command=None, more=""):
        self.root = folder / "fed_a2v"
        tracked = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in filter(None, tracked.stdout.split("\0")):
            if (REPOSITORY / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, self.root / name)
        self._pretend_to_be_installed(command, more)
        self.python = self.root / ".venv" / "bin" / ("python" if command is None else "fed-a2v")
        self.home = folder / "home"
        self.home.mkdir()
        self.environment = {name: value for name, value in os.environ.items() if name != "FED_A2V_DATA"} | {
            "HOME": str(self.home),
            "FLWR_HOME": str(self.home / "flwr"),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(own_port()),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_OFFLINE": "1",
            "PATH": f"{self.root / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.root),
        }

    def _pretend_to_be_installed(self, script, more):
        """`.venv` as `make dev` leaves it, so that no command of `make` installs anything."""
        here, there = Path(sys.prefix), self.root / ".venv"
        (there / "bin").mkdir(parents=True)
        for path in [*(path for path in here.iterdir() if path.name != "bin"), *(here / "bin").iterdir()]:
            (there / path.relative_to(here)).symlink_to(path)
        for stamp in (there / "installed", there / "dev"):
            stamp.unlink(missing_ok=True)
            stamp.touch()
        # Whatever PYTHONPATH a block sets, the command is that of this copy.
        command = there / "bin" / "fed-a2v"
        command.unlink()
        path = f'PYTHONPATH="{self.root}${{PYTHONPATH:+:$PYTHONPATH}}"'
        command.write_text(script or f'#!/bin/sh\n{path} exec {here}/bin/fed-a2v "$@" {more}\n')
        command.chmod(0o755)

    def start(self, command, **options):
        """Start a command here, in a session of its own."""
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )

    def run(self, block, timeout):
        """Run one block; it fails as a shell or Python script fails, at its first error."""
        command = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [self.python, "-c"]
        with self.start([*command, block.body], stdout=subprocess.PIPE) as process:
            try:
                said, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                said, _ = process.communicate()
                raise AssertionError(f"{block} ran longer than {timeout} s:\n{block.body}\n{said}") from None
        assert process.returncode == 0, f"{block} ended with {process.returncode}:\n{block.body}\n{said}"
        return said

    def close(self):
        """End what a block left running, such as Flower's SuperLink: each process that carries our FLWR_HOME."""
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("FLWR_HOME") == self.environment["FLWR_HOME"]
            except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if ours:
                process.kill()
