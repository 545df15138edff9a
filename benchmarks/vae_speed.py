"""Speed of the server's VAE training, compared with the literal loop of the guide and with the machine's limit.

    python benchmarks/vae_speed.py [--write]

Both train the same network (the guide's: 512 -> 1024 -> 1024 -> 256, condition 768) on the same 50 classes x 8
rows for the same epochs, one after the other in one process on one thread. The literal loop takes one optimiser
step per class and epoch with plain AdamW. The machine's limit is its best rate of a float32 matrix product.
"""

from __future__ import annotations

import argparse
import time

import torch
from common import machine, write_block

from fed_a2v.core.generators.vae import ConditionedVAEGenerator
from fed_a2v.core.losses import VAELoss, loss_value
from fed_a2v.core.statistics import PrototypeBatch

CLASSES, ROWS = 50, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the figures into docs/engineering.md")
    given = parser.parse_args()
    torch.set_num_threads(1)

    rows, conditions = data()
    generator = make()
    parameters = sum(parameter.numel() for parameter in generator.parameters())
    work = 6 * parameters * CLASSES * ROWS * given.epochs
    literal, training, whole, limit = [], [], [], []
    for _ in range(given.repeats):
        limit.append(matrix_rate())
        literal.append(literal_loop(rows, conditions, max(1, given.epochs // 10)) * 10)
        training.append(trained(rows, conditions, given.epochs))
        whole.append(fitted(rows, conditions, given.epochs))
    slow, fast, fit, rate = min(literal), min(training), min(whole), max(limit)
    text = (
        "| | seconds | times the literal loop | share of the matrix-product rate |\n|---|---|---|---|\n"
        f"| literal loop (a tenth of the epochs, times ten) | {slow:.2f} | 1 | {work / slow / rate:.2f} |\n"
        f"| training in the server step | {fast:.2f} | {slow / fast:.1f} | {work / fast / rate:.2f} |\n"
        f"| the whole of `fit`, class priors and calibration included | {fit:.2f} | {slow / fit:.1f} "
        f"| {work / fit / rate:.2f} |\n\n"
        f"{parameters / 1e6:.2f} M parameters, {CLASSES} classes x {ROWS} rows, {given.epochs} epochs, one thread, "
        f"best of {given.repeats}; matrix products reach {rate / 1e9:.0f} GFLOP/s. {machine()}."
    )
    print(text)
    if given.write:
        write_block("vae speed", text)


def data() -> tuple[PrototypeBatch, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat_interleave(ROWS)
    centres = torch.randn(CLASSES, 1, 512, generator=random)
    embeddings = centres[labels] + 0.5 * torch.randn(len(labels), 1, 512, generator=random)
    names = tuple(f"class {number:02d}" for number in range(CLASSES))
    counts = torch.full((len(labels),), 3.0)
    rows = PrototypeBatch(embeddings, labels, counts, torch.full_like(embeddings, 0.25), names)
    return rows, torch.randn(CLASSES, 768, generator=random)


def make() -> ConditionedVAEGenerator:
    torch.manual_seed(0)
    return ConditionedVAEGenerator(batch_size=512)  # all rows of all classes in one step


def literal_loop(rows: PrototypeBatch, conditions: torch.Tensor, epochs: int) -> float:
    """The guide's loop: for each epoch, for each class, one step on the class's rows."""
    generator = make()
    generator.train()
    loss = VAELoss()
    optimiser = torch.optim.AdamW(generator.parameters(), lr=1e-3)
    by_class = [rows.embeddings[rows.labels == label] for label in range(CLASSES)]
    start = time.perf_counter()
    for epoch in range(epochs):
        for label, x in enumerate(by_class):
            optimiser.zero_grad()
            noisy = x + 0.1 * torch.randn_like(x)
            recon, mu, logvar = generator(noisy, conditions[label])
            loss_value(loss(recon, x, mu, logvar, epoch)).backward()
            optimiser.step()
    return time.perf_counter() - start


def trained(rows: PrototypeBatch, conditions: torch.Tensor, epochs: int) -> float:
    """Seconds of the epochs: a `fit` minus one without epochs."""
    return fitted(rows, conditions, epochs) - fitted(rows, conditions, 0)


def fitted(rows: PrototypeBatch, conditions: torch.Tensor, epochs: int) -> float:
    generator = make()
    random = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    generator.fit(rows, conditions, epochs, 0.1, random)
    return time.perf_counter() - start


def matrix_rate() -> float:
    """The best rate of a large float32 matrix product, in FLOP/s."""
    best = 0.0
    for size in (1024, 2048):
        left, right = torch.randn(size, size), torch.randn(size, size)
        left @ right
        for _ in range(5):
            start = time.perf_counter()
            left @ right
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    main()
