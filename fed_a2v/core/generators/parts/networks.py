"""Building blocks of the generators' networks."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn


def perceptron(*widths: int, activation: nn.Module) -> nn.Sequential:
    """Linear layers from each width to the next, with activations between them."""
    layers = [layer for inputs, outputs in pairwise(widths) for layer in (nn.Linear(inputs, outputs), activation)]
    return nn.Sequential(*layers[:-1])


def zero_output(*perceptrons: nn.Module) -> None:
    """Make perceptrons return 0 until they are trained."""
    for network in perceptrons:
        for parameter in list(network.parameters())[-2:]:
            nn.init.zeros_(parameter)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the weights of `average` by the share 1 - decay towards those of `network` (Polyak averaging)."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
