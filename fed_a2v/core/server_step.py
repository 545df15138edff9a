"""The server's part of a round, after the sites' adapters have been averaged.

    put the replies into the bank -> train the generator -> validate it -> distil the sites' adapters, if asked to
    -> fine-tune the global adapters

It knows nothing of Flower, so it runs in milliseconds in a test and can be used elsewhere.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fed_a2v.core.adapters import AdapterOutput, Adapters, ClassPrompts
from fed_a2v.core.distillation import Teacher, distil
from fed_a2v.core.generators.base import EpochLosses, Generator
from fed_a2v.core.losses import AdapterLoss
from fed_a2v.core.metrics import cosines
from fed_a2v.core.names import listed
from fed_a2v.core.prototype_bank import ClassStatistics, PooledMoments, PrototypeBank, PrototypeBatch
from fed_a2v.core.seeding import torch_generator
from fed_a2v.core.training import AdamWSettings, Mixture, loss_on, train_steps
from fed_a2v.core.validation import validate
from fed_a2v.core.zero_shot import Scorer, choose_calibration, solve_adapter

log = logging.getLogger("fed_a2v")
# A line per class and epoch: for the run's log file rather than for the terminal.
class_log = logging.getLogger("fed_a2v.classes")
# Samples of a class that stand in for its prototypes where these may not be kept.
REPLAYED_ROWS = 32
# Groups of recorded classes that play unrecorded ones, one after the other.
CALIBRATION_GROUPS = 4
# At most so many epochs of a round are reported class by class.
REPORTED_EPOCHS = 5
# The guide's words for the terms of a VAE's loss.
PART_NAMES = {"reconstruction": "Recon", "kl": "KL", "similarity": "Sim"}


@dataclass(frozen=True)
class ServerStepSettings:
    """Settings of the server step; the names and meanings are those of the configuration."""

    seed: int = 0
    max_age: int = 0
    holdout: float = 0.125
    training_epochs: int = 100
    min_steps: int = 0
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


class ClientUpdate(NamedTuple):
    """What one site has said in a round. Its adapters' weights are only needed for distillation."""

    site: str
    prompts: list[ClassStatistics]
    fingerprint: str
    weights: Sequence[Tensor] = ()


class _Synthetic(NamedTuple):
    """(N, S, Da) samples with their (N,) labels, and others of the same classes where the T5 adapter has its own."""

    audio: Tensor
    labels: Tensor
    t5_audio: Tensor | None


class _Material(NamedTuple):
    """(N, S, Da) rows with their (N,) class indices, and which of them are synthetic, where any are.

    Where the T5 adapter has samples of its own, `t5_audio` are the rows that it learns from.
    """

    audio: Tensor
    labels: Tensor
    mixture: Mixture | None
    t5_audio: Tensor | None


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
        prompts: ClassPrompts,
        generator: Generator | None,
        loss: AdapterLoss,
        settings: ServerStepSettings,
    ) -> None:
        self.adapters = adapters
        self.prompts = prompts
        self.generator = generator
        self.loss = loss
        self.settings = settings
        self.bank = PrototypeBank(half_precision=settings.half_precision_bank, max_site_share=settings.max_site_share)
        self.conditions = (
            prompts.clip.mean(dim=1) if generator is None else generator.conditions_from(prompts.clip, prompts.t5)
        )
        self.finetuned_rounds = 0
        # Taken off the scores of recorded classes, so that unrecorded ones are found; see `_calibrate`.
        self.calibration = 0.0
        self._calibrated_on: tuple[str, ...] = ()
        self._initial = copy.deepcopy(adapters.state_dict()) if settings.unseen else {}
        self._said_nothing_held_out = False
        # Classes whose prototypes are gone and that the generator remembers.
        self.replayed: tuple[str, ...] = ()
        self._told_capped: dict[str, list[str]] = {}

    @property
    def trains_generator(self) -> bool:
        """Whether the settings have any use for a generator."""
        return self.generator is not None and (self.settings.finetune or self.settings.distil)

    def run(self, round_number: int, updates: Sequence[ClientUpdate]) -> dict[str, Any]:
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
        if (fresh is None and not self.replayed) or not (self.settings.finetune or self.settings.distil):
            return row
        row |= {"bank/capped_sites": self._tell_capped(), "bank/contradicted": len(self.bank.contradicted)}
        log.info("=== Round %d: Training Generator and Global Adapters ===", round_number)
        device = self.conditions.device
        if self.generator is not None:
            self.generator.move_to(device)
        trained_on = self._known_rows(round_number, fresh).to(device)
        held_out = self._held_out_rows(trained_on)
        if not len(held_out):
            self._say_that_nothing_is_held_out()
        synthetic = None
        if self.generator is not None:
            if fresh is not None and len(fresh):  # else there is nothing to learn but its own samples
                with _timed(row, "generator"):
                    row |= self._train_generator(round_number, trained_on)
                if len(held_out) and self._validates(round_number):
                    with _timed(row, "validation"):
                        row |= self._validate(round_number, fresh.to(device), held_out)
            synthetic = self._synthetic_rows(round_number, trained_on)
            if self.settings.generator_waits_on_cpu:
                self.generator.move_to(torch.device("cpu"))
        if self.adapters.closed_form:
            with _timed(row, "finetune"):
                row |= self._solve(trained_on.joined(held_out))
            return self._end_of_round(trained_on, held_out, row)
        material = self._material(trained_on, synthetic)
        steps = self.settings.first_steps if self.finetuned_rounds == 0 else self.settings.steps
        if self.settings.distil:
            with _timed(row, "distil"):
                row |= self._distil(round_number, updates, material, steps)
        if self.settings.finetune:
            with _timed(row, "finetune"):
                row |= self._finetune(round_number, material, held_out, steps, self._may_roll_back(fresh))
        row["server/optimiser_steps"] = steps * (self.settings.finetune + ("distil/loss" in row))
        return self._end_of_round(trained_on, held_out, row)

    def _end_of_round(
        self, trained_on: PrototypeBatch, held_out: PrototypeBatch, row: dict[str, Any]
    ) -> dict[str, Any]:
        self.finetuned_rounds += 1
        if self.settings.unseen and self._calibrated_on != trained_on.names:
            with _timed(row, "calibration"):
                self._calibrate(trained_on.joined(held_out))
        if not self.settings.keep_prototypes:
            self.bank.forget_prototypes()
            self.replayed = trained_on.names
        return row

    def _fresh_rows(self, round_number: int) -> PrototypeBatch | None:
        """The bank's prototypes to train on; of a class that very many sites have, other ones each round.

        So the time of a round does not grow with the number of sites. A closed form takes all: it costs little.
        """
        limit = 0 if self.adapters.closed_form else self.settings.rows_per_class
        return self.bank.training_rows(limit, torch_generator(self.settings.seed, "rows", round_number))

    def _held_out_rows(self, trained_on: PrototypeBatch) -> PrototypeBatch:
        """The bank's prototypes that no round trains on; never the generator's own samples.

        The sites' adapters have learned the clips behind them; what the server step trains has not.
        """
        held_out = self.bank.held_out_rows()
        nothing = torch.empty(0, dtype=torch.int64)
        return trained_on.take(nothing) if held_out is None else held_out.to(trained_on.labels.device)

    def _say_that_nothing_is_held_out(self) -> None:
        """Say once why there are no figures on held out prototypes."""
        if self._said_nothing_held_out or self.settings.holdout == 0:
            return
        self._said_nothing_held_out = True
        if self.replayed:
            log.info(
                "No averages that were held out came in this round: the generator is not validated, and fine-tuning "
                "not rolled back. So it is in every such round"
            )
        else:
            log.warning(
                "No class has three averages, so none can be held out: the generator is not validated, and a "
                "fine-tuning that does harm is not rolled back. A site with three times share.min_clips clips of a "
                "class gives three with share=prototypes; so do three sites that have the class"
            )

    def _validates(self, round_number: int) -> bool:
        """Whether validation is due. What is forgotten after its round can be compared in no other."""
        return not self.settings.keep_prototypes or round_number % self.settings.validation_frequency == 0

    def _known_rows(self, round_number: int, fresh: PrototypeBatch | None) -> PrototypeBatch:
        """The prototypes to train on, and the generator's samples for the classes that only it remembers.

        Generative replay (Shin et al. 2017): samples stand in for rows that may not be kept.
        """
        if not self.replayed:
            assert fresh is not None
            return fresh
        assert self.generator is not None
        random = torch_generator(self.settings.seed, "remembered", round_number)
        samples = self.generator.sample_classes(self.conditions_of(self.replayed), REPLAYED_ROWS, random)
        rows = samples.flatten(0, 1)
        labels = torch.arange(len(self.replayed), device=rows.device).repeat_interleave(REPLAYED_ROWS)
        ones = torch.ones(len(rows), device=rows.device)
        known = PrototypeBatch(rows, labels, ones, torch.zeros_like(rows), self.replayed)
        return known if fresh is None else fresh.to(rows.device).joined(known)

    def _solve(self, rows: PrototypeBatch) -> dict[str, Any]:
        """Closed-form adapters: all prototypes at once, without steps."""
        if len(rows.names) < 2:
            log.warning("One class alone gives no bilinear form: the adapters stay as they were")
            return {}
        labels = self._class_indices(rows.names).to(rows.labels.device)
        solve_adapter(self.adapters, rows, self.prompts.clip[labels])
        loss = loss_on(self.adapters, rows.embeddings, labels[rows.labels], self.loss)
        return {"server/adapter_finetuning_loss": loss, "rolled_back": False}

    def _calibrate(self, rows: PrototypeBatch) -> None:
        """Choose the calibration on recorded classes that play unrecorded ones.

        For each group of them CLIP adapters are trained without it, from the start, on prototypes alone.
        """
        self._calibrated_on = rows.names
        if len(rows.names) < 2 * CALIBRATION_GROUPS:
            log.warning("%d recorded classes are too few to choose a calibration", len(rows.names))
            return
        shape, settings = self.prompts.clip.shape[1:], self.settings

        def fit(known: PrototypeBatch, vectors: Tensor) -> Scorer:
            prompts = ClassPrompts(known.names, vectors.unflatten(1, shape), None)
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

    def fill_bank(self, round_number: int, updates: Iterable[ClientUpdate]) -> None:
        """Put the replies into the bank, drop what is too old or contradicted, decide what of the new is held out."""
        news = False
        for update in updates:
            self.bank.update(update.site, update.prompts, update.fingerprint, round_number)
            news = news or any(prompt.audio is not None for prompt in update.prompts)
        for site in self.bank.expire(round_number, self.settings.max_age):
            log.info("%s has been silent for more than %d rounds: dropped", site, self.settings.max_age)
            news = True
        if news:
            self._contradict()
        share, limit = self.settings.holdout, self.settings.rows_per_class
        self.bank.hold_out(share, max(1, round(share * limit)) if limit else 0)

    def _contradict(self) -> None:
        """Leave out what other sites contradict; say so whenever it is something else than before."""
        before = self.bank.contradicted
        self.bank.contradict()
        if self.bank.contradicted and self.bank.contradicted != before:
            classes = Counter(site for site, _ in self.bank.contradicted)
            log.warning(
                "Left out of the server step, for by the other sites' averages they are of another class: those of %s",
                listed([f"{site} ({number} classes)" for site, number in sorted(classes.items())]),
            )

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

    def standardise_adapters(self, pooled: Mapping[str, PooledMoments] | None = None) -> None:
        """Standardise the adapters' input with the moments of all clips behind the bank's prototypes.

        Args:
            pooled: by site, the moments of all clips of those that share no class.
        """
        bank = replace(self.bank, entries=dict(self.bank.entries), fingerprints=dict(self.bank.fingerprints))
        for site, of_site in (pooled or {}).items():
            bank.update(site, [of_site.as_prompts(site)], "", 0)
        moments = bank.moments()
        if moments is not None:
            self._tell_capped()
            mean, variance = moments
            self.adapters.set_standardisation(mean.float(), variance.sqrt().float())

    def state_dict(self) -> dict[str, Any]:
        """By component, all that the next round depends on."""
        return {
            "adapters": self.adapters.state_dict(),
            "generator": None if self.generator is None else self.generator.checkpoint(),
            "bank": self.bank.state_dict(),
            "server_step": {
                "finetuned_rounds": self.finetuned_rounds,
                "replayed": list(self.replayed),
                "calibration": self.calibration,
                "calibrated_on": list(self._calibrated_on),
                "said_nothing_held_out": self._said_nothing_held_out,
            },
        }

    def load_state_dict(self, components: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.adapters.load_state_dict(components["adapters"])
        if self.generator is not None:
            self.generator.load_checkpoint(components["generator"])
        self.bank = PrototypeBank.from_state_dict(
            components["bank"], self.settings.half_precision_bank, self.settings.max_site_share
        )
        own = components["server_step"]
        self.finetuned_rounds = own["finetuned_rounds"]
        self.replayed = tuple(own["replayed"])
        self.calibration = own["calibration"]
        self._calibrated_on = tuple(own["calibrated_on"])
        self._said_nothing_held_out = own["said_nothing_held_out"]

    def _train_generator(self, round_number: int, rows: PrototypeBatch) -> dict[str, Any]:
        assert self.generator is not None
        settings = self.settings
        epochs = self._training_epochs(rows)
        log.info("Training generator for %d epochs with augmentation=%s", epochs, settings.augmentation_noise > 0)
        history = self.generator.fit(
            rows,
            self.conditions_of(rows.names),
            epochs,
            settings.augmentation_noise,
            torch_generator(settings.seed, "generator", round_number),
        )
        if not history:
            return {}
        _report_epochs(history, self.generator.kind.upper())
        average = sum(epoch.total for epoch in history) / len(history)
        log.info("Generator training completed. Average loss: %.4f", average)
        last = history[-1]
        parts = {f"generator/{name}": value for name, value in (*last.parts.items(), *last.critic.items())}
        return {"server/generator_loss": average, **parts}

    def _training_epochs(self, rows: PrototypeBatch) -> int:
        """As many epochs as are asked for, or more: what a network learns in depends on its steps, not on epochs."""
        assert self.generator is not None
        settings, steps = self.settings, self.generator.steps_per_epoch(rows)
        if not steps or settings.training_epochs * steps >= settings.min_steps:
            return settings.training_epochs
        log.info(
            "%d epochs on %d rows are %d steps of the generator, generator.min_steps=%d asks for more",
            settings.training_epochs,
            len(rows),
            settings.training_epochs * steps,
            settings.min_steps,
        )
        return math.ceil(settings.min_steps / steps)

    def _validate(self, round_number: int, rows: PrototypeBatch, held_out: PrototypeBatch) -> dict[str, Any]:
        assert self.generator is not None
        log.info("Validating generator at round %d", round_number)
        random = torch_generator(self.settings.seed, "validation", round_number)
        try:
            result = validate(self.generator, rows, held_out, self.conditions_of(rows.names), random)
        except ValueError as error:  # samples that are not finite
            log.warning("The generator cannot be validated: %s", error)
            return {}
        if result is None:
            self._say_that_nothing_is_held_out()
            return {}
        result.report()
        return result.metrics()

    def _distil(
        self, round_number: int, updates: Sequence[ClientUpdate], material: _Material, steps: int
    ) -> dict[str, Any]:
        class_of = {name: index for index, name in enumerate(self.prompts.names)}
        clips = self.bank.clips()
        teachers = [
            Teacher(
                update.weights,
                {
                    class_of[said.name]: clips[update.site, said.name]
                    for said in update.prompts
                    if (update.site, said.name) not in self.bank.contradicted
                },
            )
            for update in updates
        ]
        random = torch_generator(self.settings.seed, "distil", round_number)
        losses = distil(
            self.adapters,
            self.prompts,
            teachers,
            material.audio,
            material.labels,
            steps,
            self.settings.optimiser,
            random,
            material.mixture,
            material.t5_audio,
        )
        return {f"distil/{name}": value for name, value in losses.items()}

    def _may_roll_back(self, fresh: PrototypeBatch | None) -> bool:
        """Whether held-out rows may undo a fine-tuning.

        Not where classes are trained that only the generator remembers: of these nothing is held out, and what a round
        gains for them it may take from the classes that have just come, which the sites' adapters fit best before it.
        """
        return self.settings.rollback and set(self.replayed) <= set(() if fresh is None else fresh.names)

    def _finetune(
        self, round_number: int, material: _Material, held_out: PrototypeBatch, steps: int, may_roll_back: bool
    ) -> dict[str, Any]:
        settings = self.settings
        before = copy.deepcopy(self.adapters.state_dict())
        loss_before = self._held_out_loss(held_out)
        losses = train_steps(
            self.adapters,
            material.audio,
            material.labels,
            self.loss,
            steps,
            settings.optimiser,
            torch_generator(settings.seed, "finetune", round_number),
            self._targets() if settings.from_nodes_adapters else None,
            mixture=material.mixture,
            t5_audio=material.t5_audio,
        )
        row: dict[str, Any] = {"server/adapter_finetuning_loss": losses.pop("loss")}
        row |= {f"finetune/{name}": value for name, value in losses.items()}
        row["rolled_back"] = False
        if loss_before is not None:
            loss_after = self._held_out_loss(held_out)
            row |= {"finetune/held_out_before": loss_before, "finetune/held_out_after": loss_after}
            row["finetune/held_out_rows"] = len(held_out)
            if may_roll_back and not loss_after <= loss_before:  # type: ignore[operator]
                self.adapters.load_state_dict(before)
                row["rolled_back"] = True
                log.warning(
                    "Fine-tuning made the held-out loss worse (%.4f to %.4f): rolled back",
                    loss_before,
                    loss_after,
                )
        return row

    def _synthetic_rows(self, round_number: int, real: PrototypeBatch) -> _Synthetic | None:
        """Equally many synthetic embeddings of every class."""
        if self.generator is None or self.settings.synthetic_share == 0:
            return None
        classes, number = len(real.names), self.settings.synthetic_samples_per_class
        random = torch_generator(self.settings.seed, "synthetic", round_number)
        audio, t5_audio = self.generator.sample_sides(self.conditions_of(real.names), number, random)
        labels = torch.arange(classes, device=real.labels.device).repeat_interleave(number)
        return _Synthetic(audio.flatten(0, 1), labels, None if t5_audio is None else t5_audio.flatten(0, 1))

    def _material(self, real: PrototypeBatch, synthetic: _Synthetic | None) -> _Material:
        """What the adapters are trained on: prototypes and synthetic rows, drawn by `finetune.synthetic_share`."""
        audio, labels, mixture, t5_audio = real.embeddings, real.labels, None, None
        if synthetic is not None and self.settings.synthetic_share == 1:
            audio, labels, t5_audio = synthetic
        elif synthetic is not None:
            drawn = torch.arange(len(real) + len(synthetic.labels), device=labels.device) >= len(real)
            mixture = Mixture(drawn, self.settings.synthetic_share)
            if synthetic.t5_audio is not None:
                t5_audio = torch.cat([audio, synthetic.t5_audio])
            audio, labels = torch.cat([audio, synthetic.audio]), torch.cat([labels, synthetic.labels])
        return _Material(audio, self._class_indices(real.names).to(labels.device)[labels], mixture, t5_audio)

    def _class_indices(self, names: Iterable[str]) -> Tensor:
        """The places of classes among the prompts."""
        class_of = {name: index for index, name in enumerate(self.prompts.names)}
        return torch.tensor([class_of[name] for name in names])

    def _held_out_loss(self, held_out: PrototypeBatch) -> float | None:
        if not len(held_out):
            return None
        labels = self._class_indices(held_out.names).to(held_out.labels.device)[held_out.labels]
        return loss_on(self.adapters, held_out.embeddings, labels, self.loss, self.settings.optimiser.chunk_size)

    def _targets(self) -> AdapterOutput:
        """The sites' mean adapter outputs; the class prompt stands in for a class that no site has sent."""
        return AdapterOutput(
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
    """The guide's line for each class, or one for all, for evenly spaced epochs up to the last."""
    shown = {round((k + 1) * len(history) / REPORTED_EPOCHS) for k in range(REPORTED_EPOCHS)}
    for number, epoch in enumerate(history, start=1):
        if number in shown:
            for name, parts in epoch.per_class.items():
                loss = _loss_in_words(kind, sum(parts.values()), parts)
                class_log.info("  Epoch %d Class '%s': %s", number, name, loss)
            if not epoch.per_class:
                class_log.info("  Epoch %d: %s", number, _loss_in_words(kind, epoch.total, epoch.parts))
            if epoch.critic:
                class_log.info(
                    "  Epoch %d: %s", number, _loss_in_words("Critic", sum(epoch.critic.values()), epoch.critic)
                )


def _loss_in_words(of: str, total: float, parts: Mapping[str, float]) -> str:
    """A loss and, in brackets, the terms that add up to it."""
    terms = ", ".join(
        f"{PART_NAMES.get(name) or name.replace('_', ' ').capitalize()}={value:.4f}" for name, value in parts.items()
    )
    return f"{of} Loss={total:.4f}" + (f" ({terms})" if terms else "")


@contextmanager
def _timed(row: dict[str, Any], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    row[f"seconds/{phase}"] = time.perf_counter() - start
