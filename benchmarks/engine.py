"""Processor time of a run against plain Flower FedAvg that does the same work.

    FED_A2V_DATA=FOLDER python benchmarks/engine.py [--rounds 5] [--write]

FOLDER has `esc50_yamnet.npz`. The run has no server step (`finetune.enabled=false`): what is left is what Flower's own
FedAvg does, and what this program adds to it, such as checks of every reply, prototypes, metrics by class, and
checkpoints; it is measured one by one and with `engine=batched`. The plain program has the same adapters, loss,
optimiser, clips, epochs and rounds, Flower's server and strategy as they are, and clients of a dozen lines that keep
one model in memory. All have one thread and run in turn; seconds are of the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import data, machine, measured, write_block
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar, ndarrays_to_parameters
from flwr.server import Server, SimpleClientManager
from flwr.server.strategy import FedAvg
from rich.console import Console

from fed_a2v.config.compose import compose_settings
from fed_a2v.config.schema import Settings, cache_dir
from fed_a2v.core.metrics import retrieval
from fed_a2v.data.index import class_names
from fed_a2v.data.site import SiteData, site_clips
from fed_a2v.federation.factory import adapter_loss, prompt_set, seeded_adapters
from fed_a2v.federation.simulation import InProcessClient, run_in_process
from fed_a2v.storage.files import read_jsonl

PARTITIONS = {"50 x 1": "experiment=esc50_50x1", "5 x 10": "experiment=esc50_5x10"}
KINDS = ("plain", "one_by_one", "batched")
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the table into docs/engineering.md")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(*given.measure, given.rounds)))
        return
    lines = [
        "| sites x classes | plain FedAvg, s | fed_a2v: one by one, s | ratio to plain | batched, s | ratio to plain "
        "| accuracy: plain, one by one, batched |",
        "|---|---|---|---|---|---|---|",
    ]
    for partition in PARTITIONS:
        found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for _ in range(REPEATS):
            for kind, results in found.items():
                results.append(measured(__file__, kind, partition, "--rounds", given.rounds))
        seconds = {kind: [run["seconds"] for run in results] for kind, results in found.items()}
        cells = [partition, f"{statistics.median(seconds['plain']):.1f}"]
        for kind in KINDS[1:]:
            ratios = [own / other for other, own in zip(seconds["plain"], seconds[kind], strict=True)]
            cells.append(f"{statistics.median(seconds[kind]):.1f}")
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        cells.append(", ".join(f"{results[0]['accuracy']:.3f}" for results in found.values()))
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    text = "\n".join(lines) + (
        f"\n\n{given.rounds} rounds, one thread, {REPEATS} runs of each in turn: medians, and the range of the ratio. "
        f"{machine()}."
    )
    print(text)
    if given.write:
        write_block("engine", text)


def measure(kind: str, partition: str, rounds: int) -> dict[str, float]:
    """Seconds of the processor for the rounds of a run, without imports, and the accuracy at the end."""
    torch.set_num_threads(1)
    words = [PARTITIONS[partition], *data("yamnet"), f"rounds={rounds}", "finetune.enabled=false", "generator=none"]
    settings = compose_settings([*words, "report=false", "wandb.mode=disabled", "threads=1"])
    if kind != "plain":
        settings = settings.model_copy(update={"engine": kind})
    # Before the clock starts all read the clips, and the plain program's optimiser imports torch's compiler.
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)], fused=True)
    sites = [
        site_clips(settings, number, None, cache_dir(settings.cache_dir)) for number in range(settings.partition.sites)
    ]
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        accuracy = plain(settings, sites) if kind == "plain" else own(settings, Path(folder))
        return {"seconds": time.process_time() - start, "accuracy": accuracy}


def own(settings: Settings, folder: Path) -> float:
    """The accuracy of a run of this program."""
    with Path(os.devnull).open("w") as nowhere:
        run_in_process(settings, folder, Console(file=nowhere))
    return float(read_jsonl(folder / "metrics.jsonl")[-1]["accuracy"])


def plain(settings: Settings, sites: list[SiteData]) -> float:
    """The accuracy of Flower's FedAvg with the same work."""
    classes = class_names(settings.dataset)
    prompts = prompt_set(settings, classes)
    model = seeded_adapters(settings.adapters, prompts, sites[0].train.embeddings.shape[-1], settings.seed)
    rows = torch.cat([site.train.embeddings for site in sites]).flatten(0, 1)
    model.set_standardisation(rows.mean(0), rows.std(0))
    loss = adapter_loss(settings.loss, prompts)

    def load(weights: NDArrays) -> None:
        model.load_weights([torch.from_numpy(weight) for weight in weights])

    class Client(NumPyClient):
        def __init__(self, site: SiteData) -> None:
            self.site = site

        def fit(self, parameters: NDArrays, _: dict[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
            load(parameters)
            clips = self.site.train
            optimiser = torch.optim.AdamW(
                model.parameters(), lr=settings.site.learning_rate, weight_decay=settings.site.weight_decay, fused=True
            )
            for _epoch in range(settings.site.epochs):
                for batch in torch.randperm(len(clips)).split(settings.site.batch_size):
                    optimiser.zero_grad()
                    loss(model(clips.embeddings[batch]), clips.labels[batch])[0].backward()
                    optimiser.step()
            return [weight.numpy().copy() for weight in model.weights()], len(clips), {}

        @torch.no_grad()
        def evaluate(self, parameters: NDArrays, _: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
            load(parameters)
            clips = self.site.test
            outputs = model(clips.embeddings)
            found = retrieval(outputs.clip, clips.labels, prompts.clip)
            return float(loss(outputs, clips.labels)[0]), len(clips), {"accuracy": float(found.accuracy)}

    def mean(results: list[tuple[int, dict[str, Scalar]]]) -> dict[str, Scalar]:
        clips = sum(number for number, _ in results)
        return {"accuracy": sum(number * float(each["accuracy"]) for number, each in results) / clips}

    manager = SimpleClientManager()
    for number, site in enumerate(sites):
        manager.register(InProcessClient(str(number), Client(site).to_client()))
    everyone: dict[str, Any] = {
        key: len(sites) for key in ("min_fit_clients", "min_evaluate_clients", "min_available_clients")
    }
    strategy = FedAvg(
        initial_parameters=ndarrays_to_parameters([weight.numpy() for weight in model.weights()]),
        evaluate_metrics_aggregation_fn=mean,
        **everyone,
    )
    server = Server(client_manager=manager, strategy=strategy)
    server.set_max_workers(1)
    history, _ = server.fit(settings.rounds, None)
    return float(history.metrics_distributed["accuracy"][-1][1])


if __name__ == "__main__":
    main()
