"""Figures of a generator's network alone, without moments, residuals and calibration; validation calls it.

Moments, residuals and calibration alone give samples that pass every gate, whatever the network does. So the network is
measured by itself: log-likelihood of held-out rows, reconstruction error, and gates of its raw samples. Each figure has
a baseline that needs no network.

Likelihoods are in nats per dimension, in the coordinates of `fed_a2v.core.likelihood`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fed_a2v.core.generators.base import Generator
from fed_a2v.core.generators.parts.moments import SHRINKAGE, ClassMoments
from fed_a2v.core.likelihood import NOISE, column_scale
from fed_a2v.core.quality import GeneratorQuality, Rows, assess
from fed_a2v.core.uncertainty import QUANTILE, Interval

# Reported of raw samples: the gates, and the variance ratio, which shows a decoder without spread.
RAW = ("tstr", "c2st", "nn_ratio", "variance_ratio")


@dataclass(frozen=True)
class NetworkFigures:
    """Figures of a network; None if the generator does not support one.

    Attributes:
        likelihood: mean log-likelihood of held-out rows, an importance-weighted bound.
        gaussian: the same of Gaussians in closed form, with the classes' means and shrunken covariances.
        gain: 95 % interval of the mean difference of the two, paired by rows; None for a single row.
        untrained: `likelihood` of the closed form that the network started from.
        reconstruction: mean squared error of encoding and decoding held-out rows, standardised.
        class_mean: the same with the class mean as the reconstruction.
        raw: gates of the network's raw samples.
    """

    likelihood: float | None
    gaussian: float
    gain: Interval | None
    untrained: float | None
    reconstruction: float | None
    class_mean: float
    raw: GeneratorQuality | None

    def as_dict(self) -> dict[str, float]:
        """All figures by name, without those that have no value, and without their baselines."""
        named: dict[str, float | None] = {}
        if self.likelihood is not None:
            named = {"likelihood": self.likelihood, "likelihood_gaussian": self.gaussian}
            named |= {"likelihood_untrained": self.untrained, "gain": self.likelihood - self.gaussian}
        if self.gain is not None:
            named |= {"gain_low": self.gain[0], "gain_high": self.gain[1]}
        if self.reconstruction is not None:
            named |= {"reconstruction": self.reconstruction, "reconstruction_class_mean": self.class_mean}
        if self.raw is not None:
            raw = self.raw.as_dict()
            named |= {f"raw_{name}": raw.get(name) for name in RAW}
        return {name: value for name, value in named.items() if value is not None}

    def lines(self) -> list[str]:
        """The same as lines of the log."""
        figures, lines = self.as_dict(), []
        if "likelihood" in figures:
            start = f", untrained {self.untrained:.3f}" if self.untrained is not None else ""
            around = f" [{self.gain[0]:+.3f}, {self.gain[1]:+.3f}]" if self.gain is not None else ""
            lines.append(
                f"network alone, log-likelihood: {self.likelihood:.3f} nats per dimension "
                f"(Gaussians {self.gaussian:.3f}{start}), gain {figures['gain']:+.3f}{around}"
            )
        if self.reconstruction is not None:
            lines.append(
                f"network alone, reconstruction error: {self.reconstruction:.3f} (class mean {self.class_mean:.3f})"
            )
        if raw := [f"{name} {figures[f'raw_{name}']:.3f}" for name in RAW if f"raw_{name}" in figures]:
            lines.append(f"network alone, gates: {', '.join(raw)}")
        return lines


@torch.no_grad()
def examine(
    generator: Generator,
    moments: ClassMoments,
    seen: Rows,
    held_out: Rows,
    conditions: Tensor,
    samples: int,
    random: torch.Generator,
    **limits: Any,
) -> NetworkFigures | None:
    """Measure a generator's network by itself; None if the generator has none.

    Args:
        generator: a trained generator.
        moments: moments of its training rows.
        seen: (N, S, Da) training rows, scaled to the spread of clips.
        held_out: M held-out rows, scaled likewise.
        conditions: (C, V) conditions of the classes.
        samples: samples of each class, for the gates.
        random: source of all draws.
        limits: `seeds`, `max_rows` and `known` of `assess`.
    """
    _, scale = column_scale(seen.embeddings.flatten(1))
    x, labels = held_out.embeddings, held_out.labels
    noise, of_rows = NOISE * scale, conditions[labels]

    def per_dimension(nats: Tensor) -> Tensor:
        # The log determinant of the standardisation moves the density to standardised rows.
        return nats.double() / len(scale) + scale.double().log().mean()

    def likelihood(model: Generator | None) -> Tensor | None:
        nats = None if model is None else model.log_likelihood(x, of_rows, noise, random)
        return None if nats is None else per_dimension(nats)

    def error(rows: Tensor) -> float:
        return float(((rows.flatten(1) - x.flatten(1)) / scale).square().mean())

    # In this order: all of them draw from `random`.
    trained, start = likelihood(generator), likelihood(generator.untrained())
    decoded = generator.reconstruct(x, of_rows)
    raw = generator.sample_raw(conditions.repeat_interleave(samples, 0), random)
    if trained is None and decoded is None and raw is None:
        return None
    gaussian = per_dimension(moments.log_density(x.flatten(1), labels, SHRINKAGE, noise))
    raw_labels = torch.arange(len(conditions), device=labels.device).repeat_interleave(samples)
    return NetworkFigures(
        None if trained is None else float(trained.mean()),
        float(gaussian.mean()),
        None if trained is None or len(x) < 2 else _interval(trained - gaussian),
        None if start is None else float(start.mean()),
        None if decoded is None else error(decoded),
        error(moments.mean[labels]),
        None if raw is None else assess(seen, held_out, Rows(raw, raw_labels), **limits),
    )


def _interval(differences: Tensor) -> Interval:
    """95 % interval of the mean of (M,) differences."""
    middle, half = float(differences.mean()), QUANTILE * float(differences.std()) / math.sqrt(len(differences))
    return middle - half, middle + half
