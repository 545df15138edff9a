"""The server's part of a round, after the sites' adapters have been averaged; the Flower strategy calls it.

    store the replies in the bank -> train the generator -> validate it -> distil the sites' adapters (optional)
    -> fine-tune the global adapters

It does not depend on Flower, so a test runs it in milliseconds and other projects can use it. The file is long because
a round is one sequence over one state: `ServerStep.run` reads from top to bottom, and its steps follow.
"""

from __future__ import annotations

import copy
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fed_a2v.core.adapters import AdapterOutput, Adapters, ClassPrompts
from fed_a2v.core.class_sums import ClassSums
from fed_a2v.core.distillation import Teacher, distil
from fed_a2v.core.generator_training import train_generator
from fed_a2v.core.generators.base import Generator
from fed_a2v.core.losses import AdapterLoss
from fed_a2v.core.names import listed
from fed_a2v.core.prototype_bank import PrototypeBank
from fed_a2v.core.seeding import torch_generator
from fed_a2v.core.statistics import ClassStatistics, PooledMoments, PrototypeBatch
from fed_a2v.core.sum_bank import SumBank
from fed_a2v.core.training import AdamWSettings, SyntheticRows, TrainingRows, loss_on, mixed_rows, train_steps
from fed_a2v.core.unseen_sums import calibrated_discriminant
from fed_a2v.core.validation import validate
from fed_a2v.core.zero_shot import CALIBRATION_GROUPS, calibrate_adapters, solve_adapter

log = logging.getLogger("fed_a2v")
# Rows of a class that are drawn from the sites' class sums, for a generator to learn, and others to validate it. A VAE
# gains less over the class means from 24 rows on real embeddings, also in three times the epochs.
DRAWN_ROWS, DRAWN_HELD_OUT = 96, 8
# Rows in one pass through closed-form adapters, whose T5 outputs may be wide.
SOLVED_ROWS = 16
# Samples of a class that replace its prototypes if these may not be kept.
REPLAYED_ROWS = 32


@dataclass(frozen=True)
class ServerStepSettings:
    """Settings of the server step, with the names and meanings of the configuration.

    `sums_noise` are the deviations of the privacy noise on a site's class sums and scatter, see `SumBank`.
    """

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
    sums_noise: tuple[float, float] = (0.0, 0.0)
    generator_waits_on_cpu: bool = False


class ClientUpdate(NamedTuple):
    """One site's reply in a round.

    Attributes:
        site: name of the site.
        statistics: statistics of its classes.
        fingerprint: hash of its prototypes.
        weights: its adapters' weights, for distillation only.
        sums: its class sums, only if it sends sums and the server does not have them.
    """

    site: str
    statistics: list[ClassStatistics]
    fingerprint: str
    weights: Sequence[Tensor] = ()
    sums: ClassSums | None = None


class ServerStep:
    """Processes each round's replies and holds the server's state between rounds.

    Args:
        adapters: the global adapters; changed in place.
        prompts: the class prompts.
        generator: is trained on the sites' prototypes; None: fine-tune on the prototypes only.
        loss: loss of the adapters.
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
        self.sums = None
        if adapters.space is not None:
            self.sums = SumBank(prompts.names, adapters.audio_width, settings.max_site_share, *settings.sums_noise)
        self.conditions = (
            prompts.clip.mean(dim=1) if generator is None else generator.conditions_from(prompts.clip, prompts.t5)
        )
        self.finetuned_rounds = 0
        # Subtracted from the scores of recorded classes, which are higher than those of unseen ones; see `_calibrate`.
        self.calibration = 0.0
        self._calibrated_on: tuple[str, ...] = ()
        self._initial = copy.deepcopy(adapters.state_dict()) if settings.unseen else {}
        self._logged_nothing_held_out = False
        # Classes whose prototypes were dropped and that the generator replays.
        self.replayed: tuple[str, ...] = ()
        self._logged_capped: dict[str, list[str]] = {}

    @property
    def trains_generator(self) -> bool:
        """Whether there is a generator and the settings use its samples."""
        return self.generator is not None and (self.settings.finetune or self.settings.distil)

    def run(self, round_number: int, updates: Sequence[ClientUpdate]) -> dict[str, Any]:
        """Run the server's part of a round.

        Args:
            round_number: from 1.
            updates: the valid replies, in a fixed order.

        Returns:
            The metrics of the round.
        """
        metrics: dict[str, Any] = {}
        self.fill_bank(round_number, updates)
        stored = self._stored_rows(round_number)
        if (stored is None and not self.replayed) or not (self.settings.finetune or self.settings.distil):
            return metrics
        metrics |= {"bank/capped_sites": self._log_capped(), "bank/contradicted": len(self.bank.contradicted)}
        log.info("=== Round %d: Training Generator and Global Adapters ===", round_number)
        device = self.conditions.device
        if self.generator is not None:
            self.generator.move_to(device)
        trained_on = self._with_replay(round_number, stored).to(device)
        held_out = self._held_out_rows(round_number, trained_on)
        if not len(held_out) and self.sums is None:
            self._log_nothing_held_out()
        synthetic = None
        if self.generator is not None:
            if stored is not None and len(stored):  # else it would only be trained on its own samples
                with _timed(metrics, "generator"):
                    metrics |= train_generator(
                        self.generator,
                        trained_on,
                        self.conditions_of(trained_on.names),
                        self.settings.training_epochs,
                        self.settings.min_steps,
                        self.settings.augmentation_noise,
                        torch_generator(self.settings.seed, "generator", round_number),
                    )
                if len(held_out) and self._validates(round_number):
                    with _timed(metrics, "validation"):
                        metrics |= self._validate(round_number, stored.to(device), held_out)
            synthetic = self._synthetic_rows(round_number, trained_on)
            if self.settings.generator_waits_on_cpu:
                self.generator.move_to(torch.device("cpu"))
        if self.adapters.closed_form:
            with _timed(metrics, "finetune"):
                metrics |= self._solve(trained_on.joined(held_out))
        else:
            metrics |= self._train_adapters(round_number, updates, stored, trained_on, held_out, synthetic)
        self.finetuned_rounds += 1
        calibrates = self.settings.unseen and not (self.sums is not None and self.adapters.closed_form)
        if calibrates and self._calibrated_on != trained_on.names:
            with _timed(metrics, "calibration"):
                self._calibrate(trained_on.joined(held_out))
        if not self.settings.keep_prototypes:
            self.bank.forget_prototypes()
            self.replayed = trained_on.names
        return metrics

    def _train_adapters(
        self,
        round_number: int,
        updates: Sequence[ClientUpdate],
        stored: PrototypeBatch | None,
        trained_on: PrototypeBatch,
        held_out: PrototypeBatch,
        synthetic: SyntheticRows | None,
    ) -> dict[str, Any]:
        """Distil and fine-tune, each only if it is set."""
        metrics: dict[str, Any] = {}
        rows = mixed_rows(trained_on.embeddings, trained_on.labels, synthetic, self.settings.synthetic_share)
        rows = rows._replace(labels=self._class_indices(trained_on.names).to(rows.labels.device)[rows.labels])
        steps = self.settings.first_steps if self.finetuned_rounds == 0 else self.settings.steps
        if self.settings.distil:
            with _timed(metrics, "distil"):
                metrics |= self._distil(round_number, updates, rows, steps)
        if self.settings.finetune:
            # Held-out rows must not undo a fine-tuning that also trains classes with replayed samples only:
            # none of their rows are held out, and the gain for them may cost accuracy on the classes of this round,
            # which the averaged adapters fit best.
            may_roll_back = self.settings.rollback and set(self.replayed) <= set(() if stored is None else stored.names)
            with _timed(metrics, "finetune"):
                metrics |= self._finetune(round_number, rows, held_out, steps, may_roll_back)
        metrics["server/optimiser_steps"] = steps * (self.settings.finetune + ("distil/loss" in metrics))
        return metrics

    def _stored_rows(self, round_number: int) -> PrototypeBatch | None:
        """The bank's prototypes to train on, sampled again each round for classes with more than `rows_per_class`.

        So the time of a round does not grow with the number of sites. A closed form uses all, as it takes little time.
        With class sums there are no prototypes: the rows are drawn from the sums' model for a generator to learn.
        """
        random = torch_generator(self.settings.seed, "rows", round_number)
        if self.sums is not None:
            model = self.sums.model()
            if model is None:
                return None
            # Without a generator, the class means are all that may be trained on.
            return self.sums.means(model) if self.generator is None else self.sums.draws(model, DRAWN_ROWS, random)
        return self.bank.training_rows(0 if self.adapters.closed_form else self.settings.rows_per_class, random)

    def _held_out_rows(self, round_number: int, trained_on: PrototypeBatch) -> PrototypeBatch:
        """The bank's prototypes that the server step does not train on; samples of the generator are not among them.

        The sites' adapters are trained on the clips of these prototypes. With class sums they are other draws of the
        sums' model than those that the generator is trained on.
        """
        held_out = None if self.sums is not None else self.bank.held_out_rows()
        if self.sums is not None and self.settings.holdout > 0 and not self.adapters.closed_form:
            model = self.sums.model()
            assert model is not None  # or there would be no rows
            random = torch_generator(self.settings.seed, "held out", round_number)
            held_out = self.sums.draws(model, DRAWN_HELD_OUT, random)
        nothing = torch.empty(0, dtype=torch.int64)
        return trained_on.index_select(nothing) if held_out is None else held_out.to(trained_on.labels.device)

    def _log_nothing_held_out(self) -> None:
        """Log once why there are no figures on held-out prototypes."""
        if self._logged_nothing_held_out or self.settings.holdout == 0:
            return
        self._logged_nothing_held_out = True
        if self.replayed:
            log.info(
                "No new prototypes were held out in this round: the generator is not validated, and fine-tuning is not "
                "rolled back. The same applies to later rounds without held-out prototypes"
            )
        else:
            log.warning(
                "No class has three prototypes, so none can be held out: the generator is not validated, and harmful "
                "fine-tuning is not rolled back. A site with three times share.min_clips clips of a class sends three "
                "prototypes with share=prototypes; three sites with the class also suffice"
            )

    def _validates(self, round_number: int) -> bool:
        """Whether to validate in this round. Prototypes that are dropped after their round must be used in it."""
        return not self.settings.keep_prototypes or round_number % self.settings.validation_frequency == 0

    def _with_replay(self, round_number: int, stored: PrototypeBatch | None) -> PrototypeBatch:
        """The prototypes to train on, and the generator's samples for replayed classes.

        Generative replay (Shin et al. 2017): samples replace rows that may not be kept.
        """
        if not self.replayed:
            assert stored is not None
            return stored
        assert self.generator is not None
        random = torch_generator(self.settings.seed, "remembered", round_number)
        samples = self.generator.sample_classes(self.conditions_of(self.replayed), REPLAYED_ROWS, random)
        rows = samples.flatten(0, 1)
        labels = torch.arange(len(self.replayed), device=rows.device).repeat_interleave(REPLAYED_ROWS)
        ones = torch.ones(len(rows), device=rows.device)
        replayed = PrototypeBatch(rows, labels, ones, torch.zeros_like(rows), self.replayed)
        return replayed if stored is None else stored.to(rows.device).joined(replayed)

    def _solve(self, rows: PrototypeBatch) -> dict[str, Any]:
        """Solve closed-form adapters on all prototypes."""
        if self.sums is not None:
            self._solve_posteriors(self.sums)
            labels = self._class_indices(rows.names)[rows.labels]
            loss = loss_on(self.adapters, rows.embeddings, labels, self.loss, SOLVED_ROWS)
            return {"server/adapter_finetuning_loss": loss, "rolled_back": False}
        if len(rows.names) < 2:
            log.warning("adapters.closed_form needs at least two classes with prototypes: the adapters are not changed")
            return {}
        labels = self._class_indices(rows.names).to(rows.labels.device)
        solve_adapter(self.adapters, rows, self.prompts.clip[labels])
        loss = loss_on(self.adapters, rows.embeddings, labels[rows.labels], self.loss)
        return {"server/adapter_finetuning_loss": loss, "rolled_back": False}

    def _solve_posteriors(self, sums: SumBank) -> None:
        """Solve closed-form adapters on the sites' sums; without any, all classes have the same probability."""
        model = sums.model()
        if model is None:
            nothing = torch.zeros(0, sums.columns)
            self.adapters.load_discriminant(torch.empty(0, dtype=torch.int64), nothing, nothing[:, 0])
            return
        labels, (weight, bias) = model.labels, model.discriminant
        recorded = set(labels.tolist())
        unseen = [label for label in self._class_indices(self.settings.unseen).tolist() if label not in recorded]
        if unseen and len(labels) > 1:
            vectors = self.prompts.clip.flatten(1).cpu()
            scores, constant = calibrated_discriminant(
                model, torch.tensor(unseen), vectors, sums.prior, self.settings.seed
            )
            log.info("Calibration of recorded against unseen classes: %.3f", constant)
            labels, weight, bias = scores.labels, scores.weight, scores.bias
        self.adapters.load_discriminant(labels, weight, bias)

    def _calibrate(self, rows: PrototypeBatch) -> None:
        """Choose the calibration, see `calibrate_adapters`."""
        self._calibrated_on = rows.names
        if len(rows.names) < 2 * CALIBRATION_GROUPS:
            log.warning(
                "%d recorded classes are too few to choose a calibration of unseen ones: at least %d are needed",
                len(rows.names),
                2 * CALIBRATION_GROUPS,
            )
            return
        self.calibration = calibrate_adapters(
            self.adapters,
            self._initial,
            rows,
            self.prompts.clip[self._class_indices(rows.names).to(self.prompts.clip.device)],
            self.loss.weights,
            self.settings.first_steps,
            self.settings.optimiser,
            self.settings.seed,
        )
        log.info("Calibration of recorded against unseen classes: %.3f", self.calibration)

    def fill_bank(self, round_number: int, updates: Iterable[ClientUpdate]) -> None:
        """Store the replies, drop outdated and contradicted ones, and decide which new prototypes are held out."""
        changed = False
        for update in updates:
            self.bank.update(update.site, update.statistics, update.fingerprint, round_number)
            changed = changed or any(statistics.audio is not None for statistics in update.statistics)
            if self.sums is not None and update.sums is not None:
                self.sums.update(update.site, update.sums)
        for site in self.bank.expire(round_number, self.settings.max_age):
            if self.sums is not None:
                self.sums.withdraw([site])
            log.info("%s has not replied for more than %d rounds: dropped", site, self.settings.max_age)
            changed = True
        if changed:
            self._contradict()
        if self.sums is not None:  # without prototypes; over many sites and classes it would take seconds
            return
        share, limit = self.settings.holdout, self.settings.rows_per_class
        self.bank.hold_out(share, max(1, round(share * limit)) if limit else 0)

    def withdraw(self, sites: Iterable[str]) -> None:
        """Remove all that sites have sent: what is computed from the rest is as if they had never taken part.

        Closed-form adapters on sums are solved again. Weights that were trained before, of adapters or of a generator,
        are not unlearned.
        """
        sites = list(sites)
        for site in sites:
            self.bank.entries.pop(site, None)
            self.bank.fingerprints.pop(site, None)
        self._contradict()
        if self.sums is not None:
            self.sums.withdraw(sites)
            self._solve_posteriors(self.sums)

    def _contradict(self) -> None:
        """Ignore prototypes that other sites contradict; log them if they differ from those of the round before."""
        before = self.bank.contradicted
        self.bank.contradict()
        if self.bank.contradicted and self.bank.contradicted != before:
            classes = Counter(site for site, _ in self.bank.contradicted)
            log.warning(
                "Prototypes that look like another class, judged by the other sites' prototypes, are ignored by the "
                "server step: those of %s",
                listed([f"{site} ({number} classes)" for site, number in sorted(classes.items())]),
            )

    def _log_capped(self) -> int:
        """Number of sites whose clips are capped; logs their names if they differ from those of the call before."""
        # The sums of a site count as a whole.
        capped = self.bank.capped() if self.sums is None else {site: list[str]() for site in self.sums.capped()}
        if capped and capped != self._logged_capped:
            of = {site: f" ({len(names)} classes)" if names else "" for site, names in sorted(capped.items())}
            log.info(
                "aggregation.max_site_share=%g caps the weights of these sites in the statistics of their classes: %s; "
                "if all sites are trusted, 1 removes the cap",
                self.settings.max_site_share,
                listed([f"{site}{classes}" for site, classes in of.items()]),
            )
        self._logged_capped = capped
        return len(capped)

    def standardise_adapters(self, pooled: Mapping[str, PooledMoments] | None = None) -> None:
        """Standardise the adapters' input with the moments of the clips of the bank's prototypes.

        Args:
            pooled: by site, the moments of all clips of sites that share no class statistics.
        """
        # A copy, as the pooled moments are no class and must not stay in the bank.
        bank = replace(self.bank, entries=dict(self.bank.entries), fingerprints=dict(self.bank.fingerprints))
        for site, of_site in (pooled or {}).items():
            bank.update(site, [of_site.as_statistics(site)], "", 0)
        moments = bank.moments()
        if moments is not None:
            self._log_capped()
            mean, variance = moments
            self.adapters.set_standardisation(mean.float(), variance.sqrt().float())

    def state_dict(self) -> dict[str, Any]:
        """The state that the next round depends on, by component."""
        return {
            "adapters": self.adapters.state_dict(),
            "generator": None if self.generator is None else self.generator.checkpoint(),
            "bank": self.bank.state_dict(),
            "sums": None if self.sums is None else self.sums.state_dict(),
            "server_step": {
                "finetuned_rounds": self.finetuned_rounds,
                "replayed": list(self.replayed),
                "calibration": self.calibration,
                "calibrated_on": list(self._calibrated_on),
                "said_nothing_held_out": self._logged_nothing_held_out,
            },
        }

    def load_state_dict(self, components: Mapping[str, Any]) -> None:
        """Load the result of `state_dict`."""
        self.adapters.load_state_dict(components["adapters"])
        if self.generator is not None:
            self.generator.load_checkpoint(components["generator"])
        self.bank = PrototypeBank.from_state_dict(
            components["bank"], self.settings.half_precision_bank, self.settings.max_site_share
        )
        if self.sums is not None:
            self.sums.load_state_dict(components["sums"])
        own = components["server_step"]
        self.finetuned_rounds = own["finetuned_rounds"]
        self.replayed = tuple(own["replayed"])
        self.calibration = own["calibration"]
        self._calibrated_on = tuple(own["calibrated_on"])
        self._logged_nothing_held_out = own["said_nothing_held_out"]

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
            self._log_nothing_held_out()
            return {}
        result.report()
        return result.metrics()

    def _distil(
        self, round_number: int, updates: Sequence[ClientUpdate], rows: TrainingRows, steps: int
    ) -> dict[str, Any]:
        class_of = {name: index for index, name in enumerate(self.prompts.names)}
        clips = self.bank.clips()
        teachers = [
            Teacher(
                update.weights,
                {
                    class_of[statistics.name]: clips[update.site, statistics.name]
                    for statistics in update.statistics
                    if (update.site, statistics.name) not in self.bank.contradicted
                },
            )
            for update in updates
        ]
        random = torch_generator(self.settings.seed, "distil", round_number)
        losses = distil(
            self.adapters,
            self.prompts,
            teachers,
            rows.audio,
            rows.labels,
            steps,
            self.settings.optimiser,
            random,
            rows.mixture,
            rows.t5_audio,
        )
        return {f"distil/{name}": value for name, value in losses.items()}

    def _finetune(
        self, round_number: int, rows: TrainingRows, held_out: PrototypeBatch, steps: int, may_roll_back: bool
    ) -> dict[str, Any]:
        """Fine-tune the global adapters; restore them if the loss on held-out prototypes gets worse."""
        settings = self.settings
        before = copy.deepcopy(self.adapters.state_dict())
        loss_before = self._held_out_loss(held_out)
        losses = train_steps(
            self.adapters,
            rows.audio,
            rows.labels,
            self.loss,
            steps,
            settings.optimiser,
            torch_generator(settings.seed, "finetune", round_number),
            self._targets() if settings.from_nodes_adapters else None,
            mixture=rows.mixture,
            t5_audio=rows.t5_audio,
        )
        metrics: dict[str, Any] = {"server/adapter_finetuning_loss": losses.pop("loss")}
        metrics |= {f"finetune/{name}": value for name, value in losses.items()}
        metrics["rolled_back"] = False
        if loss_before is not None:
            loss_after = self._held_out_loss(held_out)
            metrics |= {"finetune/held_out_before": loss_before, "finetune/held_out_after": loss_after}
            metrics["finetune/held_out_rows"] = len(held_out)
            # Not ">", which is false if the loss is NaN.
            if may_roll_back and not loss_after <= loss_before:  # type: ignore[operator]
                self.adapters.load_state_dict(before)
                metrics["rolled_back"] = True
                log.warning(
                    "Fine-tuning made the held-out loss worse (%.4f to %.4f): rolled back", loss_before, loss_after
                )
        return metrics

    def _synthetic_rows(self, round_number: int, real: PrototypeBatch) -> SyntheticRows | None:
        """`synthetic_samples_per_class` samples of every class; None without a generator or a share for them."""
        if self.generator is None or self.settings.synthetic_share == 0:
            return None
        classes, number = len(real.names), self.settings.synthetic_samples_per_class
        random = torch_generator(self.settings.seed, "synthetic", round_number)
        audio, t5_audio = self.generator.sample_sides(self.conditions_of(real.names), number, random)
        labels = torch.arange(classes, device=real.labels.device).repeat_interleave(number)
        return SyntheticRows(audio.flatten(0, 1), labels, None if t5_audio is None else t5_audio.flatten(0, 1))

    def _class_indices(self, names: Iterable[str]) -> Tensor:
        """Indices of classes in the class prompts."""
        class_of = {name: index for index, name in enumerate(self.prompts.names)}
        return torch.tensor([class_of[name] for name in names])

    def _held_out_loss(self, held_out: PrototypeBatch) -> float | None:
        if not len(held_out):
            return None
        labels = self._class_indices(held_out.names).to(held_out.labels.device)[held_out.labels]
        return loss_on(self.adapters, held_out.embeddings, labels, self.loss, self.settings.optimiser.chunk_size)

    def _targets(self) -> AdapterOutput:
        """The sites' mean adapter outputs, and the class prompts of classes that no site has sent."""

        def outputs_or(prompts: Tensor, kind: str) -> Tensor:
            outputs = self.bank.mean_outputs(kind, self.prompts.names)
            return torch.stack(
                [
                    prompt if output is None else output.to(prompt)
                    for output, prompt in zip(outputs, prompts, strict=True)
                ]
            )

        prompts = self.prompts
        return AdapterOutput(
            outputs_or(prompts.clip, "clip"), None if prompts.t5 is None else outputs_or(prompts.t5, "t5")
        )

    def conditions_of(self, names: Iterable[str]) -> Tensor:
        """(C, V) conditions of the classes `names`, which the generator computes from their prompts."""
        return self.conditions[self._class_indices(names).to(self.conditions.device)]


@contextmanager
def _timed(metrics: dict[str, Any], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    metrics[f"seconds/{phase}"] = time.perf_counter() - start
