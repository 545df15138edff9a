"""Speed-up of a GPU: the parts of a round on the CPU and on the GPU, in turn in one process.

    python benchmarks/device.py [--device cuda] [--repeats 3] [--write]

The generators train on 50 classes x 8 rows of 512, as in the other benchmarks. The adapters take steps of 64 rows
through Stable Diffusion's 77 x 768 and FLUX's 768 + 17 x 4096 outputs. Each part runs once before it is timed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from common import machine, write_block
from torch import Tensor
from vae_speed import CLASSES, data

from fed_a2v.core.adapters import Adapters, ClassPrompts
from fed_a2v.core.generators.base import Generator
from fed_a2v.core.generators.flow import FlowGenerator
from fed_a2v.core.generators.gan import GANGenerator
from fed_a2v.core.generators.grouped import GroupedVAEGenerator
from fed_a2v.core.generators.vae import ConditionedVAEGenerator
from fed_a2v.core.losses import AdapterLoss, AdapterLossWeights
from fed_a2v.core.seeding import torch_generator
from fed_a2v.core.training import AdamWSettings, train_steps
from fed_a2v.federation.factory import torch_device

EPOCHS, STEPS = 60, 60
GENERATORS: dict[str, Callable[[], Generator]] = {
    "one VAE for all classes": ConditionedVAEGenerator,
    "50 VAEs, one per class": lambda: GroupedVAEGenerator(
        lambda: ConditionedVAEGenerator(hidden_dim=256, latent_dim=32, conditional=False),
        {name: (name,) for name in data()[0].names},
    ),
    "GAN": GANGenerator,
    "flow": FlowGenerator,
}
# Tokens and width of the CLIP and T5 prompts.
ADAPTERS = {"compact": ((1, 768), None), "sd": ((77, 768), None), "flux": ((1, 768), (17, 4096))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the table into docs/engineering.md")
    given = parser.parse_args()
    torch_device(given.device)  # as in the program, deterministic
    parts = {f"{name}, {EPOCHS} epochs": fit(make) for name, make in GENERATORS.items()}
    parts |= {f"adapters `{name}`, {STEPS} steps": steps(*shapes) for name, shapes in ADAPTERS.items()}
    lines = [line(name, part, given.device, given.repeats) for name, part in parts.items()]
    text = (
        "| | seconds on the CPU | on the GPU | times faster |\n|---|---|---|---|\n" + "\n".join(lines) + "\n\n"
        f"Best of {given.repeats}. {torch.cuda.get_device_name(given.device)}; {machine()}, "
        f"{torch.get_num_threads()} threads."
    )
    print(text)
    if given.write:
        write_block("device", text)


def line(name: str, part: Callable[[str], None], device: str, repeats: int) -> str:
    """Run a part on both devices, in turn."""
    slow, fast = [], []
    for repeat in range(repeats + 1):
        for where, seconds in (("cpu", slow), (device, fast)):
            start = time.perf_counter()
            part(where)
            torch.cuda.synchronize(device)
            if repeat:
                seconds.append(time.perf_counter() - start)
    return f"| {name} | {min(slow):.2f} | {min(fast):.2f} | {min(slow) / min(fast):.1f} |"


def fit(make: Callable[[], Generator]) -> Callable[[str], None]:
    """A complete `fit` of a generator."""

    def part(device: str) -> None:
        torch.manual_seed(0)
        rows, conditions = data()
        make().to(device).fit(rows.to(torch.device(device)), conditions.to(device), EPOCHS, 0.1, torch_generator(0))

    return part


def steps(clip: tuple[int, int], t5: tuple[int, int] | None) -> Callable[[str], None]:
    """Fine-tuning of the adapters."""

    def part(device: str) -> None:
        torch.manual_seed(0)
        rows, _ = data()

        def targets(shape: tuple[int, int]) -> Tensor:
            return torch.randn(CLASSES, *shape, device=device)

        prompts = ClassPrompts(rows.names, targets(clip), None if t5 is None else targets(t5))
        adapters = Adapters(512, prompts).to(device)
        loss = AdapterLoss(prompts, AdapterLossWeights())
        rows = rows.to(torch.device(device))
        settings = AdamWSettings(batch_size=64)
        train_steps(adapters, rows.embeddings, rows.labels, loss, STEPS, settings, torch_generator(0))

    return part


if __name__ == "__main__":
    main()
