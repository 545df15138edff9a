"""Forward pass and gradients of stacked `PromptAdapter`s, derived by hand.

Shapes: A sites, B rows, S audio tokens of width Da; T prompt tokens of width D; H hidden width. Weights are (A, ...)
each, by their names in `PromptAdapter`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from fed_a2v.core.adapters import PromptAdapter

# The terms of each site's loss and its gradient, for (A, B, T x D) outputs relative to the prompts' centre.
LossGradient = Callable[[Tensor], tuple[Tensor, Tensor]]


def write_gradients(
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    side: PromptAdapter,
    inputs: Tensor,
    loss: LossGradient,
) -> Tensor:
    """Write the gradients of every site's loss on its own rows.

    Args:
        weights: the sites' weights.
        gradients: where to write.
        side: an adapter with the prompts and constants of all.
        inputs: (A, B, S, Da) inputs after the first layer norm, without its weight and bias.
        loss: gives the terms and the gradient.

    Returns:
        The terms of the loss.
    """
    sites, rows, tokens, width = inputs.shape
    norm, last = "input_norm", "output_norm"
    flat = inputs.view(sites, rows * tokens, width)
    scaled = torch.addcmul(weights[f"{norm}.bias"][:, None], flat, weights[f"{norm}.weight"][:, None])
    before_hidden = _linear(weights, "input", scaled)
    hidden = F.gelu(before_hidden).view(sites, rows, tokens, -1)
    shares = None if tokens == 1 else _attention(weights["queries"], hidden)
    pooled = hidden if shares is None else shares @ hidden  # one token has all attention
    mixed_in = (pooled + weights["token_embedding"][:, None]).flatten(1, 2)
    before_mixed = _linear(weights, "mix", mixed_in)
    mixed = F.gelu(before_mixed)
    normal, mean, precision = torch.native_layer_norm(mixed, mixed.shape[-1:], None, None, side.output_norm.eps)
    scaled_mixed = torch.addcmul(weights[f"{last}.bias"][:, None], normal, weights[f"{last}.weight"][:, None])
    outputs = _linear(weights, "output", scaled_mixed).mul_(side.scale)

    terms, gradient = loss(outputs.view(sites, rows, -1))

    gradient = gradient.view_as(outputs).mul_(side.scale)
    gradient = _linear_gradients(weights, gradients, "output", scaled_mixed, gradient)
    gradient = _scale_gradients(weights, gradients, last, normal, gradient)
    gradient = torch.ops.aten.native_layer_norm_backward(
        gradient, mixed, mixed.shape[-1:], mean, precision, None, None, [True, False, False]
    )[0]
    gradient = torch.ops.aten.gelu_backward(gradient, before_mixed)
    gradient = _linear_gradients(weights, gradients, "mix", mixed_in, gradient).view(sites, rows, -1, mixed.shape[-1])
    torch.sum(gradient, 1, out=gradients["token_embedding"])
    if shares is None:
        gradients["queries"].zero_()
        gradient = gradient.sum(2) if gradient.shape[2] > 1 else gradient
    else:
        gradient = _attention_gradients(weights["queries"], gradients["queries"], hidden, shares, gradient)
    gradient = torch.ops.aten.gelu_backward(gradient.reshape_as(before_hidden), before_hidden)
    gradient = _linear_gradients(weights, gradients, "input", scaled, gradient)
    _scale_gradients(weights, gradients, norm, flat, gradient)
    return terms


def _linear(weights: Mapping[str, Tensor], layer: str, inputs: Tensor) -> Tensor:
    """A linear layer on (A, N, in)."""
    return torch.baddbmm(weights[f"{layer}.bias"][:, None], inputs, weights[f"{layer}.weight"].mT)


def _linear_gradients(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], layer: str, inputs: Tensor, gradient: Tensor
) -> Tensor:
    """Write the gradients of a linear layer from that of its (A, N, out) outputs; returns that of its inputs."""
    torch.bmm(gradient.mT, inputs, out=gradients[f"{layer}.weight"])
    torch.sum(gradient, 1, out=gradients[f"{layer}.bias"])
    return gradient @ weights[f"{layer}.weight"]


def _scale_gradients(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], layer: str, normal: Tensor, gradient: Tensor
) -> Tensor:
    """As `_linear_gradients`, for the weight and bias of a layer norm on (A, N, width) normalised rows."""
    torch.sum(gradient * normal, 1, out=gradients[f"{layer}.weight"])
    torch.sum(gradient, 1, out=gradients[f"{layer}.bias"])
    return gradient * weights[f"{layer}.weight"][:, None]


def _attention(queries: Tensor, hidden: Tensor) -> Tensor:
    """(A, B, T, S) share of each audio token in each prompt token."""
    scores: Tensor = (queries[:, None] @ hidden.mT) / math.sqrt(queries.shape[-1])
    return scores.softmax(dim=-1)


def _attention_gradients(queries: Tensor, into: Tensor, hidden: Tensor, shares: Tensor, gradient: Tensor) -> Tensor:
    """Write the queries' gradient from that of the (A, B, T, H) pooled tokens; returns that of the hidden tokens."""
    of_shares = gradient @ hidden.mT
    of_scores = shares * (of_shares - (of_shares * shares).sum(dim=-1, keepdim=True)) / math.sqrt(queries.shape[-1])
    torch.sum(of_scores @ hidden, 1, out=into)
    of_hidden: Tensor = shares.mT @ gradient + of_scores.mT @ queries[:, None]
    return of_hidden
