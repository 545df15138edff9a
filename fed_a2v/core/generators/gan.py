"""A generative adversarial network of audio embeddings, conditioned on the class's CLIP embedding."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fed_a2v.core.generators.base import EpochLosses, at_least_one
from fed_a2v.core.generators.parts.class_conditional import TrainingData
from fed_a2v.core.generators.parts.draws import normal, normal_like, uniform
from fed_a2v.core.generators.parts.networks import perceptron
from fed_a2v.core.generators.parts.reduced import ReducedGenerator
from fed_a2v.core.optimisers import Adam
from fed_a2v.core.statistics import PrototypeBatch

Adversarial = Literal["wgan-gp", "bce"]
# Deviation of an untrained generator's samples; the rows of all classes together have a deviation of about 1.
FIRST_SPREAD = 0.5
PARTS = ("generator", "class")
CRITIC_PARTS = ("critic", "gradient_penalty")


class GANGenerator(ReducedGenerator):
    """Conditional GAN in the main directions of the standardised embeddings; generator and critic get the condition.

    `wgan-gp` is the Wasserstein GAN with gradient penalty (Gulrajani et al. 2017): the critic's loss is
    `E[f(fake)] - E[f(real)] + w E[(|grad f| - 1)^2]`, the gradient taken between real and fake rows of the same
    class. `bce` is the non-saturating GAN (Goodfellow et al. 2014). A cross-entropy of the samples'
    nearest class mean enforces the class until the critic does (as auxiliary classifiers do, Odena et al. 2017).

    Args:
        input_dim: Da.
        visual_dim: V, default 768.
        sequence_length: S, default 1.
        loss: adversarial loss, `wgan-gp` or `bce`.
        noise_dim: width of the generator's noise; default: V.
        hidden_dim: width of both hidden layers of generator and critic.
        condition_dim: width to which each network maps the condition.
        reduced_dim: main directions that are learned.
        whiten: give every main direction unit variance.
        critic_steps: steps of the critic for each step of the generator; default: 5 for `wgan-gp`, 1 for `bce`.
        gradient_penalty: weight of the gradient penalty of `wgan-gp`.
        class_weight: weight of the cross-entropy of the nearest class mean; 0 leaves the class to the critic.
        learning_rate: learning rate of both Adam optimisers.
        batch_size: rows per optimiser step, of all classes together.
        calibrate: move the samples of known classes to their moments.
    """

    kind: ClassVar[str] = "gan"
    counters: ClassVar[tuple[str, ...]] = ("epoch", "batches")
    optimiser_names: ClassVar[tuple[str, ...]] = ("generator_optimiser", "critic_optimiser")

    def __init__(
        self,
        input_dim: int = 512,
        visual_dim: int = 768,
        sequence_length: int = 1,
        *,
        loss: Adversarial = "wgan-gp",
        noise_dim: int | None = None,
        hidden_dim: int = 256,
        condition_dim: int = 64,
        reduced_dim: int = 128,
        whiten: bool = True,
        critic_steps: int | None = None,
        gradient_penalty: float = 10.0,
        class_weight: float = 0.1,
        learning_rate: float = 5e-4,
        batch_size: int = 64,
        calibrate: bool = True,
    ) -> None:
        super().__init__(input_dim, visual_dim, sequence_length, reduced_dim, whiten, calibrate, batch_size)
        if loss not in get_args(Adversarial):
            raise ValueError(f"loss={loss!r}: choose {' or '.join(get_args(Adversarial))}")
        self.critic_steps = critic_steps or (5 if loss == "wgan-gp" else 1)
        self.noise_dim = noise_dim or visual_dim
        at_least_one(
            noise_dim=self.noise_dim, hidden_dim=hidden_dim, critic_steps=self.critic_steps, batch_size=batch_size
        )
        if gradient_penalty < 0 or class_weight < 0:
            raise ValueError(
                f"gradient_penalty={gradient_penalty} and class_weight={class_weight} must not be negative"
            )
        self.loss: Adversarial = loss
        self.hidden_dim = hidden_dim
        self.gradient_penalty = gradient_penalty
        self.class_weight = class_weight
        self.learning_rate = learning_rate
        width = self.reduced_dim
        self.generator = _WithSpread(self.noise_dim, visual_dim, condition_dim, hidden_dim, width)
        self.critic = _Conditioned(width, visual_dim, condition_dim, hidden_dim, 1)
        self.batches = 0

    @property
    def dimensions(self) -> dict[str, int]:
        """See `Generator.dimensions`."""
        return super().dimensions | {
            "noise_dim": self.noise_dim,
            "hidden_dim": self.hidden_dim,
            "reduced_dim": self.reduced_dim,
        }

    def steps_per_epoch(self, rows: PrototypeBatch) -> float:
        """See `Generator.steps_per_epoch`; the critic's steps do not count."""
        return super().steps_per_epoch(rows) / self.critic_steps

    def _train_reduced(self, data: TrainingData) -> list[EpochLosses]:
        z, labels, noise, random = data.x, data.labels, data.noise, data.random
        directions = self.directions(self.conditions)[labels]
        nearest = _NearestMean(z, labels, len(data.names))
        history = []
        for batches in self._shuffled(data):
            record: dict[str, list[Tensor]] = {part: [] for part in PARTS + CRITIC_PARTS}
            for batch in batches:
                losses = self._critic_step(z[batch], directions[batch], noise, random)
                self.batches += 1
                if self.batches % self.critic_steps == 0:
                    losses |= self._generator_step(directions[batch], labels[batch], nearest, noise, random)
                for name, value in losses.items():
                    record[name].append(value.detach())
            history.append(record)
        return _losses(history)

    def _critic_step(
        self, real: Tensor, directions: Tensor, noise: float, random: torch.Generator
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            fake = self._generate(directions, random)
        # Noise on both sides lets the two distributions overlap (Arjovsky & Bottou 2017).
        real, fake = (x + noise * normal_like(x, random) for x in (real, fake))
        scores = self.critic(torch.cat([real, fake]), directions.repeat(2, 1))
        on_real, on_fake = scores.chunk(2)
        if self.loss == "bce":
            losses = {"critic": F.softplus(-on_real).mean() + F.softplus(on_fake).mean()}
        else:
            penalty = self.gradient_penalty * self._steepness(real, fake, directions, random)
            losses = {"critic": on_fake.mean() - on_real.mean(), "gradient_penalty": penalty}
        self._step("critic_optimiser", losses)
        return losses

    def _steepness(self, real: Tensor, fake: Tensor, directions: Tensor, random: torch.Generator) -> Tensor:
        share = uniform((len(real), 1), real, random)
        between = (share * real + (1 - share) * fake).requires_grad_()
        (gradient,) = torch.autograd.grad(self.critic(between, directions).sum(), between, create_graph=True)
        steepness: Tensor = (gradient.norm(dim=1) - 1).square().mean()
        return steepness

    def _generator_step(
        self, directions: Tensor, labels: Tensor, nearest: _NearestMean, noise: float, random: torch.Generator
    ) -> dict[str, Tensor]:
        fake = self._generate(directions, random)
        score = self.critic(fake + noise * normal_like(fake, random), directions)
        losses = {"generator": F.softplus(-score).mean() if self.loss == "bce" else -score.mean()}
        if self.class_weight > 0:
            losses["class"] = self.class_weight * nearest.cross_entropy(fake, labels)
        self._step("generator_optimiser", losses)
        return losses

    def _generate(self, directions: Tensor, random: torch.Generator) -> Tensor:
        out: Tensor = self.generator(normal((len(directions), self.noise_dim), directions, random), directions)
        return out

    def _draw_reduced(self, directions: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        del labels
        return self._generate(directions, random)

    def _step(self, optimiser_name: str, losses: dict[str, Tensor]) -> None:
        optimiser = self.get_optimiser(optimiser_name)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()

    def _new_optimisers(self) -> dict[str, Adam]:
        networks = zip(self.optimiser_names, (self.generator, self.critic), strict=True)
        return {
            name: Adam(network.parameters(), lr=self.learning_rate, betas=(0.5, 0.9), fused=True)
            for name, network in networks
        }


class _Conditioned(nn.Module):
    """A perceptron that maps (B, inputs) under (B, V) conditions to (B, outputs)."""

    def __init__(self, inputs: int, visual_dim: int, condition_dim: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.condition = nn.Linear(visual_dim, condition_dim)
        self.layers = perceptron(inputs + condition_dim, hidden, hidden, outputs, activation=nn.LeakyReLU(0.2))

    def forward(self, x: Tensor, directions: Tensor) -> Tensor:
        """(B, outputs)."""
        out: Tensor = self.layers(torch.cat([x, self.condition(directions)], dim=1))
        return out


class _WithSpread(_Conditioned):
    """The same with a linear path for the noise: without it, samples have no spread after few batches."""

    def __init__(self, inputs: int, visual_dim: int, condition_dim: int, hidden: int, outputs: int) -> None:
        super().__init__(inputs, visual_dim, condition_dim, hidden, outputs)
        self.straight = nn.Linear(inputs, outputs, bias=False)
        nn.init.normal_(self.straight.weight, std=FIRST_SPREAD / math.sqrt(inputs))

    def forward(self, x: Tensor, directions: Tensor) -> Tensor:
        """(B, outputs)."""
        out: Tensor = super().forward(x, directions) + self.straight(x)
        return out


class _NearestMean:
    """A classifier of normal classes that have their own means and one common variance."""

    def __init__(self, z: Tensor, labels: Tensor, classes: int) -> None:
        counts = torch.bincount(labels, minlength=classes).clamp(min=1)
        self.means = z.new_zeros(classes, z.shape[1]).index_add_(0, labels, z) / counts.unsqueeze(1)
        self.variance = (z - self.means[labels]).square().mean().clamp(min=1e-6)

    def cross_entropy(self, z: Tensor, labels: Tensor) -> Tensor:
        logits = -0.5 * torch.cdist(z, self.means).square() / self.variance
        return F.cross_entropy(logits, labels)


def _losses(history: list[dict[str, list[Tensor]]]) -> list[EpochLosses]:
    """The losses of both networks in each epoch.

    An epoch without a step of the generator has the generator's previous loss; before the first step, the loss of the
    first; without any step, NaN.
    """
    means = [
        {name: torch.stack(values).mean().item() for name, values in record.items() if values} for record in history
    ]
    latest = next((mean for mean in means if PARTS[0] in mean), {PARTS[0]: math.nan})
    losses: list[EpochLosses] = []
    for mean in means:
        latest = latest | mean
        parts, critic = ({name: latest[name] for name in names if name in latest} for names in (PARTS, CRITIC_PARTS))
        losses.append(EpochLosses(sum(parts.values()), parts, {}, critic))
    return losses
