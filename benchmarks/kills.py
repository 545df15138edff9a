"""Check that runs that are killed at random moments and started again end like an undisturbed run.

    python benchmarks/kills.py [--kills 20] [--rounds 4] [--seed 0] [--write]

Each run is `fed-a2v train experiment=quick` in a separate process, ended by SIGKILL: one of three at a random moment
of its first half, one of its second half, and the third while it writes a state, when a random share of the file's
bytes is on the disk. Then the same command runs again, to the end. Metrics (except clock times), results and the last
state must be equal to those of the undisturbed run to the last bit, and no incomplete file may be left.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import machine, write_block

from fed_a2v import cli
from fed_a2v.federation import simulation as engine  # noqa: F401 - imported once, here, and not in every process
from fed_a2v.runs.checkpoint import load_state
from fed_a2v.runs.folder import RunFolder
from fed_a2v.runs.speed import without_clock
from fed_a2v.storage.files import read_jsonl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the result into docs/engineering.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        exact = kill_and_resume(Path(folder), given.kills, given.rounds, random.Random(given.seed))
    text = f"**{sum(exact)} of {given.kills}** killed runs ended exactly like the undisturbed run. {machine()}."
    print(text)
    if given.write:
        write_block("kills", text)
    sys.exit(0 if all(exact) else 1)


def kill_and_resume(folder: Path, kills: int, rounds: int, moments: random.Random) -> list[bool]:
    """Whether each of the killed runs ended like the undisturbed one."""
    start = time.monotonic()
    whole = folder / "whole"
    finish(train(whole, rounds))
    seconds = time.monotonic() - start
    exact: list[bool] = []
    attempts = 0
    while len(exact) < kills:
        attempts += 1
        run = folder / f"run-{attempts}"
        if len(exact) % 3 == 2:
            round_number = moments.randint(1, rounds)
            moment = f"while it wrote the state of round {round_number}"
            killed = was_killed(train(run, rounds, TornState(round_number, moments.random()).fits_in))
            if not killed or not list((run / "checkpoints").glob(f".state_round_{round_number:06d}.pt.*.tmp")):
                raise SystemExit(f"run {attempts} was not killed {moment}")
        else:
            after = (len(exact) % 3 + moments.random()) / 2 * seconds
            moment = f"after {after:.2f} of {seconds:.2f} s"
            start = time.monotonic()
            if not kill_after(train(run, rounds), after):
                seconds = (
                    time.monotonic() - start
                )  # the run ended before the kill, as the machine was faster: choose another moment
                continue
        done = len(read_jsonl(run / "metrics.jsonl"))
        finish(train(run, rounds))
        exact.append(left(run) == left(whole) and not list(run.rglob("*.tmp")))
        verdict = "exact" if exact[-1] else "DIFFERENT"
        print(f"{len(exact)}: killed {moment}, {done} rounds recorded: {verdict}", flush=True)
    return exact


def train(folder: Path, rounds: int, prepare: Callable[[], None] = lambda: None) -> int:
    """Start `fed-a2v train` in a separate process, and return its ID.

    The process is a fork of this one, so that the time of the kill is counted without imports; `prepare` is called in
    it.
    """
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        folder.mkdir(exist_ok=True)
        log = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        prepare()
        cli.main(["train", "experiment=quick", f"rounds={rounds}", "wandb.mode=disabled", f"hydra.run.dir={folder}"])
        code = 0
    finally:
        os._exit(code)


def finish(process: int) -> None:
    """Wait for the end of a run that must succeed."""
    if os.waitpid(process, 0)[1] != 0:
        raise SystemExit("the undisturbed run has failed")


def kill_after(process: int, seconds: float) -> bool:
    """End a run by SIGKILL after the given seconds; False if it ended before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    return was_killed(process)


def was_killed(process: int) -> bool:
    """Wait for the end of a run; False if it ended by itself."""
    status = os.waitpid(process, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status != 0:
        raise SystemExit("a run has failed before it was killed")
    return False


class TornState:
    """Ends its process by SIGKILL in the middle of writing one state."""

    def __init__(self, round_number: int, share: float) -> None:
        self.round_number = round_number
        self.share = share
        self.save = torch.save

    def fits_in(self) -> None:
        """Start watching this process."""
        torch.save = self  # type: ignore[assignment]

    def __call__(self, value: Any, file: Any) -> None:
        """Write a value, or only its first bytes before the kill."""
        if not (isinstance(value, dict) and "components" in value and value.get("round") == self.round_number):
            self.save(value, file)
            return
        whole = io.BytesIO()
        self.save(value, whole)
        file.write(whole.getvalue()[: int(self.share * whole.tell())])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def left(folder: Path) -> list[Any]:
    """Files of a run without values that depend on the clock, for the comparison."""
    run = RunFolder(folder)
    state = load_state(folder)
    assert state is not None
    timeless = [without_clock(row) for row in (*run.rows(), json.loads(run.results.read_text()))]
    components = {
        name: part for name, part in state["components"].items() if name != "callbacks"
    }  # W&B's id of the run
    return [timeless, list(leaves(components))]


def leaves(tree: Any, where: str = "") -> Any:
    """Every leaf of a nested structure with its key; tensors as type, shape and bytes."""
    if isinstance(tree, torch.Tensor):
        yield (
            where,
            str(tree.dtype),
            tuple(tree.shape),
            tree.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{where}.{key}")
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from leaves(value, f"{where}[{number}]")
    else:
        yield where, tree


if __name__ == "__main__":
    main()
