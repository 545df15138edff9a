"""How fast this process multiplies matrices, and how many operations a clip takes in the adapters' training.

Together they give the share of the matrix rate that training reaches, as torchtitan's "model FLOPs utilisation" does
for large models (Liang et al. 2024, arXiv:2410.06511); but the rate is measured here, not taken from a data sheet.
"""

from __future__ import annotations

import time
from functools import lru_cache

import torch

from fed_a2v.core.adapters import Adapters, PromptAdapter

# Edge of the square matrices: the adapters' default width on a CPU, and enough to keep a GPU busy.
CPU_EDGE, GPU_EDGE = 512, 4096
# Products in a measurement; measurements; and seconds after which no further one starts.
PRODUCTS, MEASUREMENTS, LIMIT = 4, 5, 0.1


def matrix_rate(device: torch.device) -> float:
    """Floating-point operations per second of matrix products in float32, with the present number of threads.

    It takes about 0.1 s, once in a process for each device and number of threads. On a CPU the processor's time counts,
    so that other programs do not lower the rate.
    """
    return _measured_rate(str(device), torch.get_num_threads())


@lru_cache
def _measured_rate(device: str, threads: int) -> float:
    on_cpu = device == "cpu"
    edge = CPU_EDGE if on_cpu else GPU_EDGE
    left = torch.full((edge, edge), 1 / edge, device=device)
    right, product = torch.ones_like(left), torch.empty_like(left)

    def clock() -> float:
        return time.process_time() / threads if on_cpu else time.perf_counter()

    def seconds() -> float:
        start = clock()
        for _ in range(PRODUCTS):
            torch.mm(left, right, out=product)
        float(product[0, 0])  # a GPU computes in the background: wait for it
        return clock() - start

    begin = clock()
    seconds()  # the first products also load libraries
    best = seconds()
    for _ in range(1, MEASUREMENTS):
        if clock() - begin > LIMIT:
            break
        best = min(best, seconds())
    return PRODUCTS * 2 * edge**3 / best


def training_operations(adapters: Adapters, tokens: int) -> int:
    """Floating-point operations of the matrix products in one clip's pass forward and backward through the adapters.

    Six for each entry of a matrix and token: a product and a sum in the forward pass, and twice as many in the backward
    pass. Norms, the loss and the optimiser are not counted.

    Args:
        adapters: the adapters; those in closed form, which are not trained by steps, have none.
        tokens: S, audio tokens of a clip.
    """

    def of(side: PromptAdapter) -> int:
        prompt_tokens, width = side.queries.shape
        by_audio_token = side.input.weight.numel()
        by_prompt_token = side.mix.weight.numel() + side.output.weight.numel() + 2 * tokens * width
        return 6 * (tokens * by_audio_token + prompt_tokens * by_prompt_token)

    return sum(of(side) for side in (adapters.clip, adapters.t5) if isinstance(side, PromptAdapter))
