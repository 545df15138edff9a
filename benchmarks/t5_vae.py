"""Time and memory of the guide's second VAE: conditioned on T5 prompts, on 17 tokens of audio.

    python benchmarks/t5_vae.py [--write]

The network of the guide (17 x 512 -> 1024 -> 1024 -> 512, condition 4096) is fitted to 50 classes x 8 rows for
ten epochs on two threads, including class priors and calibration, and then sampled. Peak memory is that of the whole
process, including the libraries.
"""

from __future__ import annotations

import argparse
import time

import torch
from common import machine, write_block

from fed_a2v.core.generators.vae import ConditionedVAEGenerator
from fed_a2v.core.statistics import PrototypeBatch
from fed_a2v.federation.memory import peak_memory

CLASSES, ROWS, EPOCHS, TOKENS = 50, 8, 10, 17


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write the figures into docs/engineering.md")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    rows, prompts = data()
    start_memory = peak_memory()
    torch.manual_seed(0)
    generator = ConditionedVAEGenerator(
        input_dim=512, visual_dim=4096, hidden_dim=1024, latent_dim=512, sequence_length=TOKENS
    )
    random = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    losses = generator.fit(rows, prompts.mean(dim=1), EPOCHS, 0.1, random)
    fitted = time.perf_counter()
    samples = generator.sample(num_samples=5, visual_condition=prompts[0].mean(dim=0), device="cpu")
    sampled = time.perf_counter()
    assert samples.shape == (5, TOKENS, 512)
    assert samples.isfinite().all()

    parameters = sum(parameter.numel() for parameter in generator.parameters())
    text = (
        "| | |\n|---|---|\n"
        f"| `fit`, {EPOCHS} epochs, class priors and calibration included | {fitted - start:.1f} s |\n"
        f"| 5 samples of a class | {sampled - fitted:.2f} s |\n"
        f"| peak memory of the process | {gigabytes(peak_memory())}, "
        f"of which {gigabytes(start_memory)} before the VAE |\n"
        f"| loss of the first and the last epoch | {losses[0].total:.3f}, {losses[-1].total:.3f} |\n\n"
        f"{parameters / 1e6:.1f} M parameters, {CLASSES} classes x {ROWS} rows of {TOKENS} x 512, "
        f"{given.threads} threads. {machine()}."
    )
    print(text)
    if given.write:
        write_block("t5 vae", text)


def data() -> tuple[PrototypeBatch, torch.Tensor]:
    """Prototypes of 50 classes, and their T5 prompts (50, 17, 4096)."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat_interleave(ROWS)
    centres = torch.randn(CLASSES, TOKENS, 512, generator=random)
    embeddings = centres[labels] + 0.5 * torch.randn(len(labels), TOKENS, 512, generator=random)
    names = tuple(f"class {number:02d}" for number in range(CLASSES))
    counts = torch.full((len(labels),), 3.0)
    rows = PrototypeBatch(embeddings, labels, counts, torch.full_like(embeddings, 0.25), names)
    return rows, torch.randn(CLASSES, TOKENS, 4096, generator=random)


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


if __name__ == "__main__":
    main()
