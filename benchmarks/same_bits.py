"""Check that another commit gives the same bits: metrics and every tensor of the states of ten runs.

    python benchmarks/same_bits.py COMMIT

Each run is `python -m fed_a2v train ...`, once in a checkout of that commit and once with the present files; the files
of the run's folder are compared. Three kinds of data (WAV files in an ESC-50 layout, class folders, and a file of
embeddings), the generators, the aggregation rules, FLUX's two kinds of prompts, and a resumed run. The layout of the
saved state may differ: its tensors are compared by content. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, machine

from fed_a2v.runs.speed import without_clock

# Data and settings of each run; {data} is the folder of all data.
ESC50 = ["dataset=esc50", "dataset.root={data}/esc50"]
FOLDERS = ["dataset=folder", "dataset.root={data}/folders"]
EMBEDDINGS = ["dataset=embeddings", "dataset.path={data}/embeddings.npz"]
RUNS = {
    "vae, mean": [*ESC50],
    "gaussian, by clips": [*ESC50, "generator=gaussian", "aggregation.mode=weighted"],
    "mixture, median": [*FOLDERS, "generator=gmm", "aggregation.mode=median"],
    "flow, trimmed, one mean a class": [*EMBEDDINGS, "generator=flow", "aggregation.mode=trimmed", "share=mean"],
    "gan, krum, single clips": [*EMBEDDINGS, "generator=gan", "aggregation.mode=krum", "share=samples"],
    "vae per class, distillation": [*FOLDERS, "generator=vae_per_class", "aggregation.mode=kd"],
    "no generator, no averaging, bilinear": [
        *EMBEDDINGS, "generator=none", "aggregation.mode=none", "adapters=bilinear",
    ],
    "vae of both prompts, FLUX": [*ESC50, "generator=vae_t5", "adapters=flux", "adapters.hidden_width=16"],
    "classes that come, uploads forgotten": [
        *EMBEDDINGS, "scenario=class_incremental", "scenario.steps=2", "scenario.rounds_per_step=1",
        "bank.keep=generator",
    ],
    "stopped and resumed": [*EMBEDDINGS, "generator=vae_closed_form", "finetune.from_nodes_adapters=true"],
}  # fmt: skip
RESUMED = "stopped and resumed"
# Metrics with another name in earlier commits.
RENAMED = {"bytes_introduction": "bytes_registration", "seconds_introduction": "seconds_registration"}
SMALL = [
    *("experiment=quick", "adapters.hidden_width=32", "finetune.first_steps=20", "finetune.steps=10", "report=false"),
    *("partition.sites=5", "wandb.mode=disabled"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    commit = parser.parse_args().commit
    different = 0
    with tempfile.TemporaryDirectory() as place:
        earlier = Path(place, "earlier")
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(earlier), commit], cwd=ROOT, check=True)
        try:
            write_data(Path(place, "data"))
            for name, words in RUNS.items():
                words = [word.format(data=Path(place, "data")) for word in [*words, *SMALL]]
                stops = [1, 2] if name == RESUMED else [2]
                one, two = (
                    run(checkout, Path(place, str(number), re.sub(r"\W+", "-", name)), words, stops)
                    for number, checkout in enumerate((earlier, ROOT))
                )
                faults = list(differences(one, two))
                different += bool(faults)
                print(f"{name}: {'; '.join(faults) or 'the same ' + measure(two)}", flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(earlier)], cwd=ROOT, check=True)
    print(f"{len(RUNS) - different} of {len(RUNS)} runs have the same bits as those of {commit}. {machine()}.")
    sys.exit(different > 0)


def write_data(folder: Path) -> None:
    """The built-in sounds in each layout, and random embeddings around a centre for each class."""
    from fed_a2v.data.datasets.synth import write_wavs

    write_wavs(folder / "esc50", 10, seed=0)
    for wav in sorted((folder / "esc50").rglob("*.wav")):
        target = int(wav.stem.split("-")[3])
        place = folder / "folders" / f"class {target:02d}" / wav.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(wav, place)
    dice = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 12)
    rows = dice.normal(size=(10, 48))[labels] + dice.normal(size=(120, 48))
    names = np.array([f"class {label:02d}" for label in labels])
    folds = np.tile(np.arange(1, 5), 30)
    np.savez(folder / "embeddings.npz", embeddings=rows.astype(np.float32), category=names, target=labels, fold=folds)


def run(checkout: Path, folder: Path, words: list[str], stops: list[int]) -> dict[str, Any]:
    """Metrics and results of a run, and the number of occurrences of each tensor in its state."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "FED_A2V_CACHE": str(folder.parent / "cache")}
    for rounds in stops:
        command = [sys.executable, "-m", "fed_a2v", "train", *words, f"rounds={rounds}", f"hydra.run.dir={folder}"]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} in {checkout}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    newest = max((folder / "checkpoints").glob("state_round_*.pt"))
    state = torch.load(newest, weights_only=True)
    return {
        "results": timeless(json.loads((folder / "results.json").read_text())),
        "rows": [timeless(row) for row in rows],
        "tensors": Counter(tensor_digest(tensor) for tensor in tensors(state)),
    }


def timeless(figures: dict[str, Any]) -> dict[str, Any]:
    """The metrics, by their present names, without those that differ from run to run."""
    return {RENAMED.get(key, key): value for key, value in without_clock(figures).items()}


def tensors(tree: object) -> Iterator[torch.Tensor]:
    """Every tensor in nested containers."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors(value)


def tensor_digest(tensor: torch.Tensor) -> str:
    """Hash of type, shape and bytes."""
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + content).hexdigest()


def differences(one: dict[str, Any], two: dict[str, Any]) -> Iterator[str]:
    """Descriptions of the differences; metrics that the earlier commit did not have are none."""
    if len(one["rows"]) != len(two["rows"]):
        yield f"{len(one['rows'])} and {len(two['rows'])} rounds"
    pairs = [("results", one["results"], two["results"])]
    pairs += [(f"round {a['round']}", a, b) for a, b in zip(one["rows"], two["rows"], strict=False)]
    for where, a, b in pairs:
        keys = [key for key in a if a[key] != b.get(key)]
        if keys:
            yield f"{where}: {', '.join(sorted(keys))}"
    lost, new = one["tensors"] - two["tensors"], two["tensors"] - one["tensors"]
    if lost or new:
        yield f"{lost.total()} of {one['tensors'].total()} tensors are missing, {new.total()} are new"


def measure(found: dict[str, Any]) -> str:
    """Number of equal figures and tensors."""
    figures = sum(len(row) for row in [found["results"], *found["rows"]])
    return f"{figures} figures and {found['tensors'].total()} tensors"


if __name__ == "__main__":
    main()
