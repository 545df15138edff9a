"""Flower's SuperExec at a site; the process of each message is a fork of one that has imported Flower and torch.

    python superexec.py OPTION...       the options of flower-superexec

Flower's own SuperExec starts a program for every message, which spends seconds on imports. Here a process imports the
packages, forks once and becomes the SuperExec; the fork waits for tasks and forks again for each. So a message still
has a process of its own. The app is not imported before: its code comes with the run.

Of Flower this uses one detail: its SuperExec starts programs by `subprocess.Popen`. A version of Flower that does so in
another way starts them as it does without this file.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

CLIENT_APP = "flwr-clientapp"
SUPEREXEC = "flower-superexec"
# Starts the programs of tasks, by its attribute `subprocess`.
EXECUTOR = "flwr.supercore.superexec.executor.subprocess_executor"
# What the app imports at a site. A package that is missing here is imported for each message.
PACKAGES = (
    "torch",
    "numpy",
    "omegaconf",
    "antlr4",
    "pydantic",
    "filelock",
    "soundfile",
    "soxr",
    "safetensors.numpy",
    "safetensors.torch",
)

Program = Callable[[], object]


def main() -> None:
    """Run the SuperExec, and next to it the process that is forked for messages."""
    superexec, client_app, executor = program(SUPEREXEC), program(CLIENT_APP), imported(EXECUTOR)
    for name in PACKAGES:
        imported(name)
    read, write = os.pipe()
    # Now, while this process has one thread: locks that others hold would stay locked in a fork.
    if os.fork() == 0:
        os.close(write)
        with os.fdopen(read) as tasks:
            fork_for_each(tasks, client_app)
        return
    os.close(read)
    if executor is not None:
        executor.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": Popen(os.fdopen(write, "w"))})
    superexec()


def program(name: str) -> Program:
    """The function of an installed program."""
    (found,) = entry_points(group="console_scripts", name=name)
    loaded: Program = found.load()
    return loaded


def imported(name: str) -> Any:
    """A module; None if it cannot be imported, for whatever reason: a site may work without it."""
    with suppress(Exception):
        return importlib.import_module(name)
    return None


class Popen:
    """Stands in for `subprocess.Popen`: passes the arguments of a message's process on, and starts other programs.

    Args:
        tasks: where the arguments are written, a line of JSON for each process.
    """

    def __init__(self, tasks: IO[str]) -> None:
        self.tasks = tasks

    def __call__(self, arguments: Sequence[str], **options: Any) -> subprocess.Popen[bytes] | None:
        """Start a process; the result is None if it is a fork."""
        if arguments[0] == CLIENT_APP and not any(value is not None for value in options.values()):
            # If the other process was killed, the site goes on as with Flower's own SuperExec.
            with suppress(BrokenPipeError):
                print(json.dumps(list(arguments)), file=self.tasks, flush=True)
                return None
        return subprocess.Popen(arguments, **options)


def fork_for_each(tasks: IO[str], client_app: Program) -> None:
    """Run `client_app` in a fork of this process for each line, with its arguments, until the SuperExec ends."""
    # Objects that exist now are never garbage: a collection would copy their memory into every fork.
    gc.freeze()
    # Ctrl-C reaches the whole process group; the SuperExec ends this process, by closing the pipe.
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system removes the forks that have ended
    for line in tasks:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, interrupted)
            tasks.close()  # the SuperExec must notice if only forks are left
            run(json.loads(line), client_app)


def run(arguments: list[str], client_app: Program) -> None:
    """Run the program in this process, and end it."""
    with suppress(OSError):  # what ps and top show, on Linux
        Path("/proc/self/comm").write_text(CLIENT_APP)
    sys.argv = arguments
    if numpy := imported("numpy"):
        numpy.random.seed()  # else all forks have the same random numbers
    status = 1
    try:
        client_app()
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not by sys.exit: it would free all imported modules, and so first copy their memory, half of the work.
        os._exit(status)


if __name__ == "__main__":
    main()
