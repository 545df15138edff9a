"""The adapters, which map an audio embedding to the prompt embeddings of an image model.

Sites train them (`training`), the server averages and fine-tunes them (`server_step`), and image generation uses
their outputs.

Shapes: B clips, S audio tokens of width Da; T prompt tokens of width D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fed_a2v.core.public_space import PublicSpace

# Log probability of a class without clips, finite because weights travel in messages that allow no infinity.
NEVER = -1e4


class ClassPrompts(NamedTuple):
    """The class prompts: the targets of the adapters and the candidates of retrieval.

    Attributes:
        names: the C classes.
        clip: (C, Tc, Dc).
        t5: (C, T, Dt), or None if the image model has no T5 prompt.
    """

    names: tuple[str, ...]
    clip: Tensor
    t5: Tensor | None

    def to(self, device: torch.device | str) -> ClassPrompts:
        """The prompts on a device."""
        return ClassPrompts(self.names, self.clip.to(device), None if self.t5 is None else self.t5.to(device))


class AdapterOutput(NamedTuple):
    """Adapter outputs: clip (B, Tc, Dc) and, if there is a T5 adapter, t5 (B, T, Dt)."""

    clip: Tensor
    t5: Tensor | None

    def index_select(self, index: Tensor) -> AdapterOutput:
        """The rows at `index` (integers or a mask)."""
        return AdapterOutput(self.clip[index], None if self.t5 is None else self.t5[index])


def prompt_centre(prompts: Tensor) -> Tensor:
    """The mean of (C, T, D) class prompts over the classes, (T, D); zeros for a single class.

    Text vectors are close to each other (mean cosine between CLIP's class vectors about 0.8), so the centre is
    subtracted before directions are compared, and added again for the image model.
    """
    return prompts.mean(dim=0) if len(prompts) > 1 else torch.zeros_like(prompts[0])


# Buffers of `Adapters` that are sent with the weights: the maps of the input.
FIXED = ("audio_mean", "audio_std", "space_matrix", "space_centre")


class _UnsetLinear(nn.Linear):
    """A linear layer without initial values."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


class PromptAdapter(nn.Module):
    """Audio tokens -> narrow hidden tokens -> attention pooling to the prompt's tokens -> prompt width.

    All layers work at `hidden_width`, except the last, which projects to the prompt's width. Normalisation is
    LayerNorm: BatchNorm's running statistics cannot be averaged over sites with different classes. The output is
    relative to the centre of the class prompts and in units of their standard deviation, so that the weights only
    learn how classes differ.

    Args:
        audio_width: Da.
        prompts: (C, T, D) class prompts; they fix T, D, the centre and the scale.
        hidden_width: width of the hidden tokens.
        initial: draw initial weights; otherwise they are not set, see `Adapters.adopt`.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, audio_width: int, prompts: Tensor, hidden_width: int = 512, initial: bool = True) -> None:
        super().__init__()
        linear, normal = (nn.Linear, torch.randn) if initial else (_UnsetLinear, torch.empty)
        _, tokens, width = prompts.shape
        self.input_norm = nn.LayerNorm(audio_width)
        self.input = linear(audio_width, hidden_width)
        self.queries = nn.Parameter(normal(tokens, hidden_width) / hidden_width**0.5)
        self.token_embedding = nn.Parameter(0.5 * normal(tokens, hidden_width))
        self.mix = linear(hidden_width, hidden_width)
        self.output_norm = nn.LayerNorm(hidden_width)
        self.output = linear(hidden_width, width)
        # Not persistent: server and sites compute these from the class prompts, so they need not be sent.
        centre = prompt_centre(prompts)
        self.register_buffer("centre", centre, persistent=False)
        self.register_buffer("scale", (prompts - centre).std().clamp(min=1e-6), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """(B, S, Da) audio embeddings to (B, T, D) prompt embeddings."""
        hidden = F.gelu(self.input(self.input_norm(audio)))
        queries = self.queries.expand(len(audio), -1, -1)
        pooled = F.scaled_dot_product_attention(queries, hidden, hidden)
        mixed = F.gelu(self.mix(pooled + self.token_embedding))
        out: Tensor = self.output(self.output_norm(mixed)) * self.scale + self.centre
        return out

    @torch.no_grad()
    def reach(self) -> float:
        """Upper bound on the distance of a flattened output from the centre, for any input.

        A layer norm (before its weight and bias) outputs vectors of length sqrt(width) at most, and a matrix multiplies
        a length by at most its largest singular value.
        """
        norm, output = self.output_norm, self.output
        longest = math.sqrt(len(norm.weight)) * norm.weight.abs().max() + norm.bias.norm()
        # Singular values squared are the eigenvalues of the smaller Gram matrix, which take a third of the time.
        weight = output.weight if len(output.weight) < output.weight.shape[1] else output.weight.T
        largest = torch.linalg.eigvalsh(weight @ weight.T)[-1].clamp(min=0).sqrt()
        token = largest * longest + output.bias.norm()
        return float(token * self.scale) * math.sqrt(len(self.token_embedding))


class BilinearAdapter(nn.Module):
    """Maps audio to a prompt by one matrix that is solved in closed form, for classes without recordings.

    The output has the direction that `BilinearMap` gives and the mean length of the centred class prompts. Audio tokens
    are averaged first.

    Args:
        audio_width: Da.
        prompts: (C, T, D) class prompts; they fix T, D, the centre and the length.
    """

    centre: Tensor
    length: Tensor

    def __init__(self, audio_width: int, prompts: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(audio_width, prompts[0].numel()))
        self.mean = nn.Parameter(torch.zeros(audio_width))
        self.std = nn.Parameter(torch.ones(audio_width))
        centre = prompt_centre(prompts)
        self.register_buffer("centre", centre, persistent=False)
        self.register_buffer("length", (prompts - centre).flatten(1).norm(dim=1).mean(), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """(B, S, Da) audio embeddings to (B, T, D) prompt embeddings."""
        rows = F.normalize((audio.mean(dim=1) - self.mean) / self.std, dim=1)
        out: Tensor = F.normalize(rows @ self.weight, dim=1) * self.length
        return out.view(-1, *self.centre.shape) + self.centre

    def reach(self) -> float:
        """See `PromptAdapter.reach`. Every output has exactly this distance from the centre, except for rounding."""
        return float(self.length)

    @torch.no_grad()
    def load_solution(self, weight: Tensor, mean: Tensor, std: Tensor) -> None:
        """Copy a solution: (Da, T x D) `weight`, (Da,) `mean` and `std`.

        `weight` is scaled to RMS 1, as its scale has no effect on the normalised output.
        """
        self.weight.copy_(weight / weight.square().mean().sqrt().clamp(min=1e-30))
        self.mean.copy_(mean)
        self.std.copy_(std)


class PosteriorAdapter(nn.Module):
    """Maps rows of a public space to the class prompts, averaged by the classes' probabilities.

    The probabilities are those of linear discriminant analysis, which `solve` takes from the sites' sums without an
    optimiser step. Unsolved, every class has the same probability, and the output is the mean of the class prompts;
    solved, classes without clips have probability 0, except for those of `dataset.unseen`.

    Args:
        audio_width: R.
        prompts: (C, T, D) class prompts.
    """

    prompts: Tensor

    def __init__(self, audio_width: int, prompts: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(prompts), audio_width))
        self.bias = nn.Parameter(torch.zeros(len(prompts)))
        # Not persistent: server and sites have the class prompts, so they need not be sent.
        self.register_buffer("prompts", prompts, persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """(B, 1, R) rows to (B, T, D) prompt embeddings."""
        posterior = (audio.mean(dim=1) @ self.weight.T + self.bias).softmax(dim=1)
        return (posterior @ self.prompts.flatten(1)).view(-1, *self.prompts.shape[1:])

    def reach(self) -> float:
        """See `PromptAdapter.reach`: an average of prompts is no farther from the centre than the farthest prompt."""
        centre = prompt_centre(self.prompts)
        # Class by class, as a copy of all T5 prompts may be gigabytes.
        return max(float(torch.linalg.vector_norm(prompt - centre)) for prompt in self.prompts)

    @torch.no_grad()
    def load_discriminant(self, labels: Tensor, weight: Tensor, bias: Tensor) -> None:
        """Load a linear discriminant: (K,) classes, their (K, R) `weight` and (K,) `bias`."""
        self.weight.zero_()
        self.weight[labels] = weight.to(self.weight)
        self.bias.fill_(NEVER)
        self.bias[labels] = bias.to(self.bias)


class Adapters(nn.Module):
    """The CLIP adapter and, if the image model has a T5 prompt, the T5 adapter.

    Args:
        audio_width: Da.
        prompts: the class prompts.
        hidden_width: see `PromptAdapter`.
        closed_form: use adapters that the server solves: a `PosteriorAdapter` in a public space, else a
            `BilinearAdapter`, for CLIP prompts only.
        space: public space in which sites sum their clips (`share=statistics`). Its R columns are then the adapters'
            input (B, 1, R), see `mapped`; it is fixed and belongs to the adapters' state. None: embeddings as they are.
        initial: see `PromptAdapter`.

    Raises:
        ValueError: a `BilinearAdapter` with T5 prompts.
    """

    audio_mean: Tensor
    audio_std: Tensor
    space_matrix: Tensor | None
    space_centre: Tensor | None

    def __init__(
        self,
        audio_width: int,
        prompts: ClassPrompts,
        hidden_width: int = 512,
        closed_form: bool = False,
        space: PublicSpace | None = None,
        initial: bool = True,
    ) -> None:
        super().__init__()
        if closed_form and space is None and prompts.t5 is not None:
            raise ValueError("closed_form does not support T5 prompts: the matrix would not fit in memory")
        self.audio_width = audio_width if space is None else space.columns
        self.closed_form = closed_form

        def adapter(of: Tensor) -> PromptAdapter | BilinearAdapter | PosteriorAdapter:
            if not closed_form:
                return PromptAdapter(self.audio_width, of, hidden_width, initial)
            return BilinearAdapter(self.audio_width, of) if space is None else PosteriorAdapter(self.audio_width, of)

        self.clip = adapter(prompts.clip)
        self.t5 = None if prompts.t5 is None else adapter(prompts.t5)
        self.register_buffer("audio_mean", torch.zeros(self.audio_width))
        self.register_buffer("audio_std", torch.ones(self.audio_width))
        self.register_buffer("space_matrix", None if space is None else space.matrix.clone())
        centre = None if space is None else torch.zeros(space.columns) if space.centre is None else space.centre
        self.register_buffer("space_centre", centre if centre is None else centre.clone())

    def forward(self, audio: Tensor, t5_audio: Tensor | None = None) -> AdapterOutput:
        """(B, S, Da) audio embeddings to prompts; `t5_audio`, of the same shape, is the T5 adapter's input if given."""
        audio = self.standardised(audio)
        t5_audio = audio if t5_audio is None else self.standardised(t5_audio)
        return AdapterOutput(self.clip(audio), None if self.t5 is None else self.t5(t5_audio))

    @property
    def space(self) -> PublicSpace | None:
        """The public space; None if the input are embeddings as they are."""
        return None if self.space_matrix is None else PublicSpace(self.space_matrix, self.space_centre)

    def mapped(self, audio: Tensor) -> Tensor:
        """The adapters' input for (B, S, Da) audio embeddings: (B, 1, R) rows of the public space if there is one."""
        return audio if self.space is None else self.space.rows(audio).unsqueeze(1)

    def fixed(self) -> list[Tensor]:
        """What travels with the weights and is not trained, in the order in which it is sent: the input's maps."""
        tensors = [getattr(self, name) for name in FIXED]
        return [tensor for tensor in tensors if tensor is not None]

    def adopt(self, weights: Sequence[Tensor], fixed: Sequence[Tensor]) -> None:
        """Use these tensors, of the same shapes, as `weights()` and `fixed()`, without a copy."""
        # Not `load_state_dict(assign=True)`: a site does this for every message, and that takes ten times as long.
        for parameter, value in zip(self.parameters(), weights, strict=True):
            parameter.data = value
        for name, value in zip([name for name in FIXED if getattr(self, name) is not None], fixed, strict=True):
            setattr(self, name, value)

    def set_standardisation(self, mean: Tensor, std: Tensor) -> None:
        """Subtract (Da,) `mean` from the inputs and divide them by one number, the root mean square of (Da,) `std`.

        Dividing each column by its own deviation was measured to be worse: it amplifies columns that are active in a
        few clips only, and costs 0.02 of accuracy on real embeddings.
        """
        self.audio_mean.copy_(mean)
        self.audio_std.fill_(float(std.square().mean().sqrt().clamp(min=1e-6)))

    def standardised(self, audio: Tensor) -> Tensor:
        """Standardised (B, S, Da) audio embeddings, the input of `clip` and `t5`."""
        return (audio - self.audio_mean) / self.audio_std

    def weights(self) -> list[Tensor]:
        """The trained weights, in the fixed order in which they are sent."""
        return [parameter.detach() for parameter in self.parameters()]

    def clip_weights(self) -> list[Tensor]:
        """The weights of the CLIP adapter, which come first in `weights()`."""
        return [parameter.detach() for parameter in self.clip.parameters()]

    def load_discriminant(self, labels: Tensor, weight: Tensor, bias: Tensor) -> None:
        """See `PosteriorAdapter.load_discriminant`; adapters that are trained instead do not change."""
        for side in (self.clip, self.t5):
            if isinstance(side, PosteriorAdapter):
                side.load_discriminant(labels, weight, bias)

    def reach(self) -> dict[str, float]:
        """Upper bounds on the distance of an output from the prompts' centre, by `clip` and, if there is one, `t5`."""
        sides = {"clip": self.clip, "t5": self.t5}
        return {kind: side.reach() for kind, side in sides.items() if side is not None}

    def load_weights(self, weights: Sequence[Tensor]) -> None:
        """Copy `weights`, given in the order of `weights()`."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters(), weights, strict=True):
                parameter.copy_(value)
