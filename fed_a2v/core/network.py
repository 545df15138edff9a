"""What the network of a generator has learned, apart from all that is put around it.

Moments, residuals and calibration alone make samples that pass every gate, whatever the network does. So the network is
asked by itself: how likely it finds rows that were held out of training, how well it gives them back, and what it draws
on its own. Each figure stands beside what needs no network.

Likelihoods are in nats a dimension; `fed_a2v.core.likelihood` says in which coordinates.
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
from fed_a2v.core.quality import QUANTILE, GeneratorQuality, Interval, Rows, assess

# The gates of raw samples, and what tells a decoder without spread.
RAW = ("tstr", "c2st", "nn_ratio", "variance_ratio")


@dataclass(frozen=True)
class NetworkFigures:
    """What is known of a network; None where the generator has nothing of the kind.

    Attributes:
        likelihood: mean log-likelihood of held-out rows, an importance-weighted bound.
        gaussian: the same of Gaussians in closed form, with the classes' means and shrunken covariances.
        gain: 95 % interval of the mean difference of the two, paired by rows; None for a single row.
        untrained: `likelihood` of the closed form that the network started from.
        reconstruction: mean squared error of held-out rows that are encoded and decoded, standardised.
        class_mean: the same of the class's mean.
        raw: gates of what the network draws alone.
    """

    likelihood: float | None
    gaussian: float
    gain: Interval | None
    untrained: float | None
    reconstruction: float | None
    class_mean: float
    raw: GeneratorQuality | None

    def as_dict(self) -> dict[str, float]:
        """All figures by name; those without a value, and what would stand beside them, are left out."""
        named: dict[str, float | None] = {}
        if self.likelihood is not None:
            named = {"likelihood": self.likelihood, "likelihood_gaussian": self.gaussian}
            named |= {"likelihood_untrained": self.untrained, "gain": self.likelihood - self.gaussian}
        if self.gain is not None:
            named |= {"gain_low": self.gain[0], "gain_high": self.gain[1]}
        if self.reconstruction is not None:
            named |= {"reconstruction": self.reconstruction, "reconstruction_class_mean": self.class_mean}
        if self.raw is not None:
            found = self.raw.as_dict()
            named |= {f"raw_{name}": found.get(name) for name in RAW}
        return {name: value for name, value in named.items() if value is not None}

    def lines(self) -> list[str]:
        """The same in words."""
        found, lines = self.as_dict(), []
        if "likelihood" in found:
            start = f", untrained {self.untrained:.3f}" if self.untrained is not None else ""
            around = f" [{self.gain[0]:+.3f}, {self.gain[1]:+.3f}]" if self.gain is not None else ""
            lines.append(
                f"network alone, log-likelihood: {self.likelihood:.3f} nats a dimension (Gaussians {self.gaussian:.3f}"
                f"{start}), gain {found['gain']:+.3f}{around}"
            )
        if self.reconstruction is not None:
            lines.append(
                f"network alone, reconstruction error: {self.reconstruction:.3f} (class mean {self.class_mean:.3f})"
            )
        if raw := [f"{name} {found[f'raw_{name}']:.3f}" for name in RAW if f"raw_{name}" in found]:
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
    """Ask a generator's network by itself; None where the generator has none.

    Args:
        generator: after its training.
        moments: of the rows that it was trained on.
        seen: (N, S, Da) rows that it was trained on, as far from their class's mean as clips are.
        held_out: M others.
        conditions: (C, V) of the classes.
        samples: of each class, for the gates.
        random: source of all draws.
        limits: `seeds`, `max_rows` and `known` of `assess`.
    """
    _, scale = column_scale(seen.embeddings.flatten(1))
    x, labels = held_out.embeddings, held_out.labels
    noise, of_rows = NOISE * scale, conditions[labels]

    def a_dimension(nats: Tensor) -> Tensor:
        return nats.double() / len(scale) + scale.double().log().mean()

    def likelihood(model: Generator | None) -> Tensor | None:
        found = None if model is None else model.log_likelihood(x, of_rows, noise, random)
        return None if found is None else a_dimension(found)

    def error(rows: Tensor) -> float:
        return float(((rows.flatten(1) - x.flatten(1)) / scale).square().mean())

    trained, start, decoded = (
        likelihood(generator),
        likelihood(generator.untrained()),
        generator.reconstruct(x, of_rows),
    )
    drawn = generator.sample_raw(conditions.repeat_interleave(samples, 0), random)
    if trained is None and decoded is None and drawn is None:
        return None
    gaussian = a_dimension(moments.log_density(x.flatten(1), labels, SHRINKAGE, noise))
    every = torch.arange(len(conditions), device=labels.device).repeat_interleave(samples)
    return NetworkFigures(
        None if trained is None else float(trained.mean()),
        float(gaussian.mean()),
        None if trained is None or len(x) < 2 else _interval(trained - gaussian),
        None if start is None else float(start.mean()),
        None if decoded is None else error(decoded),
        error(moments.mean[labels]),
        None if drawn is None else assess(seen, held_out, Rows(drawn, every), **limits),
    )


def _interval(differences: Tensor) -> Interval:
    """95 % interval of the mean of (M,) differences."""
    middle, half = float(differences.mean()), QUANTILE * float(differences.std()) / math.sqrt(len(differences))
    return middle - half, middle + half
