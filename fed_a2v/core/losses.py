"""Loss functions: `AdapterLoss` for the adapters, `VAELoss` with its KL schedules for the VAE generators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fed_a2v.core.adapters import AdapterOutput, ClassPrompts, prompt_centre

# The terms of the adapters' loss, as in the metrics.
TERMS = ("mse", "cosine", "contrastive")


@dataclass(frozen=True)
class AdapterLossWeights:
    """Weights of the three terms, and the temperature of the contrastive one."""

    mse: float = 1.0
    cosine: float = 1.0
    contrastive: float = 1.0
    temperature: float = 0.2


class AdapterLoss:
    """MSE + cosine + contrastive over all class prompts, averaged over CLIP and T5.

    * MSE in units of the class prompts' variance, so that its weight means the same for any target. The other two
      terms ignore the scale, but the image model needs outputs that *are* prompt embeddings.
    * One minus the cosine of centred, flattened prompts.
    * Cross-entropy of the cosines with every class prompt over the temperature (InfoNCE, van den Oord et al.
      2018, with the class prompts as the negatives).

    Args:
        prompts: class prompts, (C, T, D) each.
        weights: weights of the terms, and the temperature.
        unseen: (C,) mask of classes that the contrastive term ignores, because otherwise they would only ever be
            negatives. Default: none.
    """

    def __init__(self, prompts: ClassPrompts, weights: AdapterLossWeights, unseen: Tensor | None = None) -> None:
        self.weights = weights
        self.unseen = unseen if unseen is not None and unseen.any() else None
        self.parts = {
            kind: _CentredPrompts(tensor)
            for kind, tensor in (("clip", prompts.clip), ("t5", prompts.t5))
            if tensor is not None
        }

    def __call__(
        self, outputs: AdapterOutput, labels: Tensor, targets: AdapterOutput | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch and its parts.

        Args:
            outputs: adapter outputs of B rows.
            labels: (B,) class of each row.
            targets: (B, T, D) each, targets of MSE and cosine. Default: the prompts of the rows' classes.

        Returns:
            The scalar loss, and detached scalars `mse`, `cosine`, `contrastive` averaged over CLIP and T5.
        """
        sums: dict[str, Tensor] = {}
        for kind, prompts in self.parts.items():
            target = None if targets is None else getattr(targets, kind)
            for name, value in self._terms(prompts, getattr(outputs, kind), labels, target).items():
                sums[name] = sums[name] + value if name in sums else value
        means = {name: value / len(self.parts) for name, value in sums.items()}
        return self._weighted(means), {name: value.detach() for name, value in means.items()}

    def sides(self, outputs: AdapterOutput, labels: Tensor) -> dict[str, Tensor]:
        """The (B,) losses of rows by `clip` and `t5`, with the class prompts as targets; `__call__` returns their mean.

        Args:
            outputs: adapter outputs of B rows.
            labels: (B,) class of each row.
        """
        return {
            kind: self._weighted(self._terms(prompts, getattr(outputs, kind), labels, None, by_row=True))
            for kind, prompts in self.parts.items()
        }

    def gradient(self, kind: str, centred: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The terms of one side on the rows of A sites, and the gradient of `__call__` with the prompts as targets.

        Args:
            kind: `clip` or `t5`.
            centred: (A, B, T x D) outputs relative to the prompts' centre.
            labels: (A, B) class of each row.
            weights: (A, B) weight of each row in the means of its site; 0: the row does not count.

        Returns:
            (A, 3) means in the order of `TERMS`, and (A, B, T x D).
        """
        prompts, of = self.parts[kind], self.weights
        lengths = centred.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        unit, right = centred / lengths, prompts.directions[labels]
        error = centred - prompts.centred[labels]
        logits = unit @ prompts.directions.T / of.temperature
        if self.unseen is not None:
            logits = logits.masked_fill(self.unseen, -torch.inf)
        logarithms = logits.log_softmax(dim=-1)
        per_row = (
            error.square().mean(dim=-1) / prompts.variance,
            1 - (unit * right).sum(dim=-1),
            -logarithms.gather(-1, labels[..., None]).squeeze(-1),
        )
        terms = (torch.stack(per_row, dim=-1) * weights[..., None]).sum(dim=1)
        share = weights[..., None] / len(self.parts)
        pull = logarithms.exp_() @ prompts.directions - right  # of the cross-entropy, times the temperature
        of_unit = (pull * (of.contrastive / of.temperature) - right * of.cosine) * (share / lengths)
        gradient = of_unit - unit * (unit * of_unit).sum(dim=-1, keepdim=True)
        factor = 2 * of.mse / centred.shape[-1] / prompts.variance
        return terms, gradient.addcmul_(error, share * factor)

    def highest(self, reach: Mapping[str, float]) -> dict[str, float]:
        """Upper bound on the loss of a row of any class, by `clip` and `t5`.

        Args:
            reach: upper bound on the distance of an output from the prompts' centre, by `clip` and `t5`.
        """
        weights, bounds = self.weights, {}
        for kind, prompts in self.parts.items():
            classes, size = prompts.centred.shape
            longest = float(prompts.centred.norm(dim=1).max())
            mse = (reach[kind] + longest) ** 2 / size / float(prompts.variance)
            # A cross-entropy is at most the range of the logits, here 2 / temperature, plus ln C.
            contrastive = 2 / weights.temperature + math.log(classes)
            bounds[kind] = weights.mse * mse + weights.cosine * 2 + weights.contrastive * contrastive
        return bounds

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        weights = self.weights
        return (
            weights.mse * terms["mse"] + weights.cosine * terms["cosine"] + weights.contrastive * terms["contrastive"]
        )

    def _terms(
        self, prompts: _CentredPrompts, output: Tensor, labels: Tensor, target: Tensor | None, by_row: bool = False
    ) -> dict[str, Tensor]:
        """The terms, averaged over the batch or `by_row`."""
        expected = prompts.centred[labels] if target is None else target.flatten(1) - prompts.centre.flatten()
        # Flattened before the difference, so that a wrong number of tokens is an error and does not broadcast.
        centred = output.flatten(1) - prompts.centre.flatten()
        logits = F.normalize(centred, dim=-1) @ prompts.directions.T / self.weights.temperature
        if self.unseen is not None:
            logits = logits.masked_fill(self.unseen, -torch.inf)
        cosine = F.cosine_similarity(centred, expected, dim=-1)
        if by_row:
            return {
                "mse": F.mse_loss(centred, expected, reduction="none").mean(dim=1) / prompts.variance,
                "cosine": 1 - cosine,
                "contrastive": F.cross_entropy(logits, labels, reduction="none"),
            }
        return {
            "mse": F.mse_loss(centred, expected) / prompts.variance,
            "cosine": 1 - cosine.mean(),
            "contrastive": F.cross_entropy(logits, labels),
        }


class _CentredPrompts:
    """Class prompts (C, T, D) with the values that the loss derives from them, computed once."""

    def __init__(self, prompts: Tensor) -> None:
        self.centre = prompt_centre(prompts)
        self.centred = (prompts - self.centre).flatten(1).contiguous()
        self.directions = F.normalize(self.centred, dim=-1)
        self.variance = self.centred.square().mean().clamp(min=1e-12)


class VAELossParts(NamedTuple):
    """Loss of a batch (scalar, differentiable) and its terms for each of the B rows (detached).

    The terms include their weights: their means over the batch add up to `total`.
    """

    total: Tensor
    reconstruction: Tensor
    kl: Tensor
    similarity: Tensor


class VAELoss(nn.Module):
    """Negative ELBO per data dimension, with an annealed KL term and an optional cosine term.

    With D data dimensions and a Gaussian decoder of variance s2, the ELBO of a row is
    `-sum (recon - x)^2 / (2 s2) - KL`, up to a constant. Both terms are divided by D, so their proportion is the same
    at any width and token count; a decoder ignores its latent if one is summed and the other averaged. Kingma & Welling
    2014; conditional: Sohn et al. 2015.

    A row's terms: `reconstruction` is its negative log-likelihood under the batch's decoder variance, `kl` the KL above
    the free bits, times beta, and `similarity` the cosine term, times its weight. As a density may exceed 1,
    `reconstruction` and the loss are negative below a standard deviation of 0.24.

    Args:
        beta_schedule: `constant`; `linear` from 0 to `beta_max` over `beta_epochs`; `cyclical`: that ramp over
            the first half of every `beta_epochs`, `beta_max` for the second (Fu et al. 2019).
        beta_max: weight of the KL term; 1 is the ELBO.
        beta_epochs: length of the ramp or cycle in epochs, counted over all rounds.
        variance: `unit`: s2 = 1 in standardised units; `optimal`: the batch's mean squared error, which is the
            maximum-likelihood value; `learned`: one weight, trained with the others (sigma-VAE, Rybkin et al.
            2021). Not used by a decoder with its own density (`log_likelihood`).
        free_bits: nats of every latent unit that cost nothing: the KL of a unit, averaged over the batch,
            counts only above it (Kingma et al. 2016). 0 is the plain ELBO.
        similarity_weight: weight of one minus the cosine of reconstruction and input.

    Raises:
        ValueError: an unknown schedule or variance, or a value out of range.
    """

    def __init__(
        self,
        beta_schedule: Literal["constant", "linear", "cyclical"] = "constant",
        beta_max: float = 1.0,
        beta_epochs: int = 50,
        variance: Literal["unit", "optimal", "learned"] = "optimal",
        free_bits: float = 0.0,
        similarity_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if beta_schedule not in ("constant", "linear", "cyclical"):
            raise ValueError(f"beta_schedule={beta_schedule!r}: choose constant, linear or cyclical")
        if variance not in ("unit", "optimal", "learned"):
            raise ValueError(f"variance={variance!r}: choose unit, optimal or learned")
        if free_bits < 0:
            raise ValueError(f"free_bits={free_bits}: must not be negative")
        if beta_max < 0 or beta_epochs < 1:
            raise ValueError(f"beta_max={beta_max} must not be negative, beta_epochs={beta_epochs} at least 1")
        self.beta_schedule = beta_schedule
        self.beta_max = beta_max
        self.beta_epochs = beta_epochs
        self.variance = variance
        self.log_variance = nn.Parameter(torch.zeros(())) if variance == "learned" else None
        self.free_bits = free_bits
        self.similarity_weight = similarity_weight

    def beta(self, epoch: int) -> float:
        """Weight of the KL term in `epoch`, counted from 0."""
        if self.beta_schedule == "constant":
            return self.beta_max
        if self.beta_schedule == "linear":
            return self.beta_max * min(1.0, epoch / self.beta_epochs)
        position = (epoch % self.beta_epochs) / self.beta_epochs
        return self.beta_max * min(1.0, 2 * position)

    def _get_beta(self, epoch: int) -> float:
        """`beta` under its name in the original guide, whose custom losses call it."""
        return self.beta(epoch)

    def forward(
        self,
        recon_x: Tensor,
        x: Tensor,
        mu: Tensor,
        logvar: Tensor,
        epoch: int,
        log_likelihood: Tensor | None = None,
    ) -> VAELossParts:
        """Loss of B rows.

        Args:
            recon_x: (B, ...) reconstruction.
            x: (B, ...) input, same shape.
            mu: (B, L) posterior mean.
            logvar: (B, L) posterior log variance.
            epoch: number of the epoch over all rounds, from 0.
            log_likelihood: (B,) log-likelihoods of the inputs, if the decoder has its own density.
        """
        recon_x, x = recon_x.flatten(1), x.flatten(1)
        dimensions = x.shape[1]
        error = (recon_x - x).square().mean(dim=1)
        unit_kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar)
        mean_kl = unit_kl.mean(dim=0)
        charged = mean_kl.clamp(min=self.free_bits).sum() / dimensions
        given = None if log_likelihood is None else -log_likelihood / dimensions
        likelihood = self._negative_log_likelihood(error.mean()) if given is None else given.mean()
        total = likelihood + self.beta(epoch) * charged
        similarity = torch.zeros_like(error)
        if self.similarity_weight > 0:
            similarity = 1 - F.cosine_similarity(recon_x, x, dim=1)
            total = total + self.similarity_weight * similarity.mean()
        with torch.no_grad():
            # The decoder's variance and the units below the free bits are those of the batch, for each of its rows.
            spread = 0.5 * self._precision(error.mean()) * (error - error.mean())
            reconstruction = likelihood + spread if given is None else given.detach()
            charged = torch.where(mean_kl > self.free_bits, unit_kl, self.free_bits).sum(dim=1) / dimensions
            kl = self.beta(epoch) * charged
        return VAELossParts(total, reconstruction, kl, self.similarity_weight * similarity.detach())

    def _precision(self, error: Tensor) -> Tensor:
        """One over the decoder's variance."""
        if self.variance == "unit":
            return torch.ones_like(error)
        return (-self.log_variance).exp() if self.log_variance is not None else 1 / error.clamp(min=1e-8)

    def _negative_log_likelihood(self, error: Tensor) -> Tensor:
        """Per data dimension, of a Gaussian decoder with mean squared error `error`."""
        if self.variance == "unit":
            return 0.5 * error  # up to a constant
        if self.log_variance is not None:
            return 0.5 * (math.log(2 * math.pi) + self.log_variance + error * (-self.log_variance).exp())
        return 0.5 * (math.log(2 * math.pi) + 1 + error.clamp(min=1e-8).log())


def loss_value(loss: Tensor | VAELossParts | tuple[Tensor, ...]) -> Tensor:
    """The differentiable total of a loss that returns parts, or of a custom loss that returns a scalar."""
    return loss if isinstance(loss, torch.Tensor) else loss[0]
