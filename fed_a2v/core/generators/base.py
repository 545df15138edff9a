"""The interface of all generators; the server step trains one and fine-tunes the adapters on its samples.

A generator learns the distribution of the audio embeddings of each class from the prototypes in the bank, and samples
it. A class is identified by a condition: the class's CLIP prompt, averaged over its tokens.

Shapes: S audio tokens of width Da; C classes; V the width of the condition.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fed_a2v.core.statistics import PrototypeBatch

# Cosine from which a condition counts as that of a known class: mean outputs of adapters are this close to the prompt
# of their class, other classes are not.
SAME_CLASS_COSINE = 0.95


class EpochLosses(NamedTuple):
    """Losses of one training epoch.

    Attributes:
        total: mean over the rows of the loss that trains the generator.
        parts: the named terms of `total`, e.g. reconstruction, kl, similarity, which add up to it; empty without terms.
        per_class: the terms of each class's rows, by class name. They add up to the class's loss; the mean of the
            classes' losses, weighted by rows, is the total. Empty if losses are not recorded by class.
        critic: the terms of the loss of a critic that is trained against the generator; empty without a critic.
    """

    total: float
    parts: dict[str, float]
    per_class: dict[str, dict[str, float]]
    critic: Mapping[str, float] = MappingProxyType({})


class Generator(nn.Module, ABC):
    """Learns audio embeddings (S, Da) of classes from their prototypes, and samples new ones.

    Args:
        input_dim: Da.
        visual_dim: V.
        sequence_length: S.
    """

    kind: ClassVar[str]
    # Whether `conditions_from` needs T5 prompts.
    needs_t5: ClassVar[bool] = False

    def __init__(self, input_dim: int, visual_dim: int, sequence_length: int) -> None:
        super().__init__()
        at_least_one(input_dim=input_dim, visual_dim=visual_dim, sequence_length=sequence_length)
        self.input_dim = input_dim
        self.visual_dim = visual_dim
        self.sequence_length = sequence_length

    @property
    def dimensions(self) -> dict[str, int]:
        """The dimensions that a checkpoint must share with the generator that loads it."""
        return {
            "input_dim": self.input_dim,
            "visual_dim": self.visual_dim,
            "sequence_length": self.sequence_length,
        }

    def conditions_from(self, clip: Tensor, t5: Tensor | None) -> Tensor:
        """The (C, V) conditions of classes with (C, Tc, Dc) CLIP and (C, T, Dt) T5 prompts: CLIP's mean tokens."""
        del t5
        return clip.mean(dim=1)

    @abstractmethod
    def fit(
        self, rows: PrototypeBatch, conditions: Tensor, epochs: int, noise: float, random: torch.Generator
    ) -> list[EpochLosses]:
        """Train on `rows`, starting from the state that earlier rounds left.

        Args:
            rows: N prototypes of C classes.
            conditions: (C, V), in the order of `rows.names`.
            epochs: passes over the rows.
            noise: deviation of Gaussian noise on the standardised inputs; the target has none.
            random: source of all random draws.

        Returns:
            The losses of each epoch; empty for a closed form.
        """

    def steps_per_epoch(self, rows: PrototypeBatch) -> float:
        """Optimiser steps of the generator in one epoch of `fit` on `rows`; 0 for a closed form."""
        del rows
        return 0

    @abstractmethod
    def sample(
        self,
        num_samples: int,
        visual_condition: Tensor,
        device: torch.device | str | None = None,
        random: torch.Generator | None = None,
    ) -> Tensor:
        """Sample new audio embeddings of the class that `visual_condition` stands for.

        Args:
            num_samples: number of embeddings, each different.
            visual_condition: (V,), (1, V) or (num_samples, V); T5 or unpooled CLIP tokens (..., T, V) are
                averaged over the tokens.
            device: device of the result; default: that of the generator.
            random: source of the draws; default: torch's global one.

        Returns:
            (num_samples, S, Da).
        """

    def sample_classes(self, conditions: Tensor, num_samples: int, random: torch.Generator) -> Tensor:
        """Sample `num_samples` embeddings for each of (C, V) `conditions` in one batch, (C, num_samples, S, Da)."""
        rows = self.sample(len(conditions) * num_samples, conditions.repeat_interleave(num_samples, 0), None, random)
        return rows.view(len(conditions), num_samples, *rows.shape[1:])

    def sample_sides(
        self, conditions: Tensor, num_samples: int, random: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """The samples that the adapters are fine-tuned on: `num_samples` for each of (C, V) `conditions`.

        Returns:
            (C, num_samples, S, Da) for the CLIP adapter, and the same for the T5 adapter; None if both learn from
            the same samples.
        """
        return self.sample_classes(conditions, num_samples, random), None

    def posterior(self, x: Tensor, visual_condition: Tensor) -> tuple[Tensor, Tensor] | None:
        """The latents of B embeddings, if the generator has latents.

        Args:
            x: (B, S, Da).
            visual_condition: (B, V), or one condition for all as in `sample`.

        Returns:
            Mean and log variance, (B, L) each; None for a generator without a latent.
        """
        del x, visual_condition
        return None

    # The next three describe a generator's network alone, without the moments, residuals and calibration around it.
    # Each returns None if a generator does not support it.

    def log_likelihood(self, x: Tensor, conditions: Tensor, noise: Tensor, random: torch.Generator) -> Tensor | None:
        """Log densities of B embeddings, or lower bounds on them.

        Args:
            x: (B, S, Da).
            conditions: (B, V), as in `fit`.
            noise: (D,) deviation of Gaussian noise whose variance is added to all variances; see
                `fed_a2v.core.likelihood`.
            random: source of the draws for a bound.

        Returns:
            (B,) nats, in the units of the embeddings.
        """
        del x, conditions, noise, random
        return None

    def reconstruct(self, x: Tensor, conditions: Tensor) -> Tensor | None:
        """(B, S, Da) reconstructions of embeddings under (B, V) conditions."""
        del x, conditions
        return None

    def sample_raw(self, conditions: Tensor, random: torch.Generator) -> Tensor | None:
        """(B, S, Da) samples of the network alone, one under each of (B, V) conditions."""
        del conditions, random
        return None

    def untrained(self) -> Generator | None:
        """A copy with its networks as before training; None if they start from random weights."""
        return None

    def training_state(self) -> dict[str, Any]:
        """State that training needs besides the weights to resume exactly (optimiser, epoch counter)."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Load the result of `training_state`."""

    def move_to(self, device: torch.device) -> None:
        """Move everything to another device, including the training state."""
        if any(tensor.device != device for tensor in self.state_dict().values()):
            state = self.training_state()
            self.to(device)
            self.load_training_state(state)

    def checkpoint(self) -> dict[str, Any]:
        """The complete state of the generator, in tensors and plain types."""
        return {
            "generator_type": self.kind,
            "dimensions": self.dimensions,
            "generator_state": self.state_dict(),
            "optimizer_state": self.training_state(),
        }

    def load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load a `checkpoint()` of the same type and dimensions."""
        self.load_state_dict(checkpoint["generator_state"])
        self.load_training_state(checkpoint["optimizer_state"])
        self.eval()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the generators that it consists of; a single generator has the empty key."""
        return ("",)

    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """The checkpoints by key, each for a separate file."""
        return {"": self.checkpoint()}

    def load_checkpoints(self, checkpoints: Mapping[str, dict[str, Any]]) -> None:
        """Load the result of `checkpoints`."""
        self.load_checkpoint(checkpoints[""])


def as_rows(condition: Tensor, num_samples: int, visual_dim: int) -> Tensor:
    """A condition in any accepted shape as (num_samples, V), one per row.

    Raises:
        ValueError: the shape is wrong.
    """
    if condition.shape[-1] != visual_dim:
        raise ValueError(f"visual_condition has width {condition.shape[-1]}, but the generator needs {visual_dim}")
    if condition.dim() == 3:
        condition = condition.mean(dim=1)
    if condition.dim() == 2 and condition.shape[0] not in (1, num_samples):
        raise ValueError(
            f"visual_condition has {condition.shape[0]} rows for {num_samples} samples; give one row, or one per sample"
        )
    if condition.dim() == 1:
        condition = condition.unsqueeze(0)
    return condition.expand(num_samples, -1)


def at_least_one(**values: int) -> None:
    """Check sizes and counts.

    Raises:
        ValueError: one is below 1; names it.
    """
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")


def at_most_one(**values: float) -> None:
    """Check shares and probabilities.

    Raises:
        ValueError: one is not between 0 and 1; names it.
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: must be between 0 and 1")
