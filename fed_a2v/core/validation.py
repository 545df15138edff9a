"""Validation of a generator in the server step, on prototypes that it has not seen and on fresh samples.

Prototypes are means of groups of clips, and lie closer together than samples do, which are like single clips. Where
the spread matters, they are stretched first, by what the training prototypes tell of their class's spread.
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
# A line per class: for the run's log file rather than for the terminal.
class_log = logging.getLogger("fed_a2v.classes")

# Fresh samples of each class.
SAMPLES = 100
# About as many rows are compared at most: a validation takes seconds, not minutes.
COMPARED_ROWS = 600
# What samples and prototypes are compared by, and the guide's words for it.
MEASURES = {"similarity": "Cosine Similarity", "mse": "MSE Loss", "l1": "L1 Loss"}


@dataclass(frozen=True)
class Validation:
    """What a validation has found.

    Attributes:
        agreement: cosine, MSE and L1 between samples and held-out prototypes.
        real: the same of real rows in the samples' place: training prototypes, stretched to the spread of clips. What
            as good samples as clips reach, and copies of the training rows as well.
        blind: the same of a constant that knows no class, the mean over all classes. It may score more than real rows,
            for it has no spread: a cosine says little, and nothing without the other two beside it.
        rows: held-out prototypes behind them.
        quality: the three gates and the diagnostics, on stretched prototypes.
        active: latent units that vary within classes; None for a generator without a latent.
        network: what the network does alone, on the same rows; None for a generator without one.
    """

    agreement: SampleValidation
    real: SampleValidation
    blind: SampleValidation
    rows: int
    quality: GeneratorQuality
    active: int | None
    network: NetworkFigures | None

    def warnings(self) -> list[str]:
        """What is wrong with the generator, and what to do about it."""
        return warnings_for(self.quality, self.active)

    def metrics(self) -> dict[str, Any]:
        """All figures, by the names under which a round's row has them."""
        row: dict[str, Any] = {"server/generator_validation_rows": self.rows}
        for measure in MEASURES:
            for behind, found in (("", self.agreement), ("_real", self.real), ("_blind", self.blind)):
                row[f"server/generator_validation_{measure}{behind}"] = getattr(found, measure)
        row["generator_validation_per_class"] = self.agreement.per_class
        row |= {f"generator_quality/{name}": value for name, value in self.quality.as_dict().items()}
        if self.active is not None:
            row["generator_quality/active_units"] = self.active
        if self.network is not None:
            row |= {f"generator_network/{name}": value for name, value in self.network.as_dict().items()}
        return row

    def report(self) -> None:
        """Say it in the log, in the guide's words."""
        log.info("=== Generator Validation Metrics ===")
        for measure, words in MEASURES.items():
            form = "Average %s: %.4f (real rows: %.4f, class-blind: %.4f)"
            if measure != "similarity":
                form = form.replace("%.4f", "%.6f")
            log.info(form, words, *(getattr(found, measure) for found in (self.agreement, self.real, self.blind)))
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
    """A gate's value with its interval, what it rests on, and its verdict."""
    around = "" if gate.interval is None else f" [{gate.interval[0]:.3f}, {gate.interval[1]:.3f}]"
    real = "" if gate.real is None else f", real rows {gate.real:.3f}"
    failed = "failed" if gate.surely_failed else "outside its band, perhaps by chance"
    verdict = {True: "passed", False: failed, None: f"no verdict below {FEWEST_JUDGED} rows"}[gate.passed]
    return f"{gate.name}: {gate.value:.3f}{around} on {gate.rows} rows{real}: {verdict}"


@torch.no_grad()
def validate(
    generator: Generator,
    trained_on: PrototypeBatch,
    held_out: PrototypeBatch,
    conditions: Tensor,
    random: torch.Generator,
) -> Validation | None:
    """Validate a generator; None where no class has a held-out prototype beside two others.

    Args:
        generator: after its training.
        trained_on: N prototypes that it was trained on.
        held_out: M others, of some of the same C classes; of those classes that have two of the N.
        conditions: (C, V), in the order of both's `names`.
        random: source of the samples.

    Raises:
        ValueError: samples are not finite.
    """
    classes, device = len(conditions), held_out.labels.device
    held_out = held_out.take(trained_on.labels.bincount(minlength=classes)[held_out.labels] >= 2)
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


def _as_clips(stretched: Rows, moments: ClassMoments) -> Rows:
    """Rows that are `stretched`, with exactly the variance of their class's clips.

    Of few rows each column cannot have it; their mean square can.
    """
    embeddings, labels = stretched
    mean = moments.mean[labels]
    offsets = embeddings.flatten(1) - mean
    of_class = F.one_hot(labels, len(moments.mean)).to(offsets)  # a product: the same bits each time on a GPU
    squares = offsets.square().sum(dim=1) @ of_class
    scale = (moments.std.square().sum(dim=1) * of_class.sum(dim=0) / squares.clamp(min=1e-12)).sqrt()
    return Rows((mean + scale[labels].unsqueeze(1) * offsets).view_as(embeddings), labels)
