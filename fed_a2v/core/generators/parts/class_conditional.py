"""Base class of the generators of known classes, so that the file of each has only its model and its loss.

`vae.py` and `gaussian.py` derive from `ClassConditionalGenerator`; `flow.py`, `gan.py` and `gmm.py` do so through
`ReducedGenerator` (`reduced.py`).

Shapes: B rows; C classes; D = S x Da data dimensions; V the width of the condition.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fed_a2v.core.generators.base import SAME_CLASS_COSINE, EpochLosses, Generator, as_rows
from fed_a2v.core.generators.parts.buffers import DataSizedModule
from fed_a2v.core.generators.parts.calibration import Calibration
from fed_a2v.core.generators.parts.moments import ClassMoments
from fed_a2v.core.optimisers import Adam
from fed_a2v.core.statistics import PrototypeBatch


class TrainingData(NamedTuple):
    """The training data of a model in one `fit`.

    Attributes:
        x: (N, D) standardised rows.
        labels: (N,) their classes.
        names: names of the C classes.
        epochs, noise, random: see `Generator.fit`.
    """

    x: Tensor
    labels: Tensor
    names: tuple[str, ...]
    epochs: int
    noise: float
    random: torch.Generator


class ClassConditionalGenerator(DataSizedModule, Generator):
    """A model of standardised rows, trained under the conditions of their classes.

    Each `fit` replaces the moments and the conditions of the classes. The standardisation and the mean of the
    conditions are measured at the first `fit` and kept with the weights: a later change would invalidate them.
    Samples of known classes are calibrated to the classes' moments (`Calibration`).

    A subclass implements `_draw`, and `_train` and `_measure_scale` if it is trained.

    Args:
        input_dim, visual_dim, sequence_length: see `Generator`.
        calibrate: move samples of known classes to the classes' moments.
        batch_size: rows of all classes together; 0 for a closed form, which takes no optimiser steps.
        ema: decay of the running average of the weights that are used for sampling.
    """

    # Whether a condition of no known class is drawn from the model. Otherwise the nearest known class is sampled.
    draws_unknown: ClassVar[bool] = True
    # Whether `sample` works before the first `fit`.
    samples_untrained: ClassVar[bool] = False
    # Whether samples come from the classes' moments themselves: then there is nothing to calibrate, and a checkpoint
    # has neither a calibration nor the mean of the conditions.
    draws_moments: ClassVar[bool] = False
    # Attributes that count epochs and steps, and names of the optimisers, in the training state.
    counters: ClassVar[tuple[str, ...]] = ("epoch",)
    optimiser_names: ClassVar[tuple[str, ...]] = ("optimiser",)

    data_sized: ClassVar[tuple[str, ...]] = ("conditions",)
    conditions: Tensor  # (C, V)
    condition_mean: Tensor  # (V,)

    def __init__(
        self,
        input_dim: int,
        visual_dim: int,
        sequence_length: int,
        calibrate: bool = True,
        batch_size: int = 0,
        ema: float = 0.0,
    ) -> None:
        super().__init__(input_dim, visual_dim, sequence_length)
        if not 0 <= ema < 1:
            raise ValueError(f"ema={ema}: must be at least 0 and below 1")
        self.calibrate = calibrate and not self.draws_moments
        self.batch_size = batch_size
        self.ema = ema
        self.moments = ClassMoments()
        self.register_buffer("conditions", torch.empty(0, visual_dim))
        if not self.draws_moments:
            self.calibration = Calibration()
            self.register_buffer("condition_mean", torch.zeros(visual_dim))
        self.epoch = 0
        self._optimisers: dict[str, Adam] = {}

    # What a subclass implements

    @abstractmethod
    def _draw(self, conditions: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        """(B, D) standardised rows under (B, V) conditions of the classes `labels`; -1 labels no known class."""

    def _train(self, data: TrainingData) -> list[EpochLosses]:
        """Train the model; nothing to do for a closed form."""
        del data
        return []

    def _measure_scale(self, x: Tensor) -> None:
        """Measure mean and deviation of the columns of (N, D) rows, once."""

    @property
    def scale(self) -> tuple[Tensor, Tensor]:
        """(D,) mean and deviation that rows are standardised with. Default: none, rows keep the units of the data."""
        return self.conditions.new_zeros(1), self.conditions.new_ones(1)

    def _new_optimisers(self) -> dict[str, Adam]:
        """The optimisers by name, see `optimiser_names`."""
        return {}

    # Training

    def fit(
        self, rows: PrototypeBatch, conditions: Tensor, epochs: int, noise: float, random: torch.Generator
    ) -> list[EpochLosses]:
        """See `Generator.fit`."""
        x, labels = self.training_rows(rows, conditions, random)
        self.train()
        losses = self._train(TrainingData(x, labels, rows.names, epochs, noise, random))
        self.eval()
        self.finish_fit(x, labels, random)
        return losses

    def training_rows(self, rows: PrototypeBatch, conditions: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Store the moments and (C, V) conditions of the classes; (M, D) standardised rows and their (M,) labels."""
        self.moments.fit(rows)
        self.conditions = conditions.clone()
        x, labels = self.moments.training_rows(rows, random)
        if self.epoch == 0:
            self._measure_scale(x)
            # A single condition minus its mean would be zero.
            if len(conditions) > 1:
                self.condition_mean.copy_(conditions.mean(dim=0))
        return self.standardise(x), labels

    @torch.no_grad()
    def finish_fit(self, x: Tensor, labels: Tensor, random: torch.Generator) -> None:
        """Measure what sampling needs after the training on (M, D) standardised rows: here, the calibration."""
        if self.calibrate:
            labels = self.calibration.labels(len(self.conditions), x.device)
            self.calibration.fit(self._draw(self.conditions[labels], labels, random), *self.scale)

    def _shuffled(self, data: TrainingData) -> Iterator[tuple[Tensor, ...]]:
        """For each epoch the row numbers of its batches, in random order. Counts the epochs."""
        for _ in range(data.epochs):
            order = torch.randperm(len(data.x), generator=data.random, device=data.random.device)
            yield order.to(data.x.device).split(self.batch_size)
            self.epoch += 1

    def steps_per_epoch(self, rows: PrototypeBatch) -> float:
        """See `Generator.steps_per_epoch`."""
        return self.moments.batches(rows, self.batch_size) if self.batch_size else 0

    def get_optimiser(self, name: str = "optimiser") -> Adam:
        """The optimiser of that name, which keeps its state over the rounds."""
        if not self._optimisers:
            self._optimisers = self._new_optimisers()
        return self._optimisers[name]

    def training_state(self) -> dict[str, Any]:
        """See `Generator.training_state`: counters, and the optimisers' states; empty for a closed form."""
        if not self.batch_size:
            return {}
        states = {name: each.state_dict() for name, each in self._optimisers.items()}
        counts = {name: getattr(self, name) for name in self.counters}
        return counts | {name: states.get(name) for name in self.optimiser_names}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `Generator.load_training_state`."""
        self._optimisers = {}
        for name, value in state.items():
            if name in self.counters:
                setattr(self, name, value)
            elif value is not None:
                self.get_optimiser(name).load_state_dict(value)

    # Sampling

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        visual_condition: Tensor,
        device: torch.device | str | None = None,
        random: torch.Generator | None = None,
    ) -> Tensor:
        """See `Generator.sample`.

        Raises:
            ValueError: the condition's shape does not fit.
            RuntimeError: no class is known, and the model cannot be sampled without one.
        """
        if not len(self.conditions) and not self.samples_untrained:
            raise RuntimeError("the generator has no class yet: call fit, or load a checkpoint")
        conditions = as_rows(visual_condition.to(self.conditions), num_samples, self.conditions.shape[1])
        labels = self._labels(conditions)
        rows = self._restore(self._draw(conditions, labels, random or torch.default_generator))
        known = labels >= 0
        if self.calibrate and known.any():
            rows[known] = self.calibration.apply_to(rows[known], labels[known], self.moments)
        return self._embeddings(rows).to(device or rows.device)

    def _labels(self, conditions: Tensor) -> Tensor:
        """The known class of each (B, V) condition, or -1."""
        if not len(self.conditions):
            return torch.full((len(conditions),), -1, device=conditions.device)
        if not self.draws_unknown:
            return torch.cdist(conditions, self.conditions).argmin(dim=1)
        # Most conditions are repeated: each is looked up once.
        distinct, inverse = conditions.unique(dim=0, return_inverse=True)
        cosine, label = self._cosines(distinct).max(dim=1)
        return torch.where(cosine >= SAME_CLASS_COSINE, label, -1)[inverse]

    def _cosines(self, conditions: Tensor) -> Tensor:
        """(B, C) cosines of (B, V) conditions with those of the known classes, all centred."""
        requested, known = (F.normalize(c - self.condition_mean, dim=-1) for c in (conditions, self.conditions))
        return requested @ known.T

    def directions(self, conditions: Tensor) -> Tensor:
        """Centred conditions of unit variance: text vectors are close to each other, and their length means nothing."""
        return F.normalize(conditions - self.condition_mean, dim=-1) * math.sqrt(self.visual_dim)

    def standardise(self, x: Tensor) -> Tensor:
        """(B, D) rows in units of the columns' deviations."""
        mean, std = self.scale
        return (x - mean) / std

    def _restore(self, x: Tensor) -> Tensor:
        """The inverse of `standardise`."""
        mean, std = self.scale
        return x * std + mean

    def _embeddings(self, rows: Tensor) -> Tensor:
        """(B, S, Da) of (B, D) rows, rectified if the data are."""
        return self.moments.rectify(rows).view(-1, self.sequence_length, self.input_dim)
