"""Seconds and memory of `flwr run` with many virtual sites, in Flower's simulation with Ray on this machine.

    python benchmarks/scale_ray.py [--sites 50,200] [--rounds 3] [--write]

The real programs: a SuperLink of its own, `flwr run`, Ray's actors, and complete sites that train and score. They are
cheap, with six clips of one class each (random embeddings of width 64) and narrow adapters, so that what is measured is
Flower, Ray and the server. Memory is the largest sum over the processes of a kind, in proportional set size, which
counts pages that processes share once. It is read once a second, as is the processor time of all of them together.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
from common import ROOT, machine, measured, require_no_refusals, write_block
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.object_store.object_store_factory import ObjectStoreFactory
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager

from fed_a2v.storage.files import read_jsonl

sys.path.insert(0, str(ROOT))
from tests.flower import BIN, SuperLink, copy_of_app

CLASSES, CLIPS, WIDTH, NODES = 10, 6, 64, 100_000
NARROW = ("adapters.hidden_width=32", "generator=gaussian", "finetune.first_steps=10", "finetune.steps=10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", default="50,200")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the table into docs/scale.md")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        print(json.dumps(measure(given.measure, given.rounds)))
        return
    lines = [
        "| sites | the run, s | its processor time, s | registration, s | training, s | evaluation, s | "
        "a site and round, ms | server process, MB | Ray, MB | SuperLink, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for number in map(int, given.sites.split(",")):
        found = measured(__file__, number, "--rounds", given.rounds)
        lines.append(
            f"| {number} | {found['whole']:.0f} | {found['processor']:.0f} | {found['registration']:.1f} | "
            f"{found['training']:.1f} | {found['evaluation']:.1f} | "
            f"{1e3 * (found['training'] + found['evaluation']) / number:.0f} | "
            + " | ".join(f"{found[kind] / 1e6:.0f}" for kind in ("server", "ray", "superlink"))
            + " |"
        )
        print(lines[-1], flush=True)
    rounds = f"{given.rounds} rounds; training and evaluation: medians over those after the first"
    text = "\n".join(lines) + (
        f"\n\n{rounds}. Flower's search for new messages passes over {NODES:,} nodes in {search():.2f} s of a core. "
        f"{machine()}."
    )
    print(text)
    if given.write:
        write_block("scale ray", text)


def measure(sites: int, rounds: int) -> dict[str, float]:
    """Execute a run and return seconds and bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        embeddings(folder / "clips.npz", sites)
        superlink = SuperLink(
            folder / "superlink",
            [BIN / "flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", "PORT"],
        )
        start = time.perf_counter()
        overrides = [
            *("dataset=embeddings", f"dataset.path={folder / 'clips.npz'}"),
            *("partition=classes", f"partition.sites={sites}", "partition.classes_per_site=1", f"rounds={rounds}"),
            *("federation.round_timeout=3000", "wandb.mode=disabled", "report=false", *NARROW),
        ]
        try:
            superlink.start()
            words = f"num-supernodes={sites} client-resources-num-cpus=1"
            run = superlink.submit(
                copy_of_app(folder / "app"), " ".join(overrides), folder / "run", "--federation-config", words
            )
            peaks: Counter[str] = Counter()
            processor: dict[int, float] = {}
            for second in itertools.count(1):
                for kind, size in look(superlink.process.pid, processor).items():
                    peaks[kind] = max(peaks[kind], size)
                if (folder / "run" / "results.json").exists():
                    break
                # The question is a program of its own, which takes a second of a core.
                if second % 30 == 0 and superlink.state(run)[0].startswith("finished"):
                    break
                time.sleep(1.0)
            if superlink.end_of(run).status != "finished:completed":
                raise SystemExit(superlink.flwr("log", run, "test", "--show"))
        finally:
            superlink.end()
        whole = time.perf_counter() - start
        rows = read_jsonl(folder / "run" / "metrics.jsonl")
    require_no_refusals(rows)
    if any(row["replies"] != sites for row in rows):
        raise SystemExit(f"replies by round: {[row['replies'] for row in rows]}, of {sites} sites")

    def usual(phase: str) -> float:
        return statistics.median(row[f"seconds/{phase}"] for row in rows[1:] or rows)

    return {
        "whole": whole,
        "processor": sum(processor.values()),
        "registration": rows[0]["seconds_registration"],
        "training": usual("sites"),
        "evaluation": usual("evaluate"),
        **peaks,
    }


def search() -> float:
    """Processor seconds in which Flower looks for a message to each of `NODES` nodes, when there is none."""
    state = InMemoryLinkState(NoOpFederationManager(), ObjectStoreFactory().store())
    nodes = [state.create_node("", "", os.urandom(32), heartbeat_interval=1e300) for _ in range(NODES)]
    start = time.process_time()
    for node in nodes:
        state.get_message_ins(node, limit=1)
    return time.process_time() - start


def embeddings(path: Path, sites: int) -> None:
    """Random embeddings of `CLIPS` clips for each site, a third of them for the test."""
    random = np.random.default_rng(0)
    number = np.arange(sites * CLIPS)
    target = number // CLIPS % CLASSES
    centres = random.normal(size=(CLASSES, WIDTH))
    rows = centres[target] + 0.5 * random.normal(size=(len(number), WIDTH))
    np.savez(path, embeddings=rows.astype(np.float32), target=target, fold=1 + number % 3)


def look(superlink: int, processor: dict[int, float]) -> dict[str, int]:
    """Bytes of a SuperLink's processes by kind; their processor seconds so far are stored by process."""
    sizes: Counter[str] = Counter()
    top = psutil.Process(superlink)
    for process in [top, *top.children(recursive=True)]:
        try:
            words = " ".join(process.cmdline())
            kind = "server" if "flwr-simulation" in words else "ray" if "ray" in words else "superlink"
            sizes[kind] += process.memory_full_info().pss
            processor[process.pid] = sum(process.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return sizes


if __name__ == "__main__":
    main()
