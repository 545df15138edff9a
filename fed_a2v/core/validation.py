"""Validation of a generator in the server step, on held-out prototypes and new samples.

Prototypes are means of groups of clips, so they vary less than samples, which are like single clips. Where the spread
matters, the prototypes are first scaled to the spread of their class, estimated from the training prototypes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fed_a2v.core.generators.base import Generator
from fed_a2v.core.generators.parts.moments import ClassMoments
from fed_a2v.core.network import NetworkFigures, examine
from fed_a2v.core.quality import FEWEST_JUDGED, Gate, GeneratorQuality, Rows, assess, warnings_for
from fed_a2v.core.statistics import PrototypeBatch

log = logging.getLogger("fed_a2v")
# A line per class, which only the log file of the run gets.
class_log = logging.getLogger("fed_a2v.classes")

# Samples of each class.
SAMPLES = 100
# About the maximum number of rows to compare, so that a validation takes seconds, not minutes.
COMPARED_ROWS = 600
# Minimum variance (unbiased, pooled over classes) of the posterior mean of an active latent unit.
ACTIVE_VARIANCE = 0.01
# Measures of samples against prototypes, with their names in the log, which are those of the guide.
MEASURES = {"similarity": "Cosine Similarity", "mse": "MSE Loss", "l1": "L1 Loss"}


@dataclass(frozen=True)
class SampleValidation:
    """Agreement of samples with held-out rows of their class: expectations over all pairs, then over classes.

    Attributes:
        similarity: mean cosine, by token.
        mse: mean squared difference.
        l1: mean absolute difference.
        per_class: mean cosine of each validated class, by name in sorted order.
    """

    similarity: float
    mse: float
    l1: float
    per_class: dict[str, float]


@dataclass(frozen=True)
class Validation:
    """Result of `validate`.

    Attributes:
        agreement: cosine, MSE and L1 between samples and held-out prototypes.
        real: the same with real rows in place of samples: training prototypes scaled to the spread of clips. Samples as
            good as clips reach these values, and so do copies of the training rows.
        blind: the same with the mean over all classes in place of each sample. It may score better than real rows, as
            it has no spread: a cosine alone means little without the other two.
        rows: number of held-out prototypes.
        quality: the three gates and the diagnostics, on scaled prototypes.
        active: latent units that vary within classes; None for a generator without a latent.
        network: figures of the network alone, on the same rows; None for a generator without one.
    """

    agreement: SampleValidation
    real: SampleValidation
    blind: SampleValidation
    rows: int
    quality: GeneratorQuality
    active: int | None
    network: NetworkFigures | None

    def warnings(self) -> list[str]:
        """Problems of the generator with their remedies."""
        return warnings_for(self.quality, self.active)

    def metrics(self) -> dict[str, Any]:
        """All figures, by their names in the metrics of a round."""
        row: dict[str, Any] = {"server/generator_validation_rows": self.rows}
        for measure in MEASURES:
            for suffix, figures in (("", self.agreement), ("_real", self.real), ("_blind", self.blind)):
                row[f"server/generator_validation_{measure}{suffix}"] = getattr(figures, measure)
        row["generator_validation_per_class"] = self.agreement.per_class
        row |= {f"generator_quality/{name}": value for name, value in self.quality.as_dict().items()}
        if self.active is not None:
            row["generator_quality/active_units"] = self.active
        if self.network is not None:
            row |= {f"generator_network/{name}": value for name, value in self.network.as_dict().items()}
        return row

    def report(self) -> None:
        """Log the figures and the warnings, with the wording of the guide."""
        log.info("=== Generator Validation Metrics ===")
        for measure, words in MEASURES.items():
            form = "Average %s: %.4f (real rows: %.4f, class-blind: %.4f)"
            if measure != "similarity":
                form = form.replace("%.4f", "%.6f")
            log.info(form, words, *(getattr(each, measure) for each in (self.agreement, self.real, self.blind)))
        log.info("Classes validated: %d, on %d held-out averages", len(self.agreement.per_class), self.rows)
        for name, similarity in self.agreement.per_class.items():
            class_log.info("  - %s: %.4f", name, similarity)
        for gate in self.quality.gates():
            if gate.value is not None:
                log.info("  %s", in_words(gate))
        for line in self.network.lines() if self.network is not None else []:
            log.info("  %s", line)
        for warning in self.warnings():
            log.warning("%s", warning)


def in_words(gate: Gate) -> str:
    """A gate's value with its interval, its number of rows and its verdict, for the log."""
    interval = "" if gate.interval is None else f" [{gate.interval[0]:.3f}, {gate.interval[1]:.3f}]"
    real = "" if gate.real is None else f", real rows {gate.real:.3f}"
    failed = "failed" if gate.surely_failed else "outside its range, perhaps by chance"
    verdict = {True: "passed", False: failed, None: f"no verdict below {FEWEST_JUDGED} rows"}[gate.passed]
    return f"{gate.name}: {gate.value:.3f}{interval} on {gate.rows} rows{real}: {verdict}"


@torch.no_grad()
def validate(
    generator: Generator,
    trained_on: PrototypeBatch,
    held_out: PrototypeBatch,
    conditions: Tensor,
    random: torch.Generator,
) -> Validation | None:
    """Validate a generator; None if no class has a held-out prototype and two others.

    Args:
        generator: a trained generator.
        trained_on: its N training prototypes.
        held_out: M held-out prototypes of some of the same C classes. Those of classes with fewer than two training
            prototypes are ignored.
        conditions: (C, V), in the order of `names`, which is the same for both.
        random: source of the samples.

    Raises:
        ValueError: samples are not finite.
    """
    classes, device = len(conditions), held_out.labels.device
    # The spread of a class needs two training prototypes.
    held_out = held_out.index_select(trained_on.labels.bincount(minlength=classes)[held_out.labels] >= 2)
    if not len(held_out):
        return None
    samples = generator.sample_classes(conditions, SAMPLES, random)
    synthetic = Rows(samples.flatten(0, 1), torch.arange(classes, device=device).repeat_interleave(SAMPLES))
    moments = ClassMoments()
    moments.fit(trained_on)
    spread, unseen = (
        Rows(moments.spread_rows(rows).view_as(rows.embeddings), rows.labels) for rows in (trained_on, held_out)
    )
    posterior = generator.posterior(spread.embeddings, conditions[trained_on.labels])
    known = trained_on.labels.unique()
    constant = moments.mean[known].mean(dim=0).view(1, *samples.shape[2:]).expand(len(known), -1, -1)
    agreement, real, blind = (
        validate_samples(rows, Rows(held_out.embeddings, held_out.labels), held_out.names)
        for rows in (synthetic, _as_clips(spread, moments), Rows(constant, known))
    )
    quality = assess(spread, unseen, synthetic, seeds=1, max_rows=COMPARED_ROWS)
    return Validation(
        agreement,
        real,
        blind,
        len(held_out),
        quality,
        None if posterior is None else active_units(posterior[0], trained_on.labels),
        examine(
            *(generator, moments, spread, unseen, conditions, SAMPLES, random),
            seeds=1,
            max_rows=COMPARED_ROWS,
            known=quality,
        ),
    )


def validate_samples(synthetic: Rows, held_out: Rows, names: Sequence[str]) -> SampleValidation:
    """Cosine, MSE and L1 between each sample and each held-out row of its class, in the embeddings' own space.

    Real rows differ from each other, so the best possible similarity is not 1: compare with
    `validate_samples(train, held_out, names)`. A generator that always returns the class mean scores *better* than real
    rows; `assess` detects it.

    Args:
        synthetic: samples, (N, S, Da) or (N, D).
        held_out: real rows of the same width.
        names: class names; labels are indices into them.

    Raises:
        ValueError: no class has both a sample and a held-out row.
    """
    shared = sorted(set(synthetic.labels.tolist()) & set(held_out.labels.tolist()), key=lambda label: names[label])
    if not shared:
        raise ValueError("no class has both a sample and a held-out row; raise generator.holdout")
    figures = {}
    for label in shared:
        fake = synthetic.embeddings[synthetic.labels == label].detach().cpu().double()
        real = held_out.embeddings[held_out.labels == label].detach().cpu().double()
        # The mean over pairs of a product is the product of the means.
        cosine = (F.normalize(fake, dim=-1).mean(0) * F.normalize(real, dim=-1).mean(0)).sum(-1).mean()
        fake, real = fake.flatten(1), real.flatten(1)
        spread = fake.var(0, correction=0) + real.var(0, correction=0)
        mse = (spread + (fake.mean(0) - real.mean(0)).square()).mean()
        l1 = torch.cdist(fake, real, p=1).mean() / fake.shape[1]
        figures[names[label]] = (cosine.item(), mse.item(), l1.item())
    similarity, mse_mean, l1_mean = (float(mean) for mean in np.mean(list(figures.values()), axis=0))
    return SampleValidation(similarity, mse_mean, l1_mean, {name: each[0] for name, each in figures.items()})


def active_units(mu: Tensor, labels: Tensor) -> int | None:
    """Number of latent units whose posterior mean varies over the rows *of a class* (Burda et al., 2016).

    Units that only encode the class do not count, as the decoder gets the class from its condition.

    Args:
        mu: (N, L) posterior means.
        labels: (N,) integers.

    Returns:
        A number from 0 to L, or None if no class has two rows.
    """
    _, index = labels.unique(return_inverse=True)
    counts = index.bincount()
    freedom = len(mu) - len(counts)
    if freedom < 1:
        return None
    mu = mu.detach().double()
    means = mu.new_zeros(len(counts), mu.shape[1]).index_add_(0, index, mu) / counts[:, None]
    variance = (mu - means[index]).square().sum(0) / freedom
    return int((variance > ACTIVE_VARIANCE).sum())


def _as_clips(scaled: Rows, moments: ClassMoments) -> Rows:
    """Scale rows once more, so that their total variance is exactly that of their class's clips.

    With few rows, this is not possible for each column, but for the sum over columns.
    """
    embeddings, labels = scaled
    mean = moments.mean[labels]
    offsets = embeddings.flatten(1) - mean
    # Sums by a matrix product, whose result is reproducible on a GPU, unlike that of index_add.
    of_class = F.one_hot(labels, len(moments.mean)).to(offsets)
    squares = offsets.square().sum(dim=1) @ of_class
    scale = (moments.std.square().sum(dim=1) * of_class.sum(dim=0) / squares.clamp(min=1e-12)).sqrt()
    return Rows((mean + scale[labels].unsqueeze(1) * offsets).view_as(embeddings), labels)
