"""Loss of accuracy by malicious sites, for each aggregation rule.

    FED_A2V_DATA=FOLDER python benchmarks/hostile.py [--seeds 0,1] [--processes 2] [--kinds NAME,...] [--write]

ESC-50, YAMNet (without FED_A2V_DATA the built-in sounds), 50 sites (Dirichlet 1.0), of which 10, or one, send garbage
of one kind from the registration on. Three rounds, adapters of width 128, a Gaussian generator. One of 50 is not tested
with a plain mean, and is reported as the mean of three modes, since single runs vary by a point with the order alone.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from common import PROMPTS, data, machine, write_block
from rich.console import Console
from torch import Tensor

from fed_a2v.config.compose import compose_settings
from fed_a2v.core.statistics import AudioPrototypes, ClassStatistics
from fed_a2v.data.partition import site_name
from fed_a2v.federation.client.flower_client import A2VClient
from fed_a2v.federation.client.local_training import Evaluated, Site
from fed_a2v.federation.client.message_handler import MessageHandler
from fed_a2v.federation.protocol import Scores, TrainReply
from fed_a2v.federation.protocol.instruction import Instruction
from fed_a2v.federation.simulation import run_in_process

MODES = ("avg", "median", "trimmed", "krum")
# Every fifth site, so that they are spread over the classes.
HOSTILE = {number: frozenset(site_name(5 * place) for place in range(number)) for number in (10, 1)}


def weights(change: Callable[[Tensor], Tensor]) -> Callable[..., TrainReply]:
    """Corrupt the adapters' weights."""
    return lambda reply, _: replace(reply, weights=[change(weight) for weight in reply.weights])


def prototypes(change: Callable[[AudioPrototypes], AudioPrototypes]) -> Callable[..., TrainReply]:
    """Corrupt the statistics of each class."""

    def spoil(reply: TrainReply, _: GarbageNode) -> TrainReply:
        changed = [replace(prompt, audio=prompt.audio and change(prompt.audio)) for prompt in reply.statistics]
        return claiming(replace(reply, statistics=changed))

    return spoil


def claiming(reply: TrainReply, clips: int = 0) -> TrainReply:
    """The reply with numbers of clips that fit its content, or `clips` for each prototype."""
    changed = []
    for prompt in reply.statistics:
        counts = torch.full_like(prompt.audio.counts, clips) if clips else prompt.audio.counts
        changed.append(replace(prompt, count=int(counts.sum()), audio=replace(prompt.audio, counts=counts)))
    examples = max(reply.num_examples, sum(prompt.count for prompt in changed))
    return replace(reply, statistics=changed, num_examples=examples)


def scaled(factor: float, variance: float = 1.0) -> Callable[..., TrainReply]:
    """Prototypes and variances times numbers."""
    return prototypes(lambda a: replace(a, means=factor * a.means, variances=variance * a.variances))


def many(audio: AudioPrototypes) -> AudioPrototypes:
    """200 prototypes, opposite to the site's own."""
    means = -audio.means.mean(dim=0).expand(200, -1, -1).clone()
    return AudioPrototypes(means, torch.ones(200, dtype=torch.int64), torch.zeros_like(means))


def faked(reply: TrainReply, node: GarbageNode) -> TrainReply:
    """Eight prototypes of every class, which are the site's own of other classes, of a million clips each."""
    own = torch.cat([prompt.audio.means for prompt in reply.statistics])
    changed = []
    for place, name in enumerate(node.classes):
        means = own[(torch.arange(8) + 3 * place) % len(own)]
        changed.append(ClassStatistics(name, 8, AudioPrototypes(means, torch.ones(8).long(), torch.zeros_like(means))))
    return claiming(replace(reply, statistics=changed), 10**6)


def other_shape(reply: TrainReply, _: GarbageNode) -> TrainReply:
    """The registration of a site with constant embeddings and a very large number of clips."""
    if reply.task == "train":
        return reply
    one = [replace(p, audio=replace(p.audio, means=p.audio.means[..., :1], variances=p.audio.variances[..., :1]))
           for p in reply.statistics[:1]]  # fmt: skip
    return claiming(replace(reply, statistics=one), 10**9)


def old(reply: TrainReply, node: GarbageNode) -> TrainReply:
    """The weights of the site's first round, sent in every round."""
    first = node.first.setdefault(reply.site, reply.weights) if reply.weights else []
    return replace(reply, weights=first)


def noise(weight: Tensor) -> Tensor:
    """Weights of five times the size."""
    return 5 * weight.square().mean().sqrt() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))


def honest(reply: TrainReply, _: GarbageNode) -> TrainReply:
    """The unchanged reply."""
    return reply


def false_scores(evaluated: Evaluated) -> Evaluated:
    """An evaluation of a very large number of clips with zero accuracy and a very large loss."""
    absurd = {"clips": 10**6, "right_at_1": 0, "right_at_5": 0, "cosine": -1e6, "loss": 1e12, "predicted": {}}
    scores = {name: score.model_copy(update=absurd) for name, score in evaluated.scores.classes.items()}
    return evaluated._replace(scores=Scores(scores))


KINDS: dict[str, Callable[..., TrainReply]] = {
    "none": honest,
    "weights not finite": weights(lambda weight: torch.full_like(weight, torch.nan)),
    "weights 1000 times too large": weights(lambda weight: 1000 * weight),
    "weights of the opposite sign": weights(lambda weight: -weight),
    "weights of noise": weights(noise),
    "weights of the first round": old,
    "swapped classes": honest,
    "every class faked": faked,
    "200 prototypes per class": prototypes(many),
    "prototypes 1000 times too large": scaled(1000.0),
    "prototypes 9 times too large": scaled(9.0),
    "prototypes of zeros": scaled(0.0),
    "variances of 1e12": prototypes(lambda a: replace(a, variances=torch.full_like(a.means, 1e12))),
    "another shape and 1e9 clips": other_shape,
    "invented scores": honest,
}
# Kinds that are refused in the same messages give the same run, bit for bit; one mode is enough to check this.
ALIKE = {
    "weights 1000 times too large": "weights not finite",
    **dict.fromkeys(
        ("prototypes 1000 times too large", "prototypes of zeros", "variances of 1e12"),
        "200 prototypes per class",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kinds", default=",".join(KINDS), help="names, separated by commas; `none` is always run")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    given = parser.parse_args()
    seeds, modes = [int(seed) for seed in given.seeds.split(",")], given.modes.split(",")
    cases = [(10, mode) for mode in modes] + [(1, mode) for mode in modes if mode != "avg"]
    heads = [*(f"10 of 50, {mode}" for mode in modes), "1 of 50, mean of the robust modes", "replies refused"]
    lines = ["| garbage | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    print("\n".join(lines))
    with ProcessPoolExecutor(given.processes) as pool:
        asked = dict.fromkeys(["none", *given.kinds.split(",")])
        # Without garbage, the number of malicious sites does not matter.
        jobs = {
            (kind, case, seed): pool.submit(run, kind, case, seed)
            for kind in asked
            for case, seed in product(cases, seeds)
            if (kind != "none" or case[0] > 1) and (kind not in ALIKE or case == cases[0])
        }

        def accuracy(kind: str, case: tuple[int, str]) -> float:
            done = ALIKE[kind] if kind in ALIKE and case != cases[0] else kind
            return statistics.mean(jobs[done, case, seed].result()[0] for seed in seeds)

        honest = {mode: accuracy("none", (10, mode)) for mode in modes}
        for kind in asked:
            if kind == "none":
                cells = [f"{value:.3f}" for value in (*honest.values(), statistics.mean(list(honest.values())[1:]))]
            else:
                lost = {case: 100 * (honest[case[1]] - accuracy(kind, case)) for case in cases}
                cells = [f"{lost[10, mode]:+.1f}" for mode in modes]
                cells.append(f"{statistics.mean(value for case, value in lost.items() if case[0] == 1):+.1f}")
                if kind in ALIKE and accuracy(kind, cases[0]) != accuracy(ALIKE[kind], cases[0]):
                    raise SystemExit(f"{kind} is not like {ALIKE[kind]}")
            refused = max(job.result()[1] for key, job in jobs.items() if key[0] == kind)
            lines.append(f"| {kind} | " + " | ".join(cells) + f" | {refused} |")
            print(lines[-1], flush=True)
    text = "\n".join(lines) + (
        f"\n\nAccuracy after round 3 without garbage, and its loss in points (hundredths); {len(seeds)} "
        f"seeds. {PROMPTS['random']} {machine()}."
    )
    print(text.rsplit("\n", 1)[-1])
    if given.write:
        write_block("hostile", text)


def run(kind: str, case: tuple[int, str], seed: int) -> tuple[float, int]:
    """Final accuracy, and the number of replies that the server refused."""
    number, mode = case
    logging.getLogger("flwr").setLevel(logging.ERROR)
    settings = compose_settings(
        [
            "experiment=esc50_50x1",
            "partition=dirichlet",
            "partition.alpha=1.0",
            "partition.sites=50",
            *(data("yamnet") if os.environ.get("FED_A2V_DATA") else ["dataset=synth"]),
            "rounds=3",
            "adapters.hidden_width=128",
            "generator=gaussian",
            "share.min_clips=1",
            "report=false",
            "checkpoint.frequency=3",
            "federation.evaluate_before=false",
            f"aggregation.mode={mode}",
            "aggregation.trimmed_share=0.25",
            "aggregation.malicious_sites=10",
            f"seed={seed}",
            "wandb.mode=disabled",
        ]
    )
    node = GarbageNode(kind, HOSTILE[number])
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        results = run_in_process(settings, Path(folder), Console(file=nowhere), lambda: Garbage(node))
    return results["accuracy"], results["rejected"]


class Garbage(A2VClient):
    """Client of honest and hostile sites, which works by the node that it is given."""

    def __init__(self, node: GarbageNode) -> None:
        super().__init__({})
        self.its_handler = node

    def handler(self) -> MessageHandler:
        """The node that handles the messages."""
        return self.its_handler


class GarbageNode(MessageHandler):
    """A node whose hostile sites corrupt their replies.

    Args:
        kind: kind of garbage.
        hostile: names of the hostile sites.
    """

    def __init__(self, kind: str, hostile: frozenset[str]) -> None:
        super().__init__({})
        self.kind = kind
        self.hostile = hostile
        self.classes: tuple[str, ...] = ()
        self.first: dict[str, list[Tensor]] = {}

    def _site(self, order: Instruction) -> Site:
        site = super()._site(order)
        if order.site not in self.hostile:
            return site
        self.classes = site.classes
        if self.kind == "swapped classes" and order.task != "evaluate":
            train = site.data.train
            site.data = replace(site.data, train=replace(train, labels=(train.labels + 1) % len(site.classes)))
        if self.kind == "invented scores":
            evaluate = site.evaluate
            site.evaluate = lambda *args, **words: false_scores(evaluate(*args, **words))  # type: ignore[method-assign]
        register, train_site = site.register, site.train
        site.register = lambda *args: self._spoilt(register(*args))  # type: ignore[method-assign]
        site.train = lambda *args: self._spoilt(train_site(*args))  # type: ignore[method-assign]
        return site

    def _spoilt(self, reply: TrainReply) -> TrainReply:
        # The server has stored nothing of the site, so it sends, and corrupts, its prototypes again in every round.
        return KINDS[self.kind](replace(reply, fingerprint=reply.fingerprint[:-1] + "!"), self)


if __name__ == "__main__":
    main()
