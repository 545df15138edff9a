"""Where the processor time of `fed-a2v train` goes, from the shell to the report, and what another commit took.

    python benchmarks/train.py [--against COMMIT] [--repeats 3] [--write] [-- KEY=VALUE ...]

Each run is a process of its own, whose parts are wrapped in clocks of processor time. A part's seconds are without
those of the parts that it calls, so that all add up to the total: user and system time of the process and of all that
it starts, such as W&B's service.
"""

from __future__ import annotations

import argparse
import builtins
import functools
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# The functions of each part, as MODULE:NAME; a commit without one of them shows its time elsewhere.
PARTS = {
    "configuration": (
        *("fed_a2v.config.compose:_composed", "fed_a2v.config.compose:settings_from"),
        *("hydra._internal.hydra:Hydra.compose_config", "fed_a2v.commands.job:settings_from"),
    ),
    "clips and embeddings": (
        "fed_a2v.federation.server.trainer:load_clips",
        "fed_a2v.federation.client.local_training:site_clips",
    ),
    "sites: registration and training": ("fed_a2v.federation.client.flower_client:A2VClient.fit",),
    "sites: evaluation": ("fed_a2v.federation.client.flower_client:A2VClient.evaluate",),
    "server: generator": ("fed_a2v.core.server_step:train_generator",),
    "server: validation": ("fed_a2v.core.server_step:ServerStep._validate",),
    "server: fine-tuning": ("fed_a2v.core.server_step:ServerStep._finetune",),
    "embedding map": ("fed_a2v.callbacks.embedding_map:EmbeddingMapFile.on_evaluate_end",),
    "states and generators written": (
        "fed_a2v.callbacks.checkpoint:Checkpoint.on_round_end",
        "fed_a2v.callbacks.generator_checkpoint:GeneratorCheckpoint.on_server_step_end",
    ),
    "W&B": tuple(f"fed_a2v.callbacks.wandb:Wandb.on_{hook}" for hook in ("run_start", "round_end", "run_end")),
    "report": ("fed_a2v.callbacks.report:Report.on_run_end",),
}
IMPORTS, OUTSIDE, REST = "imports", "start and end of Python, and W&B's service", "the rest"


class Clock:
    """Seconds of processor time by part; a part's time does not count for the part that calls it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.parts, self.last = [REST], time.process_time()

    def turn(self) -> None:
        """Charge the time since the last call to the current part."""
        now = time.process_time()
        self.seconds[self.parts[-1]] += now - self.last
        self.last = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge the block to the part."""
        self.turn()
        self.parts.append(name)
        try:
            yield
        finally:
            self.turn()
            self.parts.pop()

    def wrap(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, charged to the part."""

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*arguments, **named)

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="COMMIT", help="also measure that commit, the two in turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the table into docs/engineering.md")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="settings of the run")
    given = parser.parse_args()
    from common import ROOT, machine, write_block

    with tempfile.TemporaryDirectory() as place, checkout(given.against, Path(place)) as earlier:
        roots = [*([earlier] if earlier else []), ROOT]
        found: list[list[dict[str, float]]] = [[] for _ in roots]
        for _ in range(given.repeats):
            for root, times in zip(roots, found, strict=True):
                times.append(measured(root, given.words))
    best = [min(times, key=lambda parts: sum(parts.values())) for times in found]
    titles = [*([f"at {given.against}"] if given.against else []), "now"]
    names = sorted(set().union(*best), key=lambda name: -best[-1].get(name, 0))
    rows = [[name, *(f"{parts.get(name, 0):.2f}" for parts in best)] for name in names]
    totals = [sum(parts.values()) for parts in best]
    rows.append(["**all**", *(f"**{total:.1f}**" for total in totals)])
    lines = ["| processor seconds | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    ratio = f" The run takes {totals[-1] / totals[0]:.2f} times as long as at {given.against}." if earlier else ""
    command = " ".join(["fed-a2v train", *given.words])
    text = "\n".join([*lines, "", f"`{command}`, the best of {given.repeats} runs.{ratio} {machine()}."])
    print(text)
    if given.write:
        write_block("train", text)


@contextmanager
def checkout(commit: str | None, place: Path) -> Iterator[Path | None]:
    """A temporary checkout of the commit; None without one."""
    if commit is None:
        yield None
        return
    root, folder = Path(__file__).resolve().parent.parent, place / "earlier"
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(folder), commit], cwd=root, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=root, check=True)


def measured(root: Path, words: list[str]) -> dict[str, float]:
    """Processor seconds of a run by part, with the code in `root` and an empty cache."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, __file__, "--measure", place, *words]
        environment = os.environ | {"PYTHONPATH": str(root), "FED_A2V_CACHE": str(Path(place, "cache"))}
        before = used()
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} in {root}:\n{done.stderr[-4000:]}")
        total = used() - before
        parts: dict[str, float] = json.loads(Path(place, "parts.json").read_text())
    return {**parts, OUTSIDE: total - sum(parts.values())}


def measure(folder: Path, words: list[str]) -> None:
    """Run `fed-a2v train` in this process, and write the seconds of its parts into the folder."""
    clock = Clock()
    pending = {place: name for name, places in PARTS.items() for place in places}
    inside = False

    def timed(load: Callable[..., Any]) -> Callable[..., Any]:
        def load_timed(*arguments: Any, **named: Any) -> Any:
            nonlocal inside
            if inside:
                return load(*arguments, **named)
            inside = True
            try:
                with clock.part(IMPORTS):
                    return load(*arguments, **named)
            finally:
                inside = False
                for place in [place for place in pending if place.partition(":")[0] in sys.modules]:
                    wrap(place, pending.pop(place), clock)

        return load_timed

    builtins.__import__, importlib.import_module = timed(builtins.__import__), timed(importlib.import_module)
    from fed_a2v.cli import main as run

    try:
        run(["train", "--out", str(folder / "run"), *words])
    finally:
        clock.turn()
        (folder / "parts.json").write_text(json.dumps(clock.seconds))


def wrap(place: str, name: str, clock: Clock) -> None:
    """Replace the function `MODULE:NAME` by one that is charged to the part `name`."""
    module, _, path = place.partition(":")
    *outer, function = path.split(".")
    with suppress(AttributeError):
        owner = functools.reduce(getattr, outer, sys.modules[module])
        setattr(owner, function, clock.wrap(getattr(owner, function), name))


def used() -> float:
    """Processor seconds of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
