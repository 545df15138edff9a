"""What the network of a generator has learned, apart from all that is put around it.

Moments, residuals and calibration alone make samples that pass every gate, whatever the network does. So the network is
asked by itself: how likely it finds rows that were held out of training, how well it gives them back, and what it draws
on its own. Each figure stands beside what needs no network.

Likelihoods are in nats a dimension; `fed_a2v.core.likelihood` says in which coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fed_a2v.core.generators.base import Generator
from fed_a2v.core.generators.moments import SHRINKAGE, ClassMoments
from fed_a2v.core.likelihood import NOISE, column_scale
from fed_a2v.core.prompts import PrototypeRows
from fed_a2v.core.quality import GeneratorQuality, Interval, Rows, assess

# What the raw samples' figures are called, of all that `assess` finds.
RAW = ("tstr", "c2st", "nn_ratio", "variance_ratio")


@dataclass(frozen=True)
class NetworkFigures:
    """What is known of a network; None where the generator has nothing of the kind.

    Attributes:
        bound: mean over held-out rows of the log-likelihood, an importance-weighted bound with 64 draws.
        gaussian: the same rows' under Gaussians in closed form, with the classes' means and shrunken covariances.
        gain: 95 % interval of the mean difference of the two, which is paired by rows.
        untrained: the bound of the closed form that the network started from.
        reconstruction: mean squared error of held-out rows, encoded and decoded, standardised.
        class_mean: the same of the class's mean.
        raw: gates of what the network draws alone.
    """

    bound: float | None
    gaussian: float
    gain: Interval | None
    untrained: float | None
    reconstruction: float | None
    class_mean: float
    raw: GeneratorQuality | None

    def as_dict(self) -> dict[str, float]:
        """All figures by name, what stands beside one with its name in front; those without a value are left out."""
        named: dict[str, float | None] = {}
        if self.bound is not None and self.gain is not None:
            named = {"bound": self.bound, "bound_gaussian": self.gaussian, "bound_untrained": self.untrained}
            named |= {"gain": self.bound - self.gaussian, "gain_low": self.gain[0], "gain_high": self.gain[1]}
        if self.reconstruction is not None:
            named |= {"reconstruction": self.reconstruction, "reconstruction_class_mean": self.class_mean}
        if self.raw is not None:
            found = self.raw.as_dict()
            named |= {f"raw_{name}": found.get(name) for name in (*RAW, *(f"{name}_real" for name in RAW))}
        return {name: value for name, value in named.items() if value is not None}

    def lines(self) -> list[str]:
        """The same in words."""
        found, lines = self.as_dict(), []
        if "bound" in found:
            start = f", untrained {self.untrained:.3f}" if self.untrained is not None else ""
            lines.append(
                f"Held-out likelihood: {self.bound:.3f} nats a dimension (Gaussian {self.gaussian:.3f}{start}), "
                f"gain over the Gaussian {found['gain']:+.3f} [{found['gain_low']:+.3f}, {found['gain_high']:+.3f}]"
            )
        if self.reconstruction is not None:
            lines.append(f"Held-out reconstruction error: {self.reconstruction:.3f} (class mean {self.class_mean:.3f})")
        raw = [f"{name} {found[f'raw_{name}']:.3f}" for name in RAW if f"raw_{name}" in found]
        return lines + ([f"Drawn by the network alone: {', '.join(raw)}"] if raw else [])

    def warnings(self) -> list[str]:
        """Whether the network is surely of no use."""
        if self.bound is None or self.gain is None or self.gain[1] >= 0:
            return []
        return [
            f"The network describes held-out rows worse than a Gaussian of each class does ({self.bound:.3f} against "
            f"{self.gaussian:.3f} nats a dimension): samples owe what they are to the classes' moments. Take "
            "generator.closed_form=true with generator.loss.variance=decoder, or generator=gaussian."
        ]


@torch.no_grad()
def examine(
    generator: Generator,
    moments: ClassMoments,
    seen: Rows,
    held_out: Rows,
    conditions: Tensor,
    samples: int,
    random: torch.Generator,
    **limits: int,
) -> NetworkFigures:
    """Ask a generator's network by itself.

    Args:
        generator: after its training.
        moments: of the rows that it was trained on.
        seen: N rows that it was trained on, as far from their class's mean as clips are.
        held_out: M others.
        conditions: (C, V) of the classes.
        samples: of each class, for the gates.
        random: source of all draws.
        limits: `seeds` and `max_rows` of `assess`.
    """
    _, scale = column_scale(seen.embeddings.flatten(1))
    x, labels = held_out.embeddings, held_out.labels
    noise, of_rows, width = NOISE * scale, conditions[labels], len(scale)

    def a_dimension(nats: Tensor) -> Tensor:
        return nats.double() / width + scale.double().log().mean()

    def error(rows: Tensor) -> float:
        return float(((rows.flatten(1) - x.flatten(1)) / scale).square().mean())

    gaussian = a_dimension(moments.log_density(x.flatten(1), labels, SHRINKAGE, noise))
    bound, start = generator.log_likelihood(x, of_rows, noise, random), generator.untrained()
    gain = None
    if bound is not None:
        difference = a_dimension(bound) - gaussian
        half = 1.96 * float(difference.std(correction=0)) / math.sqrt(max(1, len(difference) - 1))
        gain = float(difference.mean()) - half, float(difference.mean()) + half
    untrained = None if start is None else start.log_likelihood(x, of_rows, noise, random)
    decoded = generator.reconstruct(x, of_rows)
    drawn = generator.sample_raw(conditions.repeat_interleave(samples, 0), random)
    every = torch.arange(len(conditions), device=labels.device).repeat_interleave(samples)
    return NetworkFigures(
        None if bound is None else float(a_dimension(bound).mean()),
        float(gaussian.mean()),
        gain,
        None if untrained is None else float(a_dimension(untrained).mean()),
        None if decoded is None else error(decoded),
        error(moments.mean[labels]),
        None if drawn is None else assess(seen, held_out, Rows(drawn, every), **limits),
    )
