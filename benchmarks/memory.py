"""Peak memory of the server at FLUX size, with and without `optimize_memory_usage`.

    python benchmarks/memory.py [--write]

One round of 50 sites with 10 of 50 classes each, adapters for CLIP and 17 x 4096 T5 (FLUX.1), the default VAE. The
sites are simulated by functions that generate their replies, so only the server is measured: each row is a separate
process, and its peak is the largest resident size between the start of the round and its end. `median` shows the memory
for the weights of all sites, which other rules drop reply by reply.
"""

from __future__ import annotations

import argparse
import json

import torch
from common import PeakMemory, machine, measured, require_no_refusals, resident, write_block
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters
from flwr.server import SimpleClientManager

from fed_a2v.config.compose import compose_settings
from fed_a2v.config.schema import Settings
from fed_a2v.core.losses import TERMS
from fed_a2v.core.statistics import AudioPrototypes, ClassStatistics
from fed_a2v.federation.factory import prompt_set
from fed_a2v.federation.protocol import TrainReply, pack_reply, read_arrays
from fed_a2v.federation.server.step_factory import make_space, make_step
from fed_a2v.federation.server.strategy import FedA2V
from fed_a2v.federation.simulation import InProcessClient

SITES, CLASSES, OWN, WIDTH = 50, 50, 10, 512
NAMES = tuple(f"class {number:02d}" for number in range(CLASSES))
VARIANTS = {
    "`median`: all sites' weights unpacked": ["aggregation.mode=median"],
    "default": [],
    "`optimize_memory_usage=true`": ["optimize_memory_usage=true"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/engineering.md")
    parser.add_argument("--measure", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        print(json.dumps(measure(given.measure)))
        return
    rows, first = [], None
    for name, overrides in VARIANTS.items():
        before, peak, bank = measured(__file__, *overrides)
        first = first or peak
        rows.append(f"| {name} | {before:.0f} | {peak:.0f} | {1 - peak / first:.0%} | {bank:.0f} |")
    text = (
        "| | MB before the round | peak MB | less | bank MB |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n\n"
        f"{SITES} sites x {OWN} of {CLASSES} classes. {machine()}."
    )
    print(text)
    if given.write:
        write_block("memory", text)


def measure(overrides: list[str]) -> list[float]:
    """Run a round and return the resident size before it, its peak, and the size of the bank, in MB."""
    settings = compose_settings(
        ["adapters=flux", f"partition.sites={SITES}", "generator.validation_frequency=1", *overrides]
    )
    torch.set_num_threads(1)
    prompts = prompt_set(settings, NAMES)
    strategy = FedA2V(
        settings, prompts, lambda *shape: make_step(settings, prompts, *shape), lambda: make_space(settings)
    )
    manager = SimpleClientManager()
    for number in range(SITES):
        manager.register(Actor(f"{number:06d}", settings))
    parameters = strategy.initialize_parameters(manager)
    before = resident()
    with PeakMemory() as memory:
        results = [(proxy, proxy.fit(ins, None, None)) for proxy, ins in strategy.configure_fit(1, parameters, manager)]
        strategy.aggregate_fit(1, results, [])
    require_no_refusals([strategy._row])
    assert strategy.step is not None
    bank = sum(
        tensor.nbytes
        for _, prompt in strategy.step.bank
        for tensor in (
            prompt.clip,
            prompt.t5,
            prompt.audio and prompt.audio.means,
            prompt.audio and prompt.audio.variances,
        )
        if tensor is not None
    )
    return [before / 1e6, memory.peak / 1e6, bank / 1e6]


class Actor(InProcessClient):
    """A site that generates its reply."""

    def __init__(self, cid: str, settings: Settings) -> None:
        self.cid = cid
        self.settings = settings

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        """Noise on the received weights, and random prompts for this site's classes."""
        del timeout, group_id
        config = ins.config
        random = torch.Generator().manual_seed(int(config["number"]))
        weights: list[torch.Tensor] = []
        if config["task"] == "train":
            for array in read_arrays(ins.parameters, 1000)[:-2]:
                weights.append(torch.tensor(array, dtype=torch.float32))
                weights[-1] = weights[-1] + 0.01 * torch.randn(weights[-1].shape, generator=random)
        own = [NAMES[(int(config["number"]) + 5 * step) % CLASSES] for step in range(OWN)]
        prompts = [self.prompts(name, config["task"] == "train", random) for name in sorted(own)]
        reply = TrainReply(
            site=str(config["site"]),
            round_number=int(config["round"]),
            task="train" if weights else "register",
            num_examples=24 * OWN,
            weights=weights,
            statistics=prompts,
            fingerprint="same",
            square_root=False,
            losses=dict.fromkeys(("loss", *TERMS), 1.0) if weights else {},
        )
        arrays, metrics = pack_reply(reply, self.settings.share.dtype)
        return FitRes(Status(Code.OK, ""), ndarrays_to_parameters(arrays), reply.num_examples, metrics)

    def prompts(self, name: str, trained: bool, random: torch.Generator) -> ClassStatistics:
        """The site's statistics of one class."""
        if trained and not self.settings.needs_outputs:
            return ClassStatistics(name, 24)
        if not trained:
            centre = torch.randn(1, 1, WIDTH, generator=torch.Generator().manual_seed(NAMES.index(name)))
            means = centre + 0.3 * torch.randn(8, 1, WIDTH, generator=random)
            audio = AudioPrototypes(means, torch.full((8,), 3), torch.full_like(means, 0.2))
            return ClassStatistics(name, 24, audio)
        adapters = self.settings.adapters
        clip = torch.randn(adapters.clip_tokens, adapters.clip_width or 768, generator=random)
        return ClassStatistics(
            name, 24, None, clip, torch.randn(adapters.t5_tokens, adapters.t5_width, generator=random)
        )


if __name__ == "__main__":
    main()
