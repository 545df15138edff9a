"""Bytes that a site sends in a round, and the accuracy, by the type of the weights in its messages.

    FED_A2V_DATA=FOLDER python benchmarks/messages.py [--folds 1,2,3,4] [--seeds 0,1,2] [--write]

Runs `esc50_5x10` and `esc50_50x1` on YAMNet's embeddings with `share.dtype` float32, float16 and int8, paired by fold
and seed: accuracy after the server step, and before it, of the averaged adapters. Also the processor time to pack and
to check one reply.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from common import data, machine, write_block
from flwr.common import ndarrays_to_parameters

from fed_a2v.config.compose import compose_settings
from fed_a2v.federation.protocol import ReplySpec, TrainReply, decode_reply, encode_weights, pack_reply, read_arrays
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.runs.intervals import Interval, paired_interval
from fed_a2v.storage.files import read_jsonl

EXPERIMENTS = {"5 x 10": "esc50_5x10", "50 x 1": "esc50_50x1"}
TYPES = ("float32", "float16", "int8")
REFERENCE = "float16"
# Test clips per training clip: each of the five folds of ESC-50 tests once.
TEST_PER_TRAINING = 1 / 4
REPETITIONS = 15
# Shapes of `adapters=compact` on YAMNet, and the size of a round's differences there.
SHAPES = (
    (1, 512),
    (1, 512),
    (1024,),
    (1024,),
    (512, 1024),
    (512,),
    (512, 512),
    (512,),
    (512,),
    (512,),
    (768, 512),
    (768,),
)
CHANGE = 0.005


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", default="1,2,3,4", help="default: %(default)s")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/engineering.md")
    given = parser.parse_args()
    pairs = [(int(fold), int(seed)) for fold in given.folds.split(",") for seed in given.seeds.split(",")]
    torch.set_num_threads(1)
    lines = [
        "| sites x classes | `share.dtype` | MB a site and round | accuracy | against float16, points "
        "| averaged adapters | against float16, points |",
        "|---" * 7 + "|",
    ]
    for name, experiment in EXPERIMENTS.items():
        rows = {kind: [last_row(experiment, kind, *pair) for pair in pairs] for kind in TYPES}
        for kind in TYPES:
            cells = [f"{fmean(row['bytes'] for row in rows[kind]) / 1e6:.2f}"]
            for key in ("accuracy", "accuracy_before"):
                values = [row[key] for row in rows[kind]]
                cells += [f"{fmean(values):.3f}", difference(values, [row[key] for row in rows[REFERENCE]])]
            lines.append(f"| {name} | {kind} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    speed = ["| `share.dtype` | packed in ms | checked in ms |", "|---" * 3 + "|"]
    speed += [f"| {kind} | {' | '.join(f'{1000 * seconds:.1f}' for seconds in speeds(kind))} |" for kind in TYPES]
    runs = f"{len(pairs)} runs of a row, paired by fold and seed, with 95 % intervals."
    text = "\n".join([*lines, "", *speed, "", f"{runs} {machine()}."])
    print(text)
    if given.write:
        write_block("messages", text)


def last_row(experiment: str, kind: str, fold: int, seed: int) -> dict[str, Any]:
    """The metrics of a run's last round, and `bytes`, which a site sends in a round."""
    words = [f"experiment={experiment}", *data("yamnet"), f"dataset.test_fold={fold}", f"seed={seed}"]
    settings = compose_settings([*words, f"share.dtype={kind}", "report=false", "wandb.mode=disabled"])
    with tempfile.TemporaryDirectory() as folder:
        run_in_process(settings, Path(folder), output="quiet")
        rows = read_jsonl(Path(folder) / "metrics.jsonl")
    return rows[-1] | {"bytes": fmean(row["bytes_up"] / row["replies"] for row in rows)}


def difference(values: list[float], reference: list[float]) -> str:
    """The mean difference in points of accuracy, with its interval if the differences are not all the same."""
    if values is reference or values == reference:
        return "-" if values is reference else "0.0"
    found = paired_interval([one - other for one, other in zip(values, reference, strict=True)], TEST_PER_TRAINING)
    return str(Interval(*(100 * end for end in (found.mean, found.low, found.high))))


def speeds(kind: str) -> tuple[float, float]:
    """Median processor seconds to pack and to check a reply with the weights of compact adapters."""
    random = torch.Generator().manual_seed(0)
    sent = [torch.randn(shape, generator=random) / 32 for shape in SHAPES]
    weights = [weight + CHANGE * torch.randn(weight.shape, generator=random) for weight in sent]
    received = encode_weights(sent, "float16") if kind == "int8" else []
    reply = TrainReply("site-0", 1, "train", 8, weights, [], "none", False)
    spec = ReplySpec("site-0", 1, "train", SHAPES, (), None, (1, 768), None, sent_weights=received)
    times = []
    for _ in range(REPETITIONS):
        start = time.process_time()
        parts, metrics = pack_reply(reply, "float32" if kind == "float32" else "float16", received)
        packed = time.process_time()
        decode_reply(read_arrays(ndarrays_to_parameters(parts), spec.max_arrays), metrics, 8, spec)
        times.append((packed - start, time.process_time() - packed))
    return median(each[0] for each in times), median(each[1] for each in times)


if __name__ == "__main__":
    main()
