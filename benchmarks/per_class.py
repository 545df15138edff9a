"""Speed of training 50 small VAEs, one per class, together, compared with one after another.

    python benchmarks/per_class.py [--write]

Both train the same networks on the same rows (8 of each class) for the same epochs with the same random numbers, in
one process on one thread, and must give the same weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from common import machine, write_block
from vae_speed import CLASSES, ROWS, data

from fed_a2v.core.generators import grouped
from fed_a2v.core.generators.grouped import GroupedVAEGenerator, groups_for
from fed_a2v.core.generators.vae import ConditionedVAEGenerator
from fed_a2v.core.seeding import seed_for, torch_generator
from fed_a2v.core.statistics import PrototypeBatch

SIZES = ((32, 8), (64, 16), (256, 32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the figures into docs/engineering.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    # A first training loads parts of torch; it counts for neither.
    ConditionedVAEGenerator(hidden_dim=8, latent_dim=2).fit(*data(), 1, 0.1, torch_generator(0))
    lines = [line(hidden, latent, given.epochs, given.repeats) for hidden, latent in SIZES]
    text = (
        "| hidden, latent | parameters each | training: one after another | together | times faster "
        "| whole of `fit`: one after another | together | times faster | largest difference of a weight |\n"
        "|---|---|---|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n\n"
        f"{CLASSES} classes x {ROWS} rows of 512, {given.epochs} epochs, one thread, processor seconds, "
        f"best of {given.repeats}. "
        f"`fit` also measures moments, priors and calibration, generator by generator. {machine()}."
    )
    print(text)
    if given.write:
        write_block("per class speed", text)


def line(hidden: int, latent: int, epochs: int, repeats: int) -> str:
    def make() -> ConditionedVAEGenerator:
        return ConditionedVAEGenerator(hidden_dim=hidden, latent_dim=latent, conditional=False)

    size = sum(parameter.numel() for parameter in make().parameters())
    alone, together = [], []
    for _ in range(repeats):
        seconds, separate = one_after_another(make, epochs)
        alone.append(seconds)
        seconds, joint = all_at_once(make, epochs)
        together.append(seconds)
    (slow, slow_fit), (fast, fast_fit) = (tuple(map(min, zip(*runs, strict=True))) for runs in (alone, together))
    return (
        f"| {hidden}, {latent} | {size / 1e3:.0f} k | {slow:.2f} | {fast:.2f} | {slow / fast:.1f} | {slow_fit:.2f} "
        f"| {fast_fit:.2f} | {slow_fit / fast_fit:.1f} | {difference(separate, joint):.0e} |"
    )


class Stopwatch:
    """Processor seconds in a function on a single thread, which other programs hardly affect."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        """Call the function and add its seconds."""
        start = time.process_time()
        result = self.function(*args)
        self.seconds += time.process_time() - start
        return result


def all_at_once(
    make: Callable[[], ConditionedVAEGenerator], epochs: int
) -> tuple[tuple[float, float], GroupedVAEGenerator]:
    """Seconds of training and of the complete `fit`, and the generators."""
    rows, conditions = data()
    generator = GroupedVAEGenerator(make, groups_for("per_class", rows.names) or {})
    fit, training = Stopwatch(generator.fit), Stopwatch(grouped.train_together)
    with patch.object(grouped, "train_together", training):
        fit(rows, conditions, epochs, 0.1, torch_generator(0))
    return (training.seconds, fit.seconds), generator


def one_after_another(
    make: Callable[[], ConditionedVAEGenerator], epochs: int
) -> tuple[tuple[float, float], list[ConditionedVAEGenerator]]:
    """The same for plain VAEs, one after another."""
    rows, conditions = data()
    seed = int(torch.randint(2**62, (1,), generator=torch_generator(0)))
    generators, training_seconds, fit_seconds = [], 0.0, 0.0
    for label, name in enumerate(rows.names):
        # The random numbers of this class in the family.
        random = torch_generator(seed, "group", name)
        torch.manual_seed(seed_for(random.initial_seed(), "weights", name))
        own = rows.index_select(rows.labels == label)
        own = PrototypeBatch(own.embeddings, torch.zeros_like(own.labels), own.counts, own.variances, (name,))
        generator = make()
        fit, training = Stopwatch(generator.fit), Stopwatch(generator._train)
        with patch.object(generator, "_train", training):
            fit(own, conditions[label : label + 1], epochs, 0.1, random)
        training_seconds += training.seconds
        fit_seconds += fit.seconds
        generators.append(generator)
    return (training_seconds, fit_seconds), generators


@torch.no_grad()
def difference(separate: list[ConditionedVAEGenerator], joint: GroupedVAEGenerator) -> float:
    return max(
        (one - other).abs().max().item()
        for generator, key in zip(separate, joint.keys, strict=True)
        for one, other in zip(generator.parameters(), joint.member(key).parameters(), strict=True)
    )


if __name__ == "__main__":
    main()
