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

from fed_a2v.core.generators.base import Generator
from fed_a2v.core.generators.moments import ClassMoments
from fed_a2v.core.prompts import PrototypeRows
from fed_a2v.core.quality import (
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


@dataclass(frozen=True)
class Validation:
    """What a validation has found.

    Attributes:
        agreement: cosine, MSE and L1 between samples and held-out prototypes.
        quality: the three gates and the diagnostics, on stretched prototypes.
        active: latent units that vary within classes; None for a generator without a latent.
    """

    agreement: SampleValidation
    quality: GeneratorQuality
    active: int | None

    def warnings(self) -> list[str]:
        """What is wrong with the generator, and what to do about it."""
        return warnings_for(self.quality, self.active)

    def metrics(self) -> dict[str, Any]:
        """All figures, by the names under which a round's row has them."""
        row: dict[str, Any] = {
            "server/generator_validation_similarity": self.agreement.similarity,
            "server/generator_validation_mse": self.agreement.mse,
            "server/generator_validation_l1": self.agreement.l1,
            "generator_validation_per_class": self.agreement.per_class,
        }
        row |= {f"generator_quality/{name}": value for name, value in self.quality.as_dict().items()}
        if self.active is not None:
            row["generator_quality/active_units"] = self.active
        return row

    def report(self) -> None:
        """Say it in the log, in the guide's words."""
        log.info("=== Generator Validation Metrics ===")
        log.info("Average Cosine Similarity: %.4f", self.agreement.similarity)
        log.info("Average MSE Loss: %.6f", self.agreement.mse)
        log.info("Average L1 Loss: %.6f", self.agreement.l1)
        log.info("Classes validated: %d", len(self.agreement.per_class))
        for name, similarity in self.agreement.per_class.items():
            class_log.info("  - %s: %.4f", name, similarity)
        for gate in self.quality.gates():
            if gate.value is not None:
                class_log.info("  %s: %.3f (real rows: %.3f)", gate.name, gate.value, gate.real or float("nan"))
        for warning in self.warnings():
            log.warning("%s", warning)


@torch.no_grad()
def validate(
    generator: Generator,
    trained_on: PrototypeRows,
    held_out: PrototypeRows,
    conditions: Tensor,
    random: torch.Generator,
) -> Validation:
    """Validate a generator.

    Args:
        generator: after its training.
        trained_on: N prototypes that it was trained on.
        held_out: M others, of some of the same C classes.
        conditions: (C, V), in the order of both's `names`.
        random: source of the samples.

    Raises:
        ValueError: no class has a held-out prototype, or samples are not finite.
    """
    classes, device = len(conditions), held_out.labels.device
    samples = generator.sample_classes(conditions, SAMPLES, random)
    synthetic = Rows(samples.flatten(0, 1), torch.arange(classes, device=device).repeat_interleave(SAMPLES))
    moments = ClassMoments()
    moments.fit(trained_on)
    seen, unseen = moments.spread_rows(trained_on), moments.spread_rows(held_out)
    posterior = generator.posterior(seen.view_as(trained_on.embeddings), conditions[trained_on.labels])
    return Validation(
        validate_samples(synthetic, Rows(held_out.embeddings, held_out.labels), held_out.names),
        assess(
            Rows(seen, trained_on.labels), Rows(unseen, held_out.labels), synthetic, seeds=1, max_rows=COMPARED_ROWS
        ),
        None if posterior is None else active_units(posterior[0], trained_on.labels),
    )
