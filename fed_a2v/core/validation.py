"""Validation of a generator in the server step, on held-out prototypes and new samples.

Prototypes are means of groups of clips, so they vary less than samples, which are like single clips. Where the spread
matters, the prototypes are first scaled to the spread of their class, estimated from the training prototypes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fed_a2v.core.generators.base import Generator
from fed_a2v.core.generators.parts.moments import ClassMoments
from fed_a2v.core.network import NetworkFigures, examine
from fed_a2v.core.prototype_bank import PrototypeBatch
from fed_a2v.core.quality import (
    FEWEST_JUDGED,
    Gate,
    GeneratorQuality,
    Rows,
    SampleValidation,
    active_units,
    assess,
    validate_samples,
    warnings_for,
)

log = logging.getLogger("fed_a2v")
# A line per class, which only the log file of the run gets.
class_log = logging.getLogger("fed_a2v.classes")

# Samples of each class.
SAMPLES = 100
# About the maximum number of rows to compare, so that a validation takes seconds, not minutes.
COMPARED_ROWS = 600
# Measures of samples against prototypes, with their names in the log, which are those of the guide.
MEASURES = {"similarity": "Cosine Similarity", "mse": "MSE Loss", "l1": "L1 Loss"}


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
