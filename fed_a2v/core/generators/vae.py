"""A variational autoencoder of audio embeddings, conditioned on the class's CLIP embedding."""

from __future__ import annotations

import copy
import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fed_a2v.core.generators.base import EpochLosses, as_rows, at_least_one
from fed_a2v.core.generators.parts.class_conditional import ClassConditionalGenerator, TrainingData
from fed_a2v.core.generators.parts.class_prior import ClassPrior
from fed_a2v.core.generators.parts.draws import normal, normal_like
from fed_a2v.core.generators.parts.epoch_record import EpochRecord
from fed_a2v.core.generators.parts.factors import FactorModel, widened
from fed_a2v.core.generators.parts.networks import perceptron, update_average, zero_output
from fed_a2v.core.likelihood import (
    DRAWS,
    NOISE,
    column_scale,
    importance_bound,
    normal_log_density,
    student_log_density,
)
from fed_a2v.core.losses import VAELoss, VAELossParts, loss_value
from fed_a2v.core.optimisers import Adam, AdamW
from fed_a2v.core.statistics import PrototypeBatch

# Degrees of freedom of the closed-form decoder's noise: columns of embeddings have heavier tails than a Gaussian.
FREEDOM = 8


class TrainingRows(NamedTuple):
    """N rows with everything about them that does not change in training, computed once.

    Attributes:
        target: (N, D) standardised rows.
        encoder_input: (N, D).
        directions: (N, V) of their conditions.
        start: (N, 2L) mean and log variance of the posterior that the encoder starts from; (N, 1) zeros if none.
        centre, scale: (N, D) of their classes, for the decoder; (N, 1) zeros and ones if there is no linear part.
    """

    target: Tensor
    encoder_input: Tensor
    directions: Tensor
    start: Tensor
    centre: Tensor
    scale: Tensor

    def index_select(self, index: Tensor) -> TrainingRows:
        """Some of the rows."""
        return TrainingRows(*(part[index] for part in self))


class ConditionedVAEGenerator(ClassConditionalGenerator):
    """Conditional VAE (Kingma & Welling 2014; Sohn et al. 2015) over standardised audio embeddings.

    It trains on prototypes whose distance to their class's mean is stretched to that of single clips. Known classes are
    sampled through `ClassPrior`; under a new condition, latents from N(0, I) are decoded.

    With `closed_form` it starts as the linear-Gaussian model that fits the first rows best (`FactorModel`). The encoder
    adds a correction to the posterior of that model. The decoder keeps its mean, and learns the scale of Student's
    noise in each column of each row.

    Args:
        input_dim: Da, default 512.
        visual_dim: V, default 768.
        hidden_dim: width of both hidden layers of encoder and decoder, default 1024.
        latent_dim: L, number of latent dimensions, default 256.
        sequence_length: S, default 1.
        conditional: whether encoder and decoder get the condition, default true; without it, the condition only
            finds the class whose prior is sampled.
        condition_dim: width to which the condition is mapped, default 64.
        closed_form: start from the linear model, default false: from random weights.
        ema: decay of the running average of the weights that are used for sampling, e.g. 0.99; default 0: the
            weights themselves.
        loss: called with (recon_x, x, mu, logvar, epoch), and with `closed_form` also with the (B,) log_likelihood of
            the rows under the decoder; returns `VAELossParts`, whose terms add up, or a scalar. Default: the negative
            ELBO (`VAELoss`), with KL annealed from 0 if training starts from random weights.
        learning_rate: learning rate of AdamW, default 1e-3.
        weight_decay: weight decay of AdamW, default 1e-4.
        batch_size: rows per optimiser step, of all classes together, default 256.
    """

    kind: ClassVar[str] = "vae"
    # Without a known class it decodes latents from N(0, I).
    samples_untrained: ClassVar[bool] = True
    input_mean: Tensor
    input_std: Tensor

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
        super().__init__(input_dim, visual_dim, sequence_length, batch_size=batch_size, ema=ema)
        at_least_one(hidden_dim=hidden_dim, latent_dim=latent_dim, batch_size=batch_size)
        self.hidden_dim = hidden_dim
        self.latent_dim = latent_dim
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.loss = loss if loss is not None else VAELoss("constant" if closed_form else "linear")
        width = input_dim * sequence_length
        extra = condition_dim if conditional else 0
        self.condition_map = nn.Linear(visual_dim, condition_dim) if conditional else None
        self.encoder = perceptron(width + extra, hidden_dim, hidden_dim, 2 * latent_dim, activation=nn.GELU())
        self.decoder = perceptron(latent_dim + extra, hidden_dim, hidden_dim, width, activation=nn.GELU())
        self.linear = FactorModel(width, latent_dim) if closed_form else None
        if closed_form:
            zero_output(self.encoder, self.decoder)
        networks = copy.deepcopy(self._networks()).requires_grad_(False) if ema else None
        self.averaged = None if networks is None else nn.ModuleDict({"networks": networks})
        self.register_buffer("input_mean", torch.zeros(width))
        self.register_buffer("input_std", torch.ones(width))
        self.prior = ClassPrior(normal=closed_form)

    @property
    def dimensions(self) -> dict[str, int]:
        """See `Generator.dimensions`."""
        sizes = super().dimensions | {"hidden_dim": self.hidden_dim, "latent_dim": self.latent_dim}
        return sizes if self.linear is None else sizes | {"closed_form": 1}

    @property
    def scale(self) -> tuple[Tensor, Tensor]:
        """See `ClassConditionalGenerator.scale`."""
        return self.input_mean, self.input_std

    def _measure_scale(self, x: Tensor) -> None:
        mean, std = column_scale(x)
        self.input_mean.copy_(mean)
        self.input_std.copy_(std)

    def forward(self, x: Tensor, visual_condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct audio embeddings.

        Args:
            x: (B, S, Da), or (B, Da) if S is 1.
            visual_condition: (B, V), a condition per row; (V,) or (1, V) for one class.

        Returns:
            The reconstruction in x's shape, and the posterior's mean and log variance, (B, L) each. In
            training mode the latent is drawn from the posterior; otherwise it is the posterior's mean.
        """
        training_rows = self._prepare_embeddings(x, as_rows(visual_condition, len(x), self.conditions.shape[1]))
        condition, mu, logvar = self._encode(training_rows)
        latent = mu + torch.randn_like(mu) * (0.5 * logvar).exp() if self.training else mu
        rows, _ = self._decode(latent, condition, training_rows.centre, training_rows.scale)
        return self._restore(rows).view_as(x), mu, logvar

    @torch.no_grad()
    def posterior(self, x: Tensor, visual_condition: Tensor) -> tuple[Tensor, Tensor]:
        """See `Generator.posterior`."""
        conditions = as_rows(visual_condition, len(x), self.conditions.shape[1])
        _, mu, logvar = self._encode(self._prepare_embeddings(x, conditions))
        return mu, logvar

    @torch.no_grad()
    def reconstruct(self, x: Tensor, conditions: Tensor) -> Tensor:
        """See `Generator.reconstruct`: the decoder's mean at the posterior's mean."""
        training_rows = self._prepare_embeddings(x, conditions)
        condition, latent, _ = self._encode(training_rows)
        return self._restore(self._decode(latent, condition, training_rows.centre, training_rows.scale)[0]).view_as(x)

    @torch.no_grad()
    def sample_raw(self, conditions: Tensor, random: torch.Generator) -> Tensor:
        """See `Generator.sample_raw`: the latent from N(0, I), and the decoder's noise."""
        centre, scale = self._frame(conditions, self._labels(conditions))
        latent = normal((len(conditions), self.latent_dim), centre, random)
        rows, log_variance = self._decode(latent, self._condition(conditions), centre, scale)
        return self._embeddings(self._restore(rows + (0.5 * log_variance).exp() * self._noise_like(rows, random)))

    @torch.no_grad()
    def log_likelihood(self, x: Tensor, conditions: Tensor, noise: Tensor, random: torch.Generator) -> Tensor:
        """See `Generator.log_likelihood`: an importance-weighted bound (`importance_bound`)."""
        training_rows = self._prepare_embeddings(x, conditions)
        condition, mu, logvar = self._encode(training_rows)
        log_noise = 2 * (noise / self.input_std).log()
        log_weights = []
        for _ in range(DRAWS):
            draw = normal_like(mu, random)
            latent = mu + draw * (0.5 * logvar).exp()
            rows, log_variance = self._decode(latent, condition, training_rows.centre, training_rows.scale)
            density = self._log_density(training_rows.target - rows, log_variance, log_noise)
            # log p(x, z) - log q(z | x); the constants of both normal densities cancel.
            joint = density - 0.5 * latent.square().sum(dim=1)
            log_weights.append(joint + 0.5 * (draw.square() + logvar).sum(dim=1))
        return importance_bound(torch.stack(log_weights)) - self.input_std.log().sum()

    def untrained(self) -> ConditionedVAEGenerator | None:
        """See `Generator.untrained`; None if it started from random weights."""
        if self.linear is None:
            return None
        start = copy.deepcopy(self)
        zero_output(start._network("encoder"), start._network("decoder"))
        return start

    # Training

    def training_rows(self, rows: PrototypeBatch, conditions: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `ClassConditionalGenerator.training_rows`; fits the linear part at the first `fit`."""
        x, labels = super().training_rows(rows, conditions, random)
        if self.linear is not None:
            clips = torch.zeros(len(conditions), device=x.device).index_add_(0, rows.labels, rows.counts)
            self.linear.measure(self.standardise(self.moments.mean), self.moments.std / self.input_std, clips)
            if self.epoch == 0:
                self.linear.fit(widened(x, self.linear.centre[labels], labels), labels)
        return x, labels

    def prepare(self, x: Tensor, labels: Tensor) -> TrainingRows:
        """Prepare (N, D) standardised training rows of the classes `labels`."""
        if self.linear is not None:
            # Training rows pull their class's centre towards themselves; other rows of the class do not.
            x = widened(x, self.linear.centre[labels], labels)
        return self._prepare(x, labels, self.conditions[labels])

    def _prepare_embeddings(self, x: Tensor, conditions: Tensor) -> TrainingRows:
        """Prepare (B, ...) embeddings under (B, V) conditions, which may be of unknown classes."""
        return self._prepare(self.standardise(x.flatten(1)), self._labels(conditions), conditions)

    @torch.no_grad()
    def _prepare(self, x: Tensor, labels: Tensor, conditions: Tensor) -> TrainingRows:
        directions, (centre, scale) = self.directions(conditions), self._frame(conditions, labels)
        if self.linear is None:
            return TrainingRows(x, x, directions, torch.zeros_like(centre), centre, scale)
        mean, log_variance, offsets = self.linear.posterior(x - centre, labels)
        return TrainingRows(x, offsets, directions, torch.cat([mean, log_variance], dim=1), centre, scale)

    def _frame(self, conditions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Centre and scale of the classes `labels`; for -1, those expected under the (B, V) conditions."""
        if self.linear is None:
            zeros = conditions.new_zeros(len(conditions), 1)
            return zeros, torch.ones_like(zeros)
        centre, unknown = self.linear.centre[labels], labels < 0
        if unknown.any() and len(self.conditions):
            # Kernel ridge regression of the known centres: their mean if no known condition is similar.
            requested, known = (F.normalize(self.directions(c), dim=-1) for c in (conditions[unknown], self.conditions))
            offsets = self.linear.centre[:-1] - self.linear.centre[-1]
            kernel = known @ known.T + torch.eye(len(known), device=known.device)
            centre[unknown] += requested @ known.T @ torch.linalg.solve(kernel, offsets)
        return centre, self.linear.scale[labels]

    def _train(self, data: TrainingData) -> list[EpochLosses]:
        prepared, noise, random = self.prepare(data.x, data.labels), data.noise, data.random
        optimiser = self.get_optimiser()
        history = []
        for batches in self._shuffled(data):
            record = EpochRecord(data.names, data.labels.device)
            for batch in batches:
                rows = prepared.index_select(batch)
                if noise > 0:
                    # On the input alone: the target stays clean.
                    noisy = rows.encoder_input + noise * normal_like(rows.encoder_input, random)
                    rows = rows._replace(encoder_input=noisy)
                rows = rows._replace(directions=self._drop_conditions(rows.directions, random))
                loss = self.batch_loss(rows, normal((len(batch), self.latent_dim), rows.target, random))
                optimiser.zero_grad(set_to_none=True)
                loss_value(loss).backward()
                optimiser.step()
                if self.averaged is not None:
                    update_average(self.averaged, self._networks(), self.ema)
                record.add(loss, data.labels[batch])
            history.append(record)
        return [record.losses() for record in history]

    def _drop_conditions(self, directions: Tensor, random: torch.Generator) -> Tensor:
        """The (B, V) directions that a training batch uses: all, unless a subclass leaves parts out."""
        del random
        return directions

    def batch_loss(self, rows: TrainingRows, latent_noise: Tensor) -> Tensor | VAELossParts:
        """The loss of B rows, with (B, L) standard normal `latent_noise`."""
        condition, mu, logvar = self._encode(rows)
        latent = mu + latent_noise * (0.5 * logvar).exp()
        decoded, log_variance = self._decode(latent, condition, rows.centre, rows.scale)
        likelihood: dict[str, Tensor] = {}
        if self.linear is not None:
            density = self._log_density(rows.target - decoded, log_variance, 2 * math.log(NOISE))
            likelihood["log_likelihood"] = density
        loss: Tensor | VAELossParts = self.loss(decoded, rows.target, mu, logvar, self.epoch, **likelihood)
        return loss

    @torch.no_grad()
    def finish_fit(self, x: Tensor, labels: Tensor, random: torch.Generator) -> None:
        """See `ClassConditionalGenerator.finish_fit`: fits the prior, then the calibration of samples from it."""
        rows = self._prepare(x, labels, self.conditions[labels])
        condition, mu, logvar = self._encode(rows)
        residuals = x - self._decode(mu, condition, rows.centre, rows.scale)[0]
        self.prior.fit(mu, logvar, residuals, labels, len(self.conditions))
        super().finish_fit(x, labels, random)

    def _new_optimisers(self) -> dict[str, Adam]:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return {"optimiser": AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)}

    # The networks

    def _condition(self, conditions: Tensor) -> Tensor:
        return self._map(self.directions(conditions))

    def _map(self, directions: Tensor) -> Tensor:
        """The networks' input for (B, V) directions: (B, condition_dim), or (B, 0) if they do not use them."""
        if self.condition_map is None:
            return directions[:, :0]
        mapped: Tensor = self._network("condition_map")(directions)
        return mapped

    def _networks(self) -> nn.ModuleDict:
        names = ("condition_map", "encoder", "decoder")
        return nn.ModuleDict({name: getattr(self, name) for name in names if getattr(self, name) is not None})

    def _network(self, name: str) -> nn.Module:
        """The network in training or, after it, its running average if there is one."""
        owner = self if self.averaged is None or self.training else self.averaged["networks"]
        network: nn.Module = getattr(owner, name)
        return network

    def _encode(self, rows: TrainingRows) -> tuple[Tensor, Tensor, Tensor]:
        """The rows' mapped conditions, and the mean and log variance of their posterior."""
        condition = self._map(rows.directions)
        encoded = self._network("encoder")(torch.cat([rows.encoder_input, condition], dim=1))
        mu, logvar = (encoded + rows.start).chunk(2, dim=1)
        return condition, mu, logvar.clamp(-8 if self.linear is None else -12, 4)

    def _decode(self, latent: Tensor, condition: Tensor, centre: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) means and log variances of rows, standardised."""
        out: Tensor = self._network("decoder")(torch.cat([latent, condition], dim=1))
        if self.linear is None:
            return out, self.prior.residual_variance().log().expand_as(out)
        mean, log_variance = self.linear.decode(latent)
        # The density needs the square of the scale of Student's t, which is less than its variance.
        return centre + scale * mean, log_variance + out + 2 * scale.log() + math.log(1 - 2 / FREEDOM)

    def _log_density(self, offsets: Tensor, log_variance: Tensor, log_noise: Tensor | float) -> Tensor:
        """(B,) log densities of (B, D) offsets from the decoder's means; `log_noise`: log of an added variance."""
        log_variance = torch.logaddexp(log_variance, torch.as_tensor(log_noise).to(log_variance))
        if self.linear is None:
            return normal_log_density(offsets, log_variance).sum(dim=1)
        return student_log_density(offsets, log_variance, FREEDOM).sum(dim=1)

    def _noise_like(self, rows: Tensor, random: torch.Generator) -> Tensor:
        """Draws of the decoder's noise, of scale 1."""
        noise = normal_like(rows, random)
        if self.linear is None:
            return noise
        # Student's t: a normal number over the root of a mean of squares.
        squares = torch.zeros_like(rows)
        for _ in range(FREEDOM):
            squares += normal_like(rows, random).square()
        return noise / (squares / FREEDOM).sqrt()

    # Sampling

    def _draw(self, conditions: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        known = labels >= 0
        rows = torch.empty(len(labels), len(self.input_mean), device=self.input_mean.device)
        if known.any():
            rows[known] = self.prior.draw(self._decode_class, labels[known], random)
        if not known.all():
            # Nothing is known of the class's latents: N(0, I), and the average residuals of the known classes.
            frame = self._frame(conditions[~known], labels[~known])
            latent = normal((int((~known).sum()), self.latent_dim), conditions, random)
            rows[~known], _ = self._decode(latent, self._condition(conditions[~known]), *frame)
            if len(self.conditions):
                rows[~known] += self.prior.pooled_residuals(len(latent), random)
        return rows

    def _decode_class(self, latent: Tensor, labels: Tensor) -> Tensor:
        frame = self._frame(self.conditions[labels], labels)
        return self._decode(latent, self._condition(self.conditions)[labels], *frame)[0]
