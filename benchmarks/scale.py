"""Growth of the server's peak memory and the time of its step from 20 to 200 sites.

    python benchmarks/scale.py [--sites 20,50,100,200] [--rounds 3] [--write]

The complete in-process engine: Flower's server, checked replies, averaging, the default VAE, fine-tuning, checkpoints.
Only the sites are simulated, by functions that generate their replies: each has 24 clips of each of ten classes, and
sends 8 prototypes of each, and adapters of the default size (`compact`). Each number of sites is a separate process;
the peak is its largest resident size. A site's payload is its adapters, which wait for the server in a round, plus its
prototypes, which are sent once and stay on the server.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import PeakMemory, machine, measured, require_no_refusals, write_block
from flwr.common import Config, NDArrays, Scalar
from rich.console import Console

from fed_a2v.config.compose import compose_settings
from fed_a2v.core.losses import TERMS
from fed_a2v.core.server_step import ServerStep
from fed_a2v.core.statistics import AudioPrototypes, ClassStatistics
from fed_a2v.federation.client.flower_client import A2VClient
from fed_a2v.federation.protocol import (
    Changes,
    ClassScores,
    Scores,
    TrainReply,
    encode_scores,
    pack_reply,
    split_arrays,
)
from fed_a2v.federation.server import strategy
from fed_a2v.federation.server.strategy import FedA2V
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.storage.files import read_jsonl

CLASSES, PROTOTYPES, CLIPS, WIDTH = 10, 8, 24, 512
NAMES = tuple(f"class {number}" for number in range(CLASSES))
# Maximum growth of the peak per further site, as a multiple of a site's payload.
LIMIT = 1.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", default="20,50,100,200")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the table into docs/engineering.md")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        print(json.dumps(measure(given.measure, given.rounds)))
        return
    numbers = [int(number) for number in given.sites.split(",")]
    lines = [
        "| sites | peak MB | more per further site, in payloads | reading replies, s | averaging, s | server step, s |",
        "|---|---|---|---|---|---|",
    ]
    first: dict[str, float] = {}
    growth = step_growth = 0.0
    for number in numbers:
        found = measured(__file__, number, "--rounds", given.rounds)
        first = first or found
        share = ""
        if found is not first:
            growth = (found["peak"] - first["peak"]) / (found["sites"] - first["sites"]) / found["payload"]
            step_growth = found["step"] / first["step"]
            share = f"{growth:.2f}"
        lines.append(
            f"| {number} | {found['peak'] / 1e6:.0f} | {share} | {found['reading']:.3f} | {found['averaging']:.3f} | "
            f"{found['step']:.2f} |"
        )
        print(lines[-1], flush=True)
    text = "\n".join(lines) + (
        f"\n\nA site's payload: {first['payload'] / 1e6:.2f} MB, {first['stays'] / 1e6:.2f} of it prototypes. "
        f"Processor seconds: medians over rounds 2 to {given.rounds}. {machine()}."
    )
    print(text)
    print(
        f"peak memory grows by {growth:.2f} payloads per site (limit {LIMIT}); "
        f"{numbers[-1]} sites' server step takes {step_growth:.2f} times as long as {numbers[0]} sites'"
    )
    if given.write:
        write_block("scale", text)
    sys.exit(0 if growth <= LIMIT else 1)


def measure(sites: int, rounds: int) -> dict[str, float]:
    """Execute a run and return bytes and seconds."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    settings = compose_settings(
        [
            "adapters=compact",
            f"rounds={rounds}",
            "partition=own",
            f"partition.sites={sites}",
            f"federation.min_nodes={sites}",
            f"dataset.classes=[{','.join(NAMES)}]",
            "generator.save_checkpoint=false",
            "wandb.mode=disabled",
        ]
    )
    seconds: dict[str, list[float]] = {name: [] for name in ("reading", "averaging", "step")}
    clocked(FedA2V, "_valid_replies", seconds["reading"])
    clocked(strategy, "aggregate", seconds["averaging"])
    clocked(ServerStep, "run", seconds["step"])
    players = iter(range(sites))
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere, PeakMemory() as memory:
        run_in_process(settings, Path(folder), Console(file=nowhere), lambda: Player(next(players)))
        rows = read_jsonl(Path(folder) / "metrics.jsonl")
    require_no_refusals(rows)
    stays = rows[0]["bytes_registration"] / sites
    return {
        "sites": sites,
        "peak": memory.peak,
        "payload": rows[-1]["bytes_up"] / sites + stays,
        "stays": stays,
        **{name: float(np.median(spent[-(rounds - 1) :])) for name, spent in seconds.items()},
    }


def clocked(owner: Any, name: str, spent: list[float]) -> None:
    """Make a function record the processor seconds of each call, which exclude other programs."""
    function = getattr(owner, name)

    def noting(*arguments: Any) -> Any:
        start = time.process_time()
        result = function(*arguments)
        spent.append(time.process_time() - start)
        return result

    setattr(owner, name, noting)


class Player(A2VClient):
    """A site that generates its replies."""

    def __init__(self, number: int) -> None:
        super().__init__({"site": number})
        self.number = number

    def fit(self, parameters: NDArrays, config: Config) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Noise on the received weights; prototypes in the registration."""
        random = torch.Generator().manual_seed(self.number)
        trained = config["task"] == "train"
        weights = [torch.from_numpy(array).float() for array in split_arrays(parameters, 1000)[:-2]] if trained else []
        reply = TrainReply(
            site=str(config["site"]),
            round_number=int(config["round"]),
            task="train" if trained else "register",
            num_examples=CLIPS * CLASSES,
            weights=[weight + 1e-3 * torch.randn(weight.shape, generator=random) for weight in weights],
            statistics=[class_statistics(name, trained, random) for name in NAMES],
            fingerprint="same",
            square_root=False,
            test_clips={NAMES[0]: 1},
            losses=dict.fromkeys(("loss", *TERMS), 1.0) if trained else {},
        )
        arrays, metrics = pack_reply(reply, "float16")
        return arrays, reply.num_examples, metrics

    def evaluate(self, parameters: NDArrays, config: Config) -> tuple[float, int, dict[str, Scalar]]:
        """The evaluation of one clip, correctly classified."""
        del parameters
        scores = Scores({NAMES[0]: ClassScores(clips=1, right_at_1=1, right_at_5=1, cosine=1.0, loss=0.0)})
        models = json.loads(str(config["models"]))
        by_model = dict.fromkeys(models, scores)
        if "before" in models:
            same = {"changes": Changes(better=0, worse=0)}
            by_model["after"] = Scores({name: each.model_copy(update=same) for name, each in scores.classes.items()})
        return 0.0, 1, encode_scores(str(config["site"]), int(config["round"]), by_model)


def class_statistics(name: str, trained: bool, random: torch.Generator) -> ClassStatistics:
    """Statistics that a site sends of one class."""
    if trained:
        return ClassStatistics(name, CLIPS)
    centre = torch.randn(1, 1, WIDTH, generator=torch.Generator().manual_seed(NAMES.index(name)))
    means = centre + 0.3 * torch.randn(PROTOTYPES, 1, WIDTH, generator=random)
    counts = torch.full((PROTOTYPES,), CLIPS // PROTOTYPES)
    return ClassStatistics(name, CLIPS, AudioPrototypes(means, counts, torch.full_like(means, 0.05)))


if __name__ == "__main__":
    main()
