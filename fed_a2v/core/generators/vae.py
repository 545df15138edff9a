"""A variational autoencoder of audio embeddings, conditioned on the class's CLIP embedding."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fed_a2v.core.generators.base import SAME_CLASS_COSINE, EpochLosses, Generator, as_rows, at_least_one
from fed_a2v.core.generators.parts.buffers import take_shapes
from fed_a2v.core.generators.parts.calibration import Calibration
from fed_a2v.core.generators.parts.class_prior import ClassPrior
from fed_a2v.core.generators.parts.factors import FactorModel, widened
from fed_a2v.core.generators.parts.moments import ClassMoments
from fed_a2v.core.likelihood import (
    DRAWS,
    NOISE,
    column_scale,
    importance_bound,
    normal_log_density,
    student_log_density,
)
from fed_a2v.core.losses import VAELoss, VAELossParts, loss_value
from fed_a2v.core.optimisers import AdamW
from fed_a2v.core.prototype_bank import PrototypeBatch

# Degrees of freedom of the closed-form decoder's noise: columns of embeddings have heavier tails than a Gaussian.
FREEDOM = 8


class TrainingRows(NamedTuple):
    """N rows to learn from, with all that is computed of them beforehand.

    Attributes:
        clean: (N, D) standardised rows, the target.
        seen: (N, D), what the encoder sees of them.
        directions: (N, V) of their conditions.
        start: (N, 2L) mean and log variance of the posterior that the encoder starts from; (N, 1) zeros if none.
        centre, scale: (N, D) of their classes, for the decoder; (N, 1) zeros and ones where there is no linear part.
    """

    clean: Tensor
    seen: Tensor
    directions: Tensor
    start: Tensor
    centre: Tensor
    scale: Tensor

    def take(self, index: Tensor) -> TrainingRows:
        """Some of the rows."""
        return TrainingRows(*(part[index] for part in self))


class ConditionedVAEGenerator(Generator):
    """Conditional VAE (Kingma & Welling 2014; Sohn et al. 2015) over standardised audio embeddings.

    Inputs are standardised inside, with statistics that are taken at the first `fit` and kept with the weights.
    It trains on prototypes whose distance to their class's mean is stretched to that of single clips. Classes
    it has seen are sampled through `ClassPrior`; a new condition is decoded from N(0, I).

    With `closed_form` it starts as the linear-Gaussian model that fits the first rows best (`FactorModel`). Its
    posterior is where the encoder starts, its mean is the decoder's, and what the networks learn comes on top: a
    correction of the posterior, and how wide the decoder's noise, which is Student's, is in each column of each row.

    Args:
        input_dim: Da, default 512.
        visual_dim: V, default 768.
        hidden_dim: width of both hidden layers of encoder and decoder, default 1024.
        latent_dim: L, default 256.
        sequence_length: S, default 1.
        conditional: whether encoder and decoder see the condition, default true; without it the condition only
            finds the class whose prior is sampled.
        condition_dim: width to which the condition is mapped, default 64.
        closed_form: start from the linear model, default false: from random weights.
        ema: decay of the running average of the weights that are used for sampling, e.g. 0.99; default 0: the
            weights themselves.
        loss: called with (recon_x, x, mu, logvar, epoch), and with `closed_form` also with the (B,) log_likelihood of
            the rows under the decoder; returns `VAELossParts`, whose terms add up, or a scalar. Default: the negative
            ELBO (`VAELoss`), with KL annealed from 0 where training starts from random weights.
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
        closed_form: bool = False,
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
        self.loss = loss if loss is not None else VAELoss("constant" if closed_form else "linear")
        if not 0 <= ema < 1:
            raise ValueError(f"ema={ema}: must lie in [0, 1)")
        width = input_dim * sequence_length
        extra = condition_dim if conditional else 0
        self.condition_map = nn.Linear(visual_dim, condition_dim) if conditional else None
        self.encoder = _network(width + extra, hidden_dim, 2 * latent_dim)
        self.decoder = _network(latent_dim + extra, hidden_dim, width)
        self.linear = FactorModel(width, latent_dim) if closed_form else None
        if closed_form:
            _silence(self.encoder, self.decoder)
        self.averaged = _Averaged(self._networks(), ema) if ema else None
        self.register_buffer("input_mean", torch.zeros(width))
        self.register_buffer("input_std", torch.ones(width))
        self.register_buffer("condition_mean", torch.zeros(visual_dim))
        self.register_buffer("conditions", torch.empty(0, visual_dim))
        self.moments = ClassMoments()
        self.prior = ClassPrior(normal=closed_form)
        self.calibration = Calibration()
        self.epoch = 0
        self._optimiser: AdamW | None = None

    @property
    def dimensions(self) -> dict[str, int]:
        """See `Generator.dimensions`."""
        sizes = super().dimensions | {"hidden_dim": self.hidden_dim, "latent_dim": self.latent_dim}
        return sizes if self.linear is None else sizes | {"closed_form": 1}

    def forward(self, x: Tensor, visual_condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct audio embeddings.

        Args:
            x: (B, S, Da), or (B, Da) where S is 1.
            visual_condition: (B, V), a condition per row; (V,) or (1, V) for one class.

        Returns:
            The reconstruction in x's shape, and the posterior's mean and log variance, (B, L) each. In
            training mode the latent is drawn from the posterior, else it is its mean.
        """
        training_rows = self._prepare(x, as_rows(visual_condition, len(x), len(self.condition_mean)))
        condition, mu, logvar = self._encode(training_rows)
        latent = mu + torch.randn_like(mu) * (0.5 * logvar).exp() if self.training else mu
        rows, _ = self._decode(latent, condition, training_rows.centre, training_rows.scale)
        return self._restore(rows).view_as(x), mu, logvar

    def fit(
        self, rows: PrototypeBatch, conditions: Tensor, epochs: int, noise: float, random: torch.Generator
    ) -> list[EpochLosses]:
        """See `Generator.fit`."""
        x, labels = self.training_rows(rows, conditions, random)
        losses = self._train(self.prepare(x, labels), labels, rows.names, epochs, noise, random)
        self.fit_prior(x, labels, random)
        return losses

    def steps_per_epoch(self, rows: PrototypeBatch) -> float:
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
        training_rows = self._prepare(x, as_rows(visual_condition, len(x), len(self.condition_mean)))
        _, mu, logvar = self._encode(training_rows)
        return mu, logvar

    @torch.no_grad()
    def reconstruct(self, x: Tensor, conditions: Tensor) -> Tensor:
        """See `Generator.reconstruct`: the decoder's mean at the posterior's mean."""
        training_rows = self._prepare(x, conditions)
        condition, latent, _ = self._encode(training_rows)
        return self._restore(self._decode(latent, condition, training_rows.centre, training_rows.scale)[0]).view_as(x)

    @torch.no_grad()
    def sample_raw(self, conditions: Tensor, random: torch.Generator) -> Tensor:
        """See `Generator.sample_raw`: the latent from N(0, I), and the decoder's noise."""
        centre, scale = self._frame(conditions, self._labels(conditions))
        latent = _normal((len(conditions), self.latent_dim), centre, random)
        rows, log_variance = self._decode(latent, self._condition(conditions), centre, scale)
        noise = (0.5 * log_variance).exp() * self._noise_like(rows, random)
        return self.moments.cut(self._restore(rows + noise)).view(-1, self.sequence_length, self.input_dim)

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, conditions: Tensor, noise: Tensor, random: torch.Generator) -> Tensor:
        """See `Generator.log_likelihood`: an importance-weighted bound (`importance_bound`)."""
        training_rows = self._prepare(x, conditions)
        condition, mu, logvar = self._encode(training_rows)
        log_noise = 2 * (noise / self.input_std).log()
        log_weights = []
        for _ in range(DRAWS):
            draw = _normal_like(mu, random)
            latent = mu + draw * (0.5 * logvar).exp()
            rows, log_variance = self._decode(latent, condition, training_rows.centre, training_rows.scale)
            joint = self._log_density(training_rows.clean - rows, log_variance, log_noise) - 0.5 * latent.square().sum(
                dim=1
            )
            log_weights.append(joint + 0.5 * (draw.square() + logvar).sum(dim=1))
        return importance_bound(torch.stack(log_weights)) - self.input_std.log().sum()

    def untrained(self) -> ConditionedVAEGenerator | None:
        """See `Generator.untrained`; None where it started from random weights."""
        if self.linear is None:
            return None
        start = copy.deepcopy(self)
        _silence(*(network for network in map(start._network, ("encoder", "decoder")) if network is not None))
        return start

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

    def training_rows(self, rows: PrototypeBatch, conditions: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Take in the classes; (M, D) standardised training rows and their (M,) labels."""
        self.moments.fit(rows)
        self.conditions = conditions.clone()
        x, labels = self.moments.training_rows(rows, random)
        if self.epoch == 0:
            self._set_standardisation(x, conditions)
        x = self.standardise(x)
        if self.linear is not None:
            clips = torch.zeros(len(conditions), device=x.device).index_add_(0, rows.labels, rows.counts)
            self.linear.measure(self.standardise(self.moments.mean), self.moments.std / self.input_std, clips)
            if self.epoch == 0:
                self.linear.fit(widened(x, self.linear.centre[labels], labels), labels)
        return x, labels

    def prepare(self, x: Tensor, labels: Tensor) -> TrainingRows:
        """(N, D) standardised training rows of the classes `labels`, with all that is computed of them beforehand."""
        if self.linear is not None:
            x = widened(x, self.linear.centre[labels], labels)
        return self._view(x, labels, self.conditions[labels])

    def _prepare(self, x: Tensor, conditions: Tensor) -> TrainingRows:
        """The same of (B, ...) embeddings under (B, V) conditions, which may be of classes that nobody knows."""
        return self._view(self.standardise(x.flatten(1)), self._labels(conditions), conditions)

    @torch.no_grad()
    def _view(self, x: Tensor, labels: Tensor, conditions: Tensor) -> TrainingRows:
        directions, (centre, scale) = self.directions(conditions), self._frame(conditions, labels)
        if self.linear is None:
            return TrainingRows(x, x, directions, torch.zeros_like(centre), centre, scale)
        mean, log_variance, seen = self.linear.posterior(x - centre, labels)
        return TrainingRows(x, seen, directions, torch.cat([mean, log_variance], dim=1), centre, scale)

    def _frame(self, conditions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Centre and scale of the classes `labels`; where that is -1, what the (B, V) conditions let one expect."""
        if self.linear is None:
            zeros = conditions.new_zeros(len(conditions), 1)
            return zeros, torch.ones_like(zeros)
        centre, unknown = self.linear.centre[labels], labels < 0
        if unknown.any() and len(self.conditions):
            # Kernel ridge regression of the known centres, so no more than their mean where nothing is akin.
            wanted, known = (F.normalize(self.directions(c), dim=-1) for c in (conditions[unknown], self.conditions))
            offsets = self.linear.centre[:-1] - self.linear.centre[-1]
            kernel = known @ known.T + torch.eye(len(known), device=known.device)
            centre[unknown] += wanted @ known.T @ torch.linalg.solve(kernel, offsets)
        return centre, self.linear.scale[labels]

    def _set_standardisation(self, x: Tensor, conditions: Tensor) -> None:
        """Taken once: a later change would pull the ground from under the trained weights."""
        mean, std = column_scale(x)
        self.input_mean.copy_(mean)
        self.input_std.copy_(std)
        if len(conditions) > 1:
            self.condition_mean.copy_(conditions.mean(dim=0))

    def _train(
        self,
        training_rows: TrainingRows,
        labels: Tensor,
        names: tuple[str, ...],
        epochs: int,
        noise: float,
        random: torch.Generator,
    ) -> list[EpochLosses]:
        self.train()
        optimiser = self.get_optimiser()
        history = []
        for _ in range(epochs):
            record = EpochRecord(names, labels.device)
            order = torch.randperm(len(labels), generator=random, device=random.device).to(labels.device)
            for batch in order.split(self.batch_size):
                rows = training_rows.take(batch)
                if noise > 0:
                    rows = rows._replace(seen=rows.seen + noise * _normal_like(rows.seen, random))
                rows = rows._replace(directions=self._drop_conditions(rows.directions, random))
                latent_noise = _normal((len(batch), self.latent_dim), rows.clean, random)
                loss = self.batch_loss(rows, latent_noise)
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

    def _drop_conditions(self, directions: Tensor, random: torch.Generator) -> Tensor:
        """What a training batch sees of its (B, V) directions: all, unless a subclass leaves something out."""
        del random
        return directions

    def batch_loss(self, rows: TrainingRows, latent_noise: Tensor) -> Tensor | VAELossParts:
        """The loss of B rows, with (B, L) standard normal `latent_noise`."""
        condition, mu, logvar = self._encode(rows)
        latent = mu + latent_noise * (0.5 * logvar).exp()
        decoded, log_variance = self._decode(latent, condition, rows.centre, rows.scale)
        told: dict[str, Tensor] = {}
        if self.linear is not None:
            told["log_likelihood"] = self._log_density(rows.clean - decoded, log_variance, 2 * math.log(NOISE))
        loss: Tensor | VAELossParts = self.loss(decoded, rows.clean, mu, logvar, self.epoch, **told)
        return loss

    @torch.no_grad()
    def fit_prior(self, x: Tensor, labels: Tensor, random: torch.Generator) -> None:
        """Fit the prior, and the calibration of what is drawn from it, to (M, D) standardised rows."""
        training_rows = self._view(x, labels, self.conditions[labels])
        condition, mu, logvar = self._encode(training_rows)
        residuals = x - self._decode(mu, condition, training_rows.centre, training_rows.scale)[0]
        self.prior.fit(mu, logvar, residuals, labels, len(self.conditions))
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

    def _encode(self, rows: TrainingRows) -> tuple[Tensor, Tensor, Tensor]:
        """The rows' conditions as the networks see them, and the mean and log variance of their posterior."""
        encoder = self._network("encoder")
        assert encoder is not None
        condition = self._map(rows.directions)
        mu, logvar = (encoder(torch.cat([rows.seen, condition], dim=1)) + rows.start).chunk(2, dim=1)
        return condition, mu, logvar.clamp(-8 if self.linear is None else -12, 4)

    def _decode(self, latent: Tensor, condition: Tensor, centre: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) means and log variances of rows, standardised."""
        decoder = self._network("decoder")
        assert decoder is not None
        out: Tensor = decoder(torch.cat([latent, condition], dim=1))
        if self.linear is None:
            return out, self.prior.residual_variance().log().expand_as(out)
        mean, log_variance = self.linear.decode(latent)
        # The variance of Student's t is more than the square of its scale, which is what the density wants.
        return centre + scale * mean, log_variance + out + 2 * scale.log() + math.log(1 - 2 / FREEDOM)

    def _log_density(self, offsets: Tensor, log_variance: Tensor, log_noise: Tensor | float) -> Tensor:
        """(B,) log densities of (B, D) rows at `offsets` from the decoder's means, with noise of so much more."""
        log_variance = torch.logaddexp(log_variance, torch.as_tensor(log_noise).to(log_variance))
        if self.linear is None:
            return normal_log_density(offsets, log_variance).sum(dim=1)
        return student_log_density(offsets, log_variance, FREEDOM).sum(dim=1)

    def _noise_like(self, rows: Tensor, random: torch.Generator) -> Tensor:
        """Draws of the decoder's noise, of scale 1."""
        noise = _normal_like(rows, random)
        if self.linear is None:
            return noise
        squares = torch.zeros_like(rows)
        for _ in range(FREEDOM):  # chi-squared
            squares += _normal_like(rows, random).square()
        return noise / (squares / FREEDOM).sqrt()

    def _decode_class(self, latent: Tensor, labels: Tensor) -> Tensor:
        frame = self._frame(self.conditions[labels], labels)
        return self._decode(latent, self._condition(self.conditions)[labels], *frame)[0]

    def _draw_unknown(self, conditions: Tensor, random: torch.Generator) -> Tensor:
        latent = torch.randn(len(conditions), self.latent_dim, generator=random, device=random.device).to(conditions)
        frame = self._frame(conditions, torch.full((len(conditions),), -1, device=conditions.device))
        rows, _ = self._decode(latent, self._condition(conditions), *frame)
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


def _silence(*networks: nn.Module) -> None:
    """Let networks of `_network` give 0, until they are trained."""
    for network in networks:
        for parameter in list(network.parameters())[-2:]:
            nn.init.zeros_(parameter)


def _normal(shape: tuple[int, ...], like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=random, device=random.device, dtype=like.dtype).to(like.device)


def _normal_like(like: Tensor, random: torch.Generator) -> Tensor:
    return _normal(like.shape, like, random)
