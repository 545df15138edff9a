"""The adapter in closed form for class sums: class prompts, averaged by their probabilities.

`solve` is linear discriminant analysis on the sums of all sites, which takes no optimiser step. For classes without
clips the server step uses `fed_a2v.core.zero_shot` instead.

Shapes: B clips; R columns of the public space; C classes; T prompt tokens of width D.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fed_a2v.core.adapters import prompt_centre
from fed_a2v.core.class_sums import SharedGaussian


class PosteriorAdapter(nn.Module):
    """Maps unit rows of the public space to the mean of the class prompts under the classes' posterior.

    Untrained, every class has the same probability, and the output is the mean of the class prompts. Classes without
    clips have probability 0.

    Args:
        audio_width: R.
        prompts: (C, T, D) class prompts.
    """

    prompts: Tensor

    def __init__(self, audio_width: int, prompts: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(prompts), audio_width))
        self.bias = nn.Parameter(torch.zeros(len(prompts)))
        # Not persistent: server and sites have the class prompts.
        self.register_buffer("prompts", prompts, persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """(B, 1, R) rows to (B, T, D) prompt embeddings."""
        posterior = (audio.mean(dim=1) @ self.weight.T + self.bias).softmax(dim=1)
        return (posterior @ self.prompts.flatten(1)).view(-1, *self.prompts.shape[1:])

    def reach(self) -> float:
        """Upper bound on the distance of an output from the centre of the prompts: that of the farthest prompt."""
        return float((self.prompts - prompt_centre(self.prompts)).flatten(1).norm(dim=1).max())

    @torch.no_grad()
    def solve(self, gaussian: SharedGaussian) -> None:
        """Load the linear discriminant of a Gaussian model."""
        weight, bias = gaussian.discriminant
        self.weight.zero_()
        self.weight[gaussian.labels] = weight.to(self.weight)
        self.bias.fill_(-torch.inf)
        self.bias[gaussian.labels] = bias.to(self.bias)
