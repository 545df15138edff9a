"""A variational autoencoder of audio embeddings, conditioned on the class's CLIP embedding."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fed_a2v.core.generators.base import SAME_CLASS_COSINE, EpochLosses, Generator, as_rows, at_least_one
from fed_a2v.core.generators.buffers import take_shapes
from fed_a2v.core.generators.calibration import Calibration
from fed_a2v.core.generators.class_prior import ClassPrior
from fed_a2v.core.generators.moments import ClassMoments
from fed_a2v.core.losses import VAELoss, VAELossParts, loss_value
from fed_a2v.core.optimisers import AdamW
from fed_a2v.core.prompts import PrototypeRows


class ConditionedVAEGenerator(Generator):
    """Conditional VAE (Kingma & Welling 2014; Sohn et al. 2015) over standardised audio embeddings.

    Inputs are standardised inside, with statistics that are taken at the first `fit` and kept with the weights.
    It trains on prototypes whose distance to their class's mean is stretched to that of single clips. Classes
    it has seen are sampled through `ClassPrior`; a new condition is decoded from N(0, I).

    Args:
        input_dim: Da, default 512.
        visual_dim: V, default 768.
        hidden_dim: width of both hidden layers of encoder and decoder, default 1024.
        latent_dim: L, default 256.
        sequence_length: S, default 1.
        conditional: whether encoder and decoder see the condition, default true; without it the condition only
            finds the class whose prior is sampled.
        condition_dim: width to which the condition is mapped, default 64.
        ema: decay of the running average of the weights that are used for sampling, e.g. 0.99; default 0: the
            weights themselves.
        loss: called with (recon_x, x, mu, logvar, epoch); returns `VAELossParts`, whose terms add up, or a scalar.
            Default: the negative ELBO with KL annealed from 0 (`VAELoss`).
        learning_rate: of AdamW, default 1e-3.
        weight_decay: of AdamW, default 1e-4.
        batch_size: rows of all classes together, default 256.
    """

    kind: ClassVar[str] = "vae"
    input_mean: Tensor
    input_std: Tensor
    condition_mean: Tensor
    conditions: Tensor

    def __init__(
        self,
        input_dim: int = 512,
        visual_dim: int = 768,
        hidden_dim: int = 1024,
        latent_dim: int = 256,
        sequence_length: int = 1,
        *,
        conditional: bool = True,
        condition_dim: int = 64,
        ema: float = 0.0,
        loss: nn.Module | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        batch_size: int = 256,
    ) -> None:
        super().__init__(input_dim, visual_dim, sequence_length)
        at_least_one(hidden_dim=hidden_dim, latent_dim=latent_dim, batch_size=batch_size)
        self.hidden_dim = hidden_dim
        self.latent_dim = latent_dim
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.loss = loss if loss is not None else VAELoss(beta_schedule="linear")
        if not 0 <= ema < 1:
            raise ValueError(f"ema={ema}: must lie in [0, 1)")
        width = input_dim * sequence_length
        extra = condition_dim if conditional else 0
        self.condition_map = nn.Linear(visual_dim, condition_dim) if conditional else None
        self.encoder = _network(width + extra, hidden_dim, 2 * latent_dim)
        self.decoder = _network(latent_dim + extra, hidden_dim, width)
        self.averaged = _Averaged(self._networks(), ema) if ema else None
        self.register_buffer("input_mean", torch.zeros(width))
        self.register_buffer("input_std", torch.ones(width))
        self.register_buffer("condition_mean", torch.zeros(visual_dim))
        self.register_buffer("conditions", torch.empty(0, visual_dim))
        self.moments = ClassMoments()
        self.prior = ClassPrior()
        self.calibration = Calibration()
        self.epoch = 0
        self._optimiser: AdamW | None = None

    @property
    def dimensions(self) -> dict[str, int]:
        """See `Generator.dimensions`."""
        return super().dimensions | {"hidden_dim": self.hidden_dim, "latent_dim": self.latent_dim}

    def forward(self, x: Tensor, visual_condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct audio embeddings.

        Args:
            x: (B, S, Da), or (B, Da) where S is 1.
            visual_condition: (B, V), a condition per row; (V,) or (1, V) for one class.

        Returns:
            The reconstruction in x's shape, and the posterior's mean and log variance, (B, L) each. In
            training mode the latent is drawn from the posterior, else it is its mean.
        """
        condition = self._condition(as_rows(visual_condition, len(x), len(self.condition_mean)))
        mu, logvar = self._encode(self.standardise(x.flatten(1)), condition)
        latent = mu + torch.randn_like(mu) * (0.5 * logvar).exp() if self.training else mu
        return self._restore(self._decode(latent, condition)).view_as(x), mu, logvar

    def fit(
        self, rows: PrototypeRows, conditions: Tensor, epochs: int, noise: float, random: torch.Generator
    ) -> list[EpochLosses]:
        """See `Generator.fit`."""
        x, labels = self.training_rows(rows, conditions, random)
        losses = self._train(x, labels, rows.names, epochs, noise, random)
        self.fit_prior(x, labels, random)
        return losses

    def steps_per_epoch(self, rows: PrototypeRows) -> float:
        """See `Generator.steps_per_epoch`."""
        return self.moments.batches(rows, self.batch_size)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        visual_condition: Tensor,
        device: torch.device | str | None = None,
        random: torch.Generator | None = None,
    ) -> Tensor:
        """See `Generator.sample`."""
        random = random or torch.default_generator
        conditions = as_rows(visual_condition.to(self.input_mean), num_samples, len(self.condition_mean))
        labels = self._labels(conditions)
        known = labels >= 0
        rows = torch.empty(num_samples, len(self.input_mean), device=self.input_mean.device)
        if known.any():
            drawn = self.prior.draw(self._decode_class, labels[known], random)
            rows[known] = self.calibration.apply_to(self._restore(drawn), labels[known], self.moments)
        if not known.all():
            rows[~known] = self._restore(self._draw_unknown(conditions[~known], random))
        return self.moments.cut(rows).view(-1, self.sequence_length, self.input_dim).to(device or rows.device)

    @torch.no_grad()
    def posterior(self, x: Tensor, visual_condition: Tensor) -> tuple[Tensor, Tensor]:
        """See `Generator.posterior`."""
        condition = self._condition(as_rows(visual_condition, len(x), len(self.condition_mean)))
        return self._encode(self.standardise(x.flatten(1)), condition)

    def training_state(self) -> dict[str, Any]:
        """See `Generator.training_state`."""
        optimiser = None if self._optimiser is None else self._optimiser.state_dict()
        return {"epoch": self.epoch, "optimiser": optimiser}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """See `Generator.load_training_state`."""
        self.epoch = state["epoch"]
        self._optimiser = None
        if state["optimiser"] is not None:
            self.get_optimiser().load_state_dict(state["optimiser"])

    # Training

    def training_rows(self, rows: PrototypeRows, conditions: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Take in the classes; (M, D) standardised training rows and their (M,) labels."""
        self.moments.fit(rows)
        self.conditions = conditions.clone()
        x, labels = self.moments.training_rows(rows, random)
        if self.epoch == 0:
            self._set_standardisation(x, conditions)
        return self.standardise(x), labels

    def _set_standardisation(self, x: Tensor, conditions: Tensor) -> None:
        """Taken once: a later change would pull the ground from under the trained weights."""
        std = x.std(dim=0, correction=0)
        # A column that is active in a few rows only must not be blown up; a dead one stays finite.
        floor = (0.3 * std.square().mean().sqrt()).clamp(min=1e-6)
        self.input_mean.copy_(x.mean(dim=0))
        self.input_std.copy_(torch.maximum(std, floor))
        if len(conditions) > 1:
            self.condition_mean.copy_(conditions.mean(dim=0))

    def _train(
        self,
        x: Tensor,
        labels: Tensor,
        names: tuple[str, ...],
        epochs: int,
        noise: float,
        random: torch.Generator,
    ) -> list[EpochLosses]:
        self.train()
        optimiser = self.get_optimiser()
        directions = self.directions(self.conditions)[labels]
        history = []
        for _ in range(epochs):
            record = EpochRecord(names, x.device)
            order = torch.randperm(len(x), generator=random, device=random.device).to(x.device)
            for batch in order.split(self.batch_size):
                clean = x[batch]
                noisy = clean + noise * _normal_like(clean, random) if noise > 0 else clean
                latent_noise = _normal((len(clean), self.latent_dim), clean, random)
                loss = self.batch_loss(clean, noisy, self._hide(directions[batch], random), latent_noise)
                optimiser.zero_grad(set_to_none=True)
                loss_value(loss).backward()
                optimiser.step()
                if self.averaged is not None:
                    self.averaged.update(self._networks())
                record.add(loss, labels[batch])
            history.append(record)
            self.epoch += 1
        self.eval()
        return [record.losses() for record in history]

    def _hide(self, directions: Tensor, random: torch.Generator) -> Tensor:
        """What a training batch sees of its (B, V) directions: all, unless a subclass leaves something out."""
        del random
        return directions

    def batch_loss(
        self, clean: Tensor, noisy: Tensor, directions: Tensor, latent_noise: Tensor
    ) -> Tensor | VAELossParts:
        """The loss of (B, D) rows under (B, V) `directions`, with (B, L) standard normal `latent_noise`."""
        condition = self._map(directions)
        mu, logvar = self._encode(noisy, condition)
        latent = mu + latent_noise * (0.5 * logvar).exp()
        loss: Tensor | VAELossParts = self.loss(self._decode(latent, condition), clean, mu, logvar, self.epoch)
        return loss

    @torch.no_grad()
    def fit_prior(self, x: Tensor, labels: Tensor, random: torch.Generator) -> None:
        """Fit the prior, and the calibration of what is drawn from it, to (M, D) standardised rows."""
        condition = self._condition(self.conditions)[labels]
        mu, logvar = self._encode(x, condition)
        self.prior.fit(mu, logvar, x - self._decode(mu, condition), labels, len(self.conditions))
        labels = self.calibration.labels(len(self.conditions), x.device)
        self.calibration.fit(self.prior.draw(self._decode_class, labels, random), self.input_mean, self.input_std)

    def get_optimiser(self) -> AdamW:
        """The optimiser, which keeps its state over the rounds."""
        if self._optimiser is None:
            trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
            self._optimiser = AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)
        return self._optimiser

    # The networks

    def directions(self, conditions: Tensor) -> Tensor:
        """Centred conditions of unit variance: text vectors crowd together, and their length says nothing."""
        return F.normalize(conditions - self.condition_mean, dim=-1) * math.sqrt(self.visual_dim)

    def _condition(self, conditions: Tensor) -> Tensor:
        return self._map(self.directions(conditions))

    def _map(self, directions: Tensor) -> Tensor:
        """Directions as the networks see them: (B, condition_dim), or (B, 0) where they see none."""
        network = self._network("condition_map")
        if network is None:
            return directions[:, :0]
        mapped: Tensor = network(directions)
        return mapped

    def _networks(self) -> nn.ModuleDict:
        names = ("condition_map", "encoder", "decoder")
        return nn.ModuleDict({name: getattr(self, name) for name in names if getattr(self, name) is not None})

    def _network(self, name: str) -> nn.Module | None:
        """The network that trains or, after training, its running average where there is one."""
        owner = self if self.averaged is None or self.training else self.averaged.networks
        network: nn.Module | None = getattr(owner, name, None)
        return network

    def _encode(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        encoder = self._network("encoder")
        assert encoder is not None
        mu, logvar = encoder(torch.cat([x, condition], dim=1)).chunk(2, dim=1)
        return mu, logvar.clamp(-8, 4)

    def _decode(self, latent: Tensor, condition: Tensor) -> Tensor:
        decoder = self._network("decoder")
        assert decoder is not None
        out: Tensor = decoder(torch.cat([latent, condition], dim=1))
        return out

    def _decode_class(self, latent: Tensor, labels: Tensor) -> Tensor:
        return self._decode(latent, self._condition(self.conditions)[labels])

    def _draw_unknown(self, conditions: Tensor, random: torch.Generator) -> Tensor:
        latent = torch.randn(len(conditions), self.latent_dim, generator=random, device=random.device)
        rows = self._decode(latent.to(conditions), self._condition(conditions))
        if len(self.conditions):
            rows = rows + self.prior.pooled_residuals(len(rows), random)
        return rows

    def _labels(self, conditions: Tensor) -> Tensor:
        """The known class of each (B, V) condition, or -1."""
        if not len(self.conditions):
            return torch.full((len(conditions),), -1, device=conditions.device)
        distinct, inverse = conditions.unique(dim=0, return_inverse=True)
        wanted, known = (F.normalize(c - self.condition_mean, dim=-1) for c in (distinct, self.conditions))
        cosine, label = (wanted @ known.T).max(dim=1)
        if len(self.conditions) == 1 and not self.condition_mean.any():
            cosine = F.cosine_similarity(distinct, self.conditions)
        return torch.where(cosine >= SAME_CLASS_COSINE, label, -1)[inverse]

    def standardise(self, x: Tensor) -> Tensor:
        """(M, D) rows as the networks see them."""
        return (x - self.input_mean) / self.input_std

    def _restore(self, x: Tensor) -> Tensor:
        return x * self.input_std + self.input_mean

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        # One row per known class: the number of classes is the checkpoint's.
        take_shapes(self, ["conditions"], state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _Averaged(nn.Module):
    """A running average of networks' weights (Polyak averaging)."""

    def __init__(self, networks: nn.ModuleDict, decay: float) -> None:
        super().__init__()
        self.networks = copy.deepcopy(networks).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, networks: nn.ModuleDict) -> None:
        """Move a step towards the weights of `networks`."""
        for average, parameter in zip(self.networks.parameters(), networks.parameters(), strict=True):
            average.lerp_(parameter, 1 - self.decay)


class EpochRecord:
    """Sums of the loss parts by class, kept on the device until training is over."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        self.total = torch.zeros((), device=device)
        self.number = 0
        self.sums = torch.zeros(len(names), 3, device=device)
        self.rows = torch.zeros(len(names), device=device)

    def add(self, loss: Tensor | VAELossParts, labels: Tensor) -> None:
        """The loss of B rows, or those of G generators with B rows each."""
        self.total += loss_value(loss).detach().sum() * labels.shape[-1]
        self.number += labels.numel()
        if isinstance(loss, VAELossParts):
            self.sums.index_add_(0, labels.flatten(), torch.stack([part.flatten() for part in loss[1:]], dim=1))
            self.rows.index_add_(0, labels.flatten(), torch.ones_like(loss.kl).flatten())

    def losses(self) -> EpochLosses:
        """The means of the epoch, over its rows."""
        total = self.total.item() / self.number
        if not self.rows.any():
            return EpochLosses(total, {}, {})
        parts = ("reconstruction", "kl", "similarity")
        overall = (self.sums.sum(dim=0) / self.rows.sum()).tolist()
        means = (self.sums / self.rows.clamp(min=1).unsqueeze(-1)).tolist()
        per_class = {name: dict(zip(parts, row, strict=True)) for name, row in zip(self.names, means, strict=True)}
        return EpochLosses(total, dict(zip(parts, overall, strict=True)), per_class)


def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, outputs)
    )


def _normal(shape: tuple[int, ...], like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=random, device=random.device, dtype=like.dtype).to(like.device)


def _normal_like(like: Tensor, random: torch.Generator) -> Tensor:
    return _normal(like.shape, like, random)
