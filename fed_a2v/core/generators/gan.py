"""A generative adversarial network of audio embeddings, conditioned on the class's CLIP embedding."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fed_a2v.core.generators.base import EpochLosses, at_least_one
from fed_a2v.core.generators.parts.reduced import CalibratedGenerator
from fed_a2v.core.optimisers import Adam
from fed_a2v.core.prototype_bank import PrototypeBatch

Adversarial = Literal["wgan-gp", "bce"]
# Deviation of an untrained generator's samples; rows of all classes together have about 1.
FIRST_SPREAD = 0.5
PARTS = ("generator", "class")
CRITIC_PARTS = ("critic", "gradient_penalty")


class GANGenerator(CalibratedGenerator):
    """Conditional GAN in the main directions of the standardised embeddings; generator and critic see the class.

    `wgan-gp` is the Wasserstein GAN with gradient penalty (Gulrajani et al. 2017): the critic's loss is
    `E[f(fake)] - E[f(real)] + w E[(|grad f| - 1)^2]`, the gradient taken between real and fake rows of the same
    class. `bce` is the non-saturating GAN (Goodfellow et al. 2014). While the critic does not yet force the class, a
    cross-entropy of the samples' nearest class mean does (as auxiliary classifiers do, Odena et al. 2017).

    Args:
        input_dim: Da.
        visual_dim: V, default 768.
        sequence_length: S, default 1.
        loss: `wgan-gp` or `bce`.
        noise_dim: width of the generator's noise; default: that of the condition.
        hidden_dim: width of both hidden layers of generator and critic.
        condition_dim: width to which either net maps the condition.
        reduced_dim: main directions that are learned.
        whiten: give every main direction unit variance.
        critic_steps: critic's steps for one of the generator; default: 5 for `wgan-gp`, 1 for `bce`.
        gradient_penalty: its weight, for `wgan-gp`.
        class_weight: weight of the cross-entropy of the nearest class mean; 0 leaves the class to the critic.
        learning_rate: of both Adam optimisers.
        batch_size: rows of all classes together.
        calibrate: move the samples of known classes to their moments.
    """

    kind: ClassVar[str] = "gan"

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
        super().__init__(input_dim, visual_dim, sequence_length, reduced_dim, whiten, calibrate)
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
        self.batch_size = batch_size
        width = self.reduced_dim
        self.generator = _WithSpread(self.noise_dim, visual_dim, condition_dim, hidden_dim, width)
        self.critic = _Conditioned(width, visual_dim, condition_dim, hidden_dim, 1)
        self.batches = 0
        self._optimisers: tuple[Adam, Adam] | None = None

    @property
    def dimensions(self) -> dict[str, int]:
        """See `Generator.dimensions`."""
        return super().dimensions | {
            "noise_dim": self.noise_dim,
            "hidden_dim": self.hidden_dim,
            "reduced_dim": self.reduced_dim,
        }

    def training_state(self) -> dict[str, Any]:
        """See `Generator.training_state`: both optimisers."""
        states: dict[str, Any] = {"generator_optimiser": None, "critic_optimiser": None}
        if self._optimisers is not None:
            generator, critic = self._optimisers
            states = {"generator_optimiser": generator.state_dict(), "critic_optimiser": critic.state_dict()}
        return {"epoch": self.epoch, "batches": self.batches, **states}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `Generator.load_training_state`."""
        self.epoch, self.batches = state["epoch"], state["batches"]
        self._optimisers = None
        if state["critic_optimiser"] is not None:
            generator, critic = self._get_optimisers()
            generator.load_state_dict(state["generator_optimiser"])
            critic.load_state_dict(state["critic_optimiser"])

    def steps_per_epoch(self, rows: PrototypeBatch) -> float:
        """See `Generator.steps_per_epoch`; the critic's steps do not count."""
        return self.moments.batches(rows, self.batch_size) / self.critic_steps

    def _train(
        self,
        z: Tensor,
        labels: Tensor,
        names: tuple[str, ...],
        epochs: int,
        noise: float,
        random: torch.Generator,
    ) -> list[EpochLosses]:
        directions = self.directions(self.conditions)[labels]
        nearest = _NearestMean(z, labels, len(names))
        history = []
        for _ in range(epochs):
            record: dict[str, list[Tensor]] = {part: [] for part in PARTS + CRITIC_PARTS}
            order = torch.randperm(len(z), generator=random, device=random.device).to(z.device)
            for batch in order.split(self.batch_size):
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
        real, fake = (x + noise * _normal(x.shape, x, random) for x in (real, fake))
        scores = self.critic(torch.cat([real, fake]), directions.repeat(2, 1))
        on_real, on_fake = scores.chunk(2)
        if self.loss == "bce":
            losses = {"critic": F.softplus(-on_real).mean() + F.softplus(on_fake).mean()}
        else:
            penalty = self.gradient_penalty * self._steepness(real, fake, directions, random)
            losses = {"critic": on_fake.mean() - on_real.mean(), "gradient_penalty": penalty}
        _step(self._get_optimisers()[1], torch.stack(list(losses.values())).sum())
        return losses

    def _steepness(self, real: Tensor, fake: Tensor, directions: Tensor, random: torch.Generator) -> Tensor:
        share = torch.rand(len(real), 1, generator=random, device=random.device).to(real)
        between = (share * real + (1 - share) * fake).requires_grad_()
        (gradient,) = torch.autograd.grad(self.critic(between, directions).sum(), between, create_graph=True)
        steepness: Tensor = (gradient.norm(dim=1) - 1).square().mean()
        return steepness

    def _generator_step(
        self, directions: Tensor, labels: Tensor, nearest: _NearestMean, noise: float, random: torch.Generator
    ) -> dict[str, Tensor]:
        fake = self._generate(directions, random)
        score = self.critic(fake + noise * _normal(fake.shape, fake, random), directions)
        losses = {"generator": F.softplus(-score).mean() if self.loss == "bce" else -score.mean()}
        if self.class_weight > 0:
            losses["class"] = self.class_weight * nearest.cross_entropy(fake, labels)
        _step(self._get_optimisers()[0], torch.stack(list(losses.values())).sum())
        return losses

    def _generate(self, directions: Tensor, random: torch.Generator) -> Tensor:
        out: Tensor = self.generator(_normal((len(directions), self.noise_dim), directions, random), directions)
        return out

    def _draw(self, directions: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        del labels
        return self._generate(directions, random)

    def _get_optimisers(self) -> tuple[Adam, Adam]:
        """The generator's and the critic's."""
        if self._optimisers is None:
            generator, critic = (
                Adam(net.parameters(), lr=self.learning_rate, betas=(0.5, 0.9), fused=True)
                for net in (self.generator, self.critic)
            )
            self._optimisers = generator, critic
        return self._optimisers


class _Conditioned(nn.Module):
    """A perceptron that maps (B, inputs) under (B, V) conditions to (B, outputs)."""

    def __init__(self, inputs: int, visual_dim: int, condition_dim: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.condition = nn.Linear(visual_dim, condition_dim)
        self.layers = nn.Sequential(
            nn.Linear(inputs + condition_dim, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, outputs),
        )

    def forward(self, x: Tensor, directions: Tensor) -> Tensor:
        """(B, outputs)."""
        out: Tensor = self.layers(torch.cat([x, self.condition(directions)], dim=1))
        return out


class _WithSpread(_Conditioned):
    """The same, and a straight path for the noise: one that has seen few batches has no spread otherwise."""

    def __init__(self, inputs: int, visual_dim: int, condition_dim: int, hidden: int, outputs: int) -> None:
        super().__init__(inputs, visual_dim, condition_dim, hidden, outputs)
        self.straight = nn.Linear(inputs, outputs, bias=False)
        nn.init.normal_(self.straight.weight, std=FIRST_SPREAD / math.sqrt(inputs))

    def forward(self, x: Tensor, directions: Tensor) -> Tensor:
        """(B, outputs)."""
        out: Tensor = super().forward(x, directions) + self.straight(x)
        return out


class _NearestMean:
    """A classifier that knows the class means only: rows lie around them with one variance."""

    def __init__(self, z: Tensor, labels: Tensor, classes: int) -> None:
        counts = torch.bincount(labels, minlength=classes).clamp(min=1)
        self.means = z.new_zeros(classes, z.shape[1]).index_add_(0, labels, z) / counts.unsqueeze(1)
        self.variance = (z - self.means[labels]).square().mean().clamp(min=1e-6)

    def cross_entropy(self, z: Tensor, labels: Tensor) -> Tensor:
        logits = -0.5 * torch.cdist(z, self.means).square() / self.variance
        return F.cross_entropy(logits, labels)


def _step(optimiser: Adam, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


def _losses(history: list[dict[str, list[Tensor]]]) -> list[EpochLosses]:
    """Each epoch's losses of both nets.

    Where an epoch has no step of the generator, its last loss stands; before the first, that of the first; where there
    is none at all, NaN.
    """
    means = [
        {name: torch.stack(values).mean().item() for name, values in record.items() if values} for record in history
    ]
    found = next((mean for mean in means if PARTS[0] in mean), {PARTS[0]: math.nan})
    losses: list[EpochLosses] = []
    for mean in means:
        found = found | mean
        parts, critic = ({name: found[name] for name in names if name in found} for names in (PARTS, CRITIC_PARTS))
        losses.append(EpochLosses(sum(parts.values()), parts, {}, critic))
    return losses


def _normal(shape: tuple[int, ...], like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=random, device=random.device, dtype=like.dtype).to(like.device)
