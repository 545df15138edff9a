"""The server's part of a round, after the sites' adapters have been averaged.

    put the replies into the bank -> train the generator -> validate it -> distil the sites' adapters, if asked to
    -> fine-tune the global adapters

It knows nothing of Flower, so it runs in milliseconds in a test and can be used elsewhere.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fed_a2v.core.adapters import Adapters, Prompts, PromptSet
from fed_a2v.core.distillation import Teacher, distil
from fed_a2v.core.generators.base import EpochLosses, Generator
from fed_a2v.core.losses import AdapterLoss
from fed_a2v.core.metrics import cosines
from fed_a2v.core.names import listed
from fed_a2v.core.prompts import ClassPrompts, PromptBank, PrototypeRows
from fed_a2v.core.seeding import torch_generator
from fed_a2v.core.training import AdamWSettings, loss_on, train_steps
from fed_a2v.core.validation import validate
from fed_a2v.core.zero_shot import Scorer, choose_calibration, solve_adapter

log = logging.getLogger("fed_a2v")
# A line per class and epoch: for the run's log file rather than for the terminal.
class_log = logging.getLogger("fed_a2v.classes")
# Samples of a class that stand in for its prototypes where these may not be kept.
REMEMBERED_ROWS = 32
# Groups of recorded classes that play unrecorded ones, one after the other.
CALIBRATION_GROUPS = 4
# At most so many epochs of a round are reported class by class.
REPORTED_EPOCHS = 5


@dataclass(frozen=True)
class ServerStepSettings:
    """Settings of the server step; the names and meanings are those of the configuration."""

    seed: int = 0
    max_age: int = 0
    holdout: float = 0.125
    training_epochs: int = 100
    augmentation_noise: float = 0.1
    synthetic_samples_per_class: int = 20
    validation_frequency: int = 5
    unseen: tuple[str, ...] = ()
    keep_prototypes: bool = True
    distil: bool = False
    finetune: bool = True
    first_steps: int = 120
    steps: int = 40
    synthetic_share: float = 0.5
    from_nodes_adapters: bool = False
    rollback: bool = True
    optimiser: AdamWSettings = field(default_factory=lambda: AdamWSettings(5e-4, 1e-4, 64))
    max_site_share: float = 1.0
    rows_per_class: int = 0
    half_precision_bank: bool = False
    generator_waits_on_cpu: bool = False


class SiteUpdate(NamedTuple):
    """What one site has said in a round. Its adapters' weights are only needed for distillation."""

    site: str
    prompts: list[ClassPrompts]
    fingerprint: str
    weights: Sequence[Tensor] = ()


class ServerStep:
    """The state that the server keeps between rounds, and what it does with each round's replies.

    Args:
        adapters: the global adapters; changed in place.
        prompts: the class prompts.
        generator: learns the sites' prototypes; None fine-tunes on the prototypes alone.
        loss: of the adapters.
        settings: see `ServerStepSettings`.
    """

    def __init__(
        self,
        adapters: Adapters,
        prompts: PromptSet,
        generator: Generator | None,
        loss: AdapterLoss,
        settings: ServerStepSettings,
    ) -> None:
        self.adapters = adapters
        self.prompts = prompts
        self.generator = generator
        self.loss = loss
        self.settings = settings
        self.bank = PromptBank(half_precision=settings.half_precision_bank, max_site_share=settings.max_site_share)
        self.conditions = (
            prompts.clip.mean(dim=1) if generator is None else generator.conditions_from(prompts.clip, prompts.t5)
        )
        self.finetuned_rounds = 0
        # Taken off the scores of recorded classes, so that unrecorded ones are found; see `_calibrate`.
        self.calibration = 0.0
        self._calibrated_on: tuple[str, ...] = ()
        self._initial = copy.deepcopy(adapters.state_dict()) if settings.unseen else {}
        # Classes whose prototypes are gone and that the generator remembers.
        self.remembered: tuple[str, ...] = ()
        self._told_capped: dict[str, list[str]] = {}

    @property
    def trains_generator(self) -> bool:
        """Whether the settings have any use for a generator."""
        return self.generator is not None and (self.settings.finetune or self.settings.distil)

    def run(self, round_number: int, updates: Sequence[SiteUpdate]) -> dict[str, Any]:
        """Do the server's part of a round.

        Args:
            round_number: from 1.
            updates: the good replies, in a fixed order.

        Returns:
            What goes into the round's row of the metrics.
        """
        row: dict[str, Any] = {}
        self.fill_bank(round_number, updates)
        fresh = self._fresh_rows(round_number)
        if (fresh is None and not self.remembered) or not (self.settings.finetune or self.settings.distil):
            return row
        row["bank/capped_sites"] = self._tell_capped()
        log.info("=== Round %d: Training Generator and Global Adapters ===", round_number)
        if self.generator is not None:
            self.generator.move_to(self.conditions.device)
        rows = self._known_rows(round_number, fresh)
        trained_on, held_out = rows.to(self.conditions.device).split(self.settings.holdout)
        synthetic = None
        if self.generator is not None:
            if fresh is not None:  # else there is nothing to learn but its own samples
                with _timed(row, "generator"):
                    row |= self._train_generator(round_number, trained_on)
            if fresh is not None and round_number % self.settings.validation_frequency == 0 and len(held_out):
                with _timed(row, "validation"):
                    row |= self._validate(round_number, trained_on, held_out)
            synthetic = self._synthetic_rows(round_number, trained_on)
            if self.settings.generator_waits_on_cpu:
                self.generator.move_to(torch.device("cpu"))
        if self.adapters.closed_form:
            with _timed(row, "finetune"):
                row |= self._solve(rows.to(self.conditions.device))
            return self._end_of_round(rows, row)
        audio, labels = self._training_rows(trained_on, synthetic)
        steps = self.settings.first_steps if self.finetuned_rounds == 0 else self.settings.steps
        if self.settings.distil:
            with _timed(row, "distil"):
                row |= self._distil(round_number, updates, audio, labels, steps)
        if self.settings.finetune:
            with _timed(row, "finetune"):
                row |= self._finetune(round_number, audio, labels, held_out, steps)
        row["server/optimiser_steps"] = steps * (self.settings.finetune + ("distil/loss" in row))
        return self._end_of_round(rows, row)

    def _end_of_round(self, rows: PrototypeRows, row: dict[str, Any]) -> dict[str, Any]:
        self.finetuned_rounds += 1
        if self.settings.unseen and self._calibrated_on != rows.names:
            with _timed(row, "calibration"):
                self._calibrate(rows.to(self.conditions.device))
        if not self.settings.keep_prototypes:
            self.bank.forget_prototypes()
            self.remembered = rows.names
        return row

    def _fresh_rows(self, round_number: int) -> PrototypeRows | None:
        """The bank's prototypes; of a class that very many sites have, other ones each round.

        So the time of a round does not grow with the number of sites. A closed form takes all: it costs little.
        """
        limit = 0 if self.adapters.closed_form else self.settings.rows_per_class
        return self.bank.rows(limit, torch_generator(self.settings.seed, "rows", round_number))

    def _known_rows(self, round_number: int, fresh: PrototypeRows | None) -> PrototypeRows:
        """This round's prototypes, and the generator's samples for the classes that only it remembers.

        Generative replay (Shin et al. 2017): samples stand in for rows that may not be kept.
        """
        if not self.remembered:
            assert fresh is not None
            return fresh
        assert self.generator is not None
        random = torch_generator(self.settings.seed, "remembered", round_number)
        samples = self.generator.sample_classes(self.conditions_of(self.remembered), REMEMBERED_ROWS, random)
        rows = samples.flatten(0, 1)
        labels = torch.arange(len(self.remembered), device=rows.device).repeat_interleave(REMEMBERED_ROWS)
        ones = torch.ones(len(rows), device=rows.device)
        known = PrototypeRows(rows, labels, ones, torch.zeros_like(rows), self.remembered)
        return known if fresh is None else fresh.to(rows.device).joined(known)

    def _solve(self, rows: PrototypeRows) -> dict[str, Any]:
        """Closed-form adapters: all prototypes at once, without steps."""
        if len(rows.names) < 2:
            log.warning("One class alone gives no bilinear form: the adapters stay as they were")
            return {}
        labels = self._class_indices(rows.names).to(rows.labels.device)
        solve_adapter(self.adapters, rows, self.prompts.clip[labels])
        loss = loss_on(self.adapters, rows.embeddings, labels[rows.labels], self.loss)
        return {"server/adapter_finetuning_loss": loss, "rolled_back": False}

    def _calibrate(self, rows: PrototypeRows) -> None:
        """Choose the calibration on recorded classes that play unrecorded ones.

        For each group of them CLIP adapters are trained without it, from the start, on prototypes alone.
        """
        self._calibrated_on = rows.names
        if len(rows.names) < 2 * CALIBRATION_GROUPS:
            log.warning("%d recorded classes are too few to choose a calibration", len(rows.names))
            return
        shape, settings = self.prompts.clip.shape[1:], self.settings

        def fit(known: PrototypeRows, vectors: Tensor) -> Scorer:
            prompts = PromptSet(known.names, vectors.unflatten(1, shape), None)
            adapters = copy.deepcopy(self.adapters)
            adapters.load_state_dict(self._initial)
            adapters.set_standardisation(self.adapters.audio_mean, self.adapters.audio_std)
            adapters.t5 = None
            if adapters.closed_form:
                solve_adapter(adapters, known, prompts.clip)
                return scorer_of(adapters)
            random = torch_generator(settings.seed, "calibration", *known.names)
            loss = AdapterLoss(prompts, self.loss.weights)
            train_steps(
                adapters, known.embeddings, known.labels, loss, settings.first_steps, settings.optimiser, random
            )

            return scorer_of(adapters)

        def scorer_of(adapters: Adapters) -> Scorer:
            @torch.no_grad()
            def scorer(audio: Tensor, candidates: Tensor) -> Tensor:
                return cosines(adapters(audio).clip, candidates.unflatten(1, shape))

            return scorer

        vectors = self.prompts.clip[self._class_indices(rows.names).to(self.prompts.clip.device)].flatten(1)
        self.calibration = choose_calibration(fit, rows, vectors, CALIBRATION_GROUPS, settings.seed)
        log.info("Calibration of recorded against unrecorded classes: %.3f", self.calibration)

    def fill_bank(self, round_number: int, updates: Iterable[SiteUpdate]) -> None:
        """Put the replies into the bank and drop what is too old."""
        for update in updates:
            self.bank.update(update.site, update.prompts, update.fingerprint, round_number)
        for site in self.bank.expire(round_number, self.settings.max_age):
            log.info("%s has been silent for more than %d rounds: dropped", site, self.settings.max_age)

    def _tell_capped(self) -> int:
        """Sites that count for less than they say; they are named in the log whenever they are others than before."""
        cut = self.bank.capped()
        if cut and cut != self._told_capped:
            log.info(
                "aggregation.max_site_share=%g cuts what these sites count for in the moments of their classes: %s; "
                "where all are trusted, 1 lets every clip count",
                self.settings.max_site_share,
                listed([f"{site} ({len(names)} classes)" for site, names in sorted(cut.items())]),
            )
        self._told_capped = cut
        return len(cut)

    def standardise_adapters(self) -> None:
        """Standardise the adapters' input with the moments of all clips behind the bank's prototypes."""
        moments = self.bank.moments()
        if moments is not None:
            self._tell_capped()
            mean, variance = moments
            self.adapters.set_standardisation(mean.float(), variance.sqrt().float())

    def state_dict(self) -> dict[str, Any]:
        """All that the next round depends on."""
        return {
            "adapters": self.adapters.state_dict(),
            "generator": None if self.generator is None else self.generator.checkpoint(),
            "bank": self.bank.state_dict(),
            "finetuned_rounds": self.finetuned_rounds,
            "remembered": list(self.remembered),
            "calibration": self.calibration,
            "calibrated_on": list(self._calibrated_on),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.adapters.load_state_dict(state["adapters"])
        if self.generator is not None:
            self.generator.load_checkpoint(state["generator"])
        self.bank = PromptBank.from_state_dict(
            state["bank"], self.settings.half_precision_bank, self.settings.max_site_share
        )
        self.finetuned_rounds = state["finetuned_rounds"]
        self.remembered = tuple(state["remembered"])
        self.calibration = state["calibration"]
        self._calibrated_on = tuple(state["calibrated_on"])

    def _train_generator(self, round_number: int, rows: PrototypeRows) -> dict[str, Any]:
        assert self.generator is not None
        settings = self.settings
        log.info(
            "Training generator for %d epochs with augmentation=%s",
            settings.training_epochs,
            settings.augmentation_noise > 0,
        )
        history = self.generator.fit(
            rows,
            self.conditions_of(rows.names),
            settings.training_epochs,
            settings.augmentation_noise,
            torch_generator(settings.seed, "generator", round_number),
        )
        if not history:
            return {}
        _report_epochs(history, self.generator.kind.upper())
        average = sum(epoch.total for epoch in history) / len(history)
        log.info("Generator training completed. Average loss: %.4f", average)
        parts = {f"generator/{name}": value for name, value in history[-1].parts.items()}
        return {"server/generator_loss": average, **parts}

    def _validate(self, round_number: int, rows: PrototypeRows, held_out: PrototypeRows) -> dict[str, Any]:
        assert self.generator is not None
        log.info("Validating generator at round %d", round_number)
        random = torch_generator(self.settings.seed, "validation", round_number)
        try:
            result = validate(self.generator, rows, held_out, self.conditions_of(rows.names), random)
        except ValueError as error:  # samples that are not finite
            log.warning("The generator cannot be validated: %s", error)
            return {}
        result.report()
        return result.metrics()

    def _distil(
        self, round_number: int, updates: Sequence[SiteUpdate], audio: Tensor, labels: Tensor, steps: int
    ) -> dict[str, Any]:
        class_of = {name: index for index, name in enumerate(self.prompts.names)}
        clips = self.bank.clips()
        teachers = [
            Teacher(update.weights, {class_of[said.name]: clips[update.site, said.name] for said in update.prompts})
            for update in updates
        ]
        random = torch_generator(self.settings.seed, "distil", round_number)
        losses = distil(self.adapters, self.prompts, teachers, audio, labels, steps, self.settings.optimiser, random)
        return {f"distil/{name}": value for name, value in losses.items()}

    def _finetune(
        self, round_number: int, audio: Tensor, labels: Tensor, held_out: PrototypeRows, steps: int
    ) -> dict[str, Any]:
        settings = self.settings
        before = copy.deepcopy(self.adapters.state_dict())
        loss_before = self._held_out_loss(held_out)
        losses = train_steps(
            self.adapters,
            audio,
            labels,
            self.loss,
            steps,
            settings.optimiser,
            torch_generator(settings.seed, "finetune", round_number),
            self._targets() if settings.from_nodes_adapters else None,
        )
        row: dict[str, Any] = {"server/adapter_finetuning_loss": losses.pop("loss")}
        row |= {f"finetune/{name}": value for name, value in losses.items()}
        row["rolled_back"] = False
        if loss_before is not None:
            loss_after = self._held_out_loss(held_out)
            row |= {"finetune/held_out_before": loss_before, "finetune/held_out_after": loss_after}
            if settings.rollback and not loss_after <= loss_before:  # type: ignore[operator]
                self.adapters.load_state_dict(before)
                row["rolled_back"] = True
                log.warning(
                    "Fine-tuning made the held-out loss worse (%.4f to %.4f): rolled back",
                    loss_before,
                    loss_after,
                )
        return row

    def _synthetic_rows(self, round_number: int, real: PrototypeRows) -> tuple[Tensor, Tensor] | None:
        """Equally many synthetic embeddings of every class, and their labels."""
        if self.generator is None or self.settings.synthetic_share == 0:
            return None
        classes, number = len(real.names), self.settings.synthetic_samples_per_class
        random = torch_generator(self.settings.seed, "synthetic", round_number)
        rows = self.generator.sample_classes(self.conditions_of(real.names), number, random).flatten(0, 1)
        return rows, torch.arange(classes, device=real.labels.device).repeat_interleave(number)

    def _training_rows(self, real: PrototypeRows, synthetic: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Real prototypes and synthetic rows, in the shares that the settings ask for, with their class indices.

        Prototypes are repeated, not dropped, to reach their share; `balanced_order` evens out the classes.
        """
        share, number = self.settings.synthetic_share, self.settings.synthetic_samples_per_class
        audio, labels = real.embeddings, real.labels
        if synthetic is not None and share == 1:
            audio, labels = synthetic
        elif synthetic is not None:
            wanted = number * (1 - share) / share
            repeated = []
            for label in range(len(real.names)):
                rows = torch.nonzero(real.labels == label).flatten()
                repeated.append(rows.repeat(max(1, round(wanted / len(rows)))))
            index = torch.cat(repeated)
            audio = torch.cat([real.embeddings[index], synthetic[0]])
            labels = torch.cat([real.labels[index], synthetic[1]])
        return audio, self._class_indices(real.names).to(labels.device)[labels]

    def _class_indices(self, names: Iterable[str]) -> Tensor:
        """The places of classes among the prompts."""
        class_of = {name: index for index, name in enumerate(self.prompts.names)}
        return torch.tensor([class_of[name] for name in names])

    def _held_out_loss(self, held_out: PrototypeRows) -> float | None:
        if not len(held_out):
            return None
        labels = self._class_indices(held_out.names).to(held_out.labels.device)[held_out.labels]
        return loss_on(self.adapters, held_out.embeddings, labels, self.loss, self.settings.optimiser.chunk_size)

    def _targets(self) -> Prompts:
        """The sites' mean adapter outputs; the class prompt stands in for a class that no site has sent."""
        return Prompts(
            self._sites_outputs("clip", self.prompts.clip),
            None if self.prompts.t5 is None else self._sites_outputs("t5", self.prompts.t5),
        )

    def _sites_outputs(self, kind: str, prompts: Tensor) -> Tensor:
        outputs = self.bank.mean_outputs(kind, self.prompts.names)
        return torch.stack(
            [prompt if output is None else output.to(prompt) for output, prompt in zip(outputs, prompts, strict=True)]
        )

    def conditions_of(self, names: Iterable[str]) -> Tensor:
        """(C, V) conditions of the classes `names`, as the generator makes them from their prompts."""
        return self.conditions[self._class_indices(names).to(self.conditions.device)]


def _report_epochs(history: list[EpochLosses], kind: str) -> None:
    """The guide's line for each class, for evenly spaced epochs up to the last."""
    shown = {round((k + 1) * len(history) / REPORTED_EPOCHS) for k in range(REPORTED_EPOCHS)}
    for number, epoch in enumerate(history, start=1):
        if number in shown:
            for name, parts in epoch.per_class.items():
                class_log.info(
                    "  Epoch %d Class '%s': %s Loss=%.4f (Recon=%.4f, KL=%.4f, Sim=%.4f)",
                    number,
                    name,
                    kind,
                    sum(parts.values()),
                    parts.get("reconstruction", 0.0),
                    parts.get("kl", 0.0),
                    parts.get("similarity", 0.0),
                )


@contextmanager
def _timed(row: dict[str, Any], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    row[f"seconds/{phase}"] = time.perf_counter() - start
