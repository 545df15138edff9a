"""Sites that send garbage: what each aggregation rule loses to them.

    FED_A2V_DATA=FOLDER python benchmarks/hostile.py [--seeds 0,1,2] [--write]

ESC-50, YAMNet, 50 sites (Dirichlet 1.0), of which 10 send garbage of one kind in every round: weights that are not
finite, a thousand times too large, of the opposite sign, of another shape; or everything that belongs to a class
under another class's name. Folds 1 to 3 train, fold 4 tests, 5 rounds; default server step without a generator.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import PROMPTS, data, machine, spread, write_block
from flwr.common import Config, NDArrays, Scalar
from rich.console import Console

from fed_a2v.config import compose_settings
from fed_a2v.data.partition import site_name
from fed_a2v.federation.client import A2VClient
from fed_a2v.federation.engine import run_in_process
from fed_a2v.federation.node import Node
from fed_a2v.federation.site import Site
from fed_a2v.federation.wire import join_arrays, split_arrays

MODES = ("avg", "median", "trimmed", "krum")
KINDS = ("none", "not finite", "huge", "opposite sign", "other shape", "swapped classes")
# Every fifth site, so that they are spread over the classes.
HOSTILE = frozenset(site_name(number) for number in range(0, 50, 5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    given = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    lines = ["| garbage | " + " | ".join(MODES) + " | replies refused |", "|---|" + "---|" * (len(MODES) + 1)]
    for kind in KINDS:
        cells, refused = [], 0
        for mode in MODES:
            results = [run(mode, kind, seed) for seed in seeds]
            cells.append(spread([accuracy for accuracy, _ in results]))
            refused = max(refused, *(rejected for _, rejected in results))
        lines.append(f"| {kind} | " + " | ".join(cells) + f" | {refused} |")
        print(lines[-1], flush=True)
    text = "\n".join(lines) + f"\n\nAccuracy after round 5, {len(seeds)} seeds. {PROMPTS['anchors']} {machine()}."
    print(text)
    if given.write:
        write_block("hostile", text)


def run(mode: str, kind: str, seed: int) -> tuple[float, int]:
    """Final accuracy, and the number of replies that the server refused."""
    settings = compose_settings(
        [
            "experiment=esc50_50x1",
            "partition=dirichlet",
            "partition.alpha=1.0",
            "partition.sites=50",
            *data("yamnet"),
            "generator=none",
            "share.min_clips=1",
            f"aggregation.mode={mode}",
            "aggregation.trimmed_share=0.25",
            "aggregation.malicious_sites=10",
            f"seed={seed}",
            "wandb.mode=disabled",
        ]
    )
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        results = run_in_process(settings, Path(folder), Console(file=nowhere), lambda: Garbage(kind))
    return results["accuracy"], results["rejected"]


class Garbage(A2VClient):
    """Acts for honest sites, and for hostile ones."""

    def __init__(self, kind: str) -> None:
        super().__init__({})
        self.kind = kind

    def node(self) -> Node:
        """What does the work."""
        return GarbageNode(self.kind)


class GarbageNode(Node):
    """See `Garbage`."""

    def __init__(self, kind: str) -> None:
        super().__init__({})
        self.kind = kind

    def fit(self, parameters: NDArrays, config: Config) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """The honest reply, with other weights where the site is hostile."""
        parts, clips, metrics = super().fit(parameters, config)
        if config["site"] in HOSTILE and config["task"] == "train":
            weights, *rest = parts
            parts = [join_arrays(self.spoilt(array) for array in split_arrays([weights], 1000)), *rest]
        return parts, clips, metrics

    def spoilt(self, array: np.ndarray) -> np.ndarray:
        """One array of weights as a hostile site sends it."""
        if self.kind == "not finite":
            return np.full_like(array, np.nan)
        if self.kind == "huge":
            return (1000 * array.astype(np.float32)).astype(np.float32)
        if self.kind == "opposite sign":
            return -array
        if self.kind == "other shape":
            return array.reshape(-1)[:-1]
        return array

    def _site(self, config: Config) -> Site:
        site = super()._site(config)
        if self.kind == "swapped classes" and config["site"] in HOSTILE and config["task"] != "evaluate":
            train = site.data.train
            site.data = replace(site.data, train=replace(train, labels=(train.labels + 1) % len(site.classes)))
        return site


if __name__ == "__main__":
    main()
