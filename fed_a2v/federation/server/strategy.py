"""The Flower strategy: what the server asks of the sites, and what it does with their answers."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import fmean
from typing import Any

from flwr.common import EvaluateIns, FitIns, NDArrays, Parameters, Scalar, ndarrays_to_parameters
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.server import fit_clients
from flwr.server.strategy import Strategy

from fed_a2v.config.schema import Settings
from fed_a2v.core.adapters import ClassPrompts
from fed_a2v.core.losses import TERMS
from fed_a2v.core.names import listed
from fed_a2v.core.server_step import ClientUpdate, ServerStep
from fed_a2v.data.partition import site_name
from fed_a2v.federation.errors import FederationError
from fed_a2v.federation.factory import site_steps
from fed_a2v.federation.memory import return_free_memory
from fed_a2v.federation.process import is_deployed_server
from fed_a2v.federation.protocol import (
    VALIDATION,
    InvalidReplyError,
    ReplySpec,
    Scores,
    Task,
    TrainReply,
    claimed_site,
    encode_weights,
    join_arrays,
    payload_bytes,
)
from fed_a2v.federation.protocol.prompt_check import fingerprint
from fed_a2v.federation.server.aggregation import aggregate, cut_shares, root_mean_square
from fed_a2v.federation.server.embedding_spec import agreed_spec, embedding_spec
from fed_a2v.federation.server.evaluation import Coverage, class_figures
from fed_a2v.federation.server.metrics.base import Evaluation, build_metrics, compute_metrics
from fed_a2v.federation.server.reply_intake import EvaluateResult, FitResult, ReplyValidator, fresh_row, reasons, reject
from fed_a2v.federation.server.sampling import NodeRegistry, active_sites, sampled_sites
from fed_a2v.federation.server.scale_check import off_scale

log = logging.getLogger("fed_a2v")

# Builds the server step once the sites have said how wide their embeddings are: (S, Da) -> step.
StepFactory = Callable[[tuple[int, int]], ServerStep]


class RoundListener:
    """What the strategy reports to; every method does nothing by default."""

    def phase(self, round_number: int, name: str) -> None:
        """A phase of a round begins."""

    def server_step_done(self, round_number: int, step: ServerStep) -> None:
        """The generator and the global adapters of a round are trained."""

    def evaluated(self, round_number: int, step: ServerStep, evaluation: Mapping[str, Any]) -> None:
        """The sites have scored the adapters; `evaluation` is what `class_figures` returns."""

    def round_done(self, row: Mapping[str, Any]) -> None:
        """A round is over; `row` are its metrics."""


class FedA2V(Strategy):
    """Averages the sites' adapters, trains a generator on what they sent, and fine-tunes the average.

    Before the first round the sites register: they send averages of their clips' embeddings, from
    which the server learns the width of the embeddings and how to standardise them. The averages stay in its
    bank; a site sends them again only when its data has changed.

    Results do not depend on the number of nodes: see `NodeRegistry`.

    Args:
        settings: of the experiment.
        prompts: the prompts of all classes.
        make_step: builds the server step for embeddings of shape (S, Da).
        listener: told of phases and finished rounds.
        max_workers: sites that work at the same time during the registration; None: Flower's default.
    """

    def __init__(
        self,
        settings: Settings,
        prompts: ClassPrompts,
        make_step: StepFactory,
        listener: RoundListener | None = None,
        max_workers: int | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.classes = prompts.names
        self.prompts = prompts
        self._prompts_fingerprint = fingerprint(prompts)
        self._settings_json = _for_sites(settings).model_dump_json(by_alias=True)
        self.make_step = make_step
        self.max_workers = max_workers
        self.metrics = build_metrics(settings.metrics)
        self.listener = listener or RoundListener()
        self.step: ServerStep | None = None
        # The last round of an earlier start; Flower counts from 1 again.
        self.start_round = 0
        self.audio_shape: tuple[int, int] | None = None
        self.square_root: bool | None = None
        self._nodes = NodeRegistry(settings, bound=settings.federation.bind_names and is_deployed_server())
        self._models = ["before", "after"] if settings.federation.evaluate_before else ["after"]
        if settings.dataset.validates:
            self._models.append(VALIDATION)
        self._manager: ClientManager | None = None
        # By site, its test clips of each class as it has said last: those that fail in the evaluation are missed.
        self._test_clips: dict[str, dict[str, int]] = {}
        # Classes of which no site has ever shared anything.
        self._unshared = self.classes
        # Rounds in a row that were skipped for want of good replies.
        self._skipped = 0
        # Shares that were cut in the last round's mean.
        self._cut: dict[str, tuple[float, float]] = {}
        self._row: dict[str, Any] = {}
        # What the registration cost, put into the row of the first round.
        self._registration: dict[str, Any] = {}
        self._before: NDArrays = []
        # How far from the prompts' centre an output of the scored models can be: it limits what sites may call losses.
        self._reach: dict[str, float] = {}
        self._clock = 0.0

    # Flower's hooks, in the order in which it calls them

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters:
        """Wait for the nodes; let the sites register unless an earlier run did."""
        self._nodes.wait(client_manager, self.settings.federation.min_nodes)
        if self.step is None:
            self._register(client_manager)
        return _joined(self._weights())

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Ask every site of the round to train the global adapters."""
        del parameters
        round_number = server_round + self.start_round
        self._row = {"round": round_number, **fresh_row(), **self._registration}
        self._registration = {}
        self._clock = time.perf_counter()
        self.listener.phase(round_number, "sites")
        self._manager = client_manager
        return self._training(round_number, client_manager)

    def aggregate_fit(
        self,
        server_round: int,
        results: list[FitResult],
        failures: list[FitResult | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Check the replies, average the adapters, and do the server's part of the round."""
        round_number = server_round + self.start_round
        row, step = self._row, self._step()
        replies = self._good_replies(results, failures, round_number, "train", row)
        if self.settings.aggregation.if_too_few == "repeat":
            replies = self._repeated(round_number, row, replies)
        row["seconds/sites"] = time.perf_counter() - self._clock - row["seconds/replies"]
        if len(replies) < self.settings.aggregation.min_replies:
            self._skip(round_number, len(replies), row)
            return None, {}
        self._skipped = 0
        start = time.perf_counter()
        if self.settings.needs_weights:
            weights = aggregate(replies, step.adapters.weights(), self.settings.aggregation)
            if weights is not None:
                step.adapters.load_weights(weights)
        self._tell_cut(replies, row)
        if not self.settings.aggregation.distils:  # else the bytes that came would stay for the rest of the round
            replies = [replace(reply, weights=[]) for reply in replies]
            return_free_memory()
        row["seconds/aggregation"] = time.perf_counter() - start
        self._note_before()
        row |= _mean_losses(replies)
        # Replaced by the server step where it takes any.
        row |= {"site/optimiser_steps": self._site_steps(round_number, replies), "server/optimiser_steps": 0}
        self.listener.phase(round_number, "server")
        updates = [ClientUpdate(reply.site, reply.prompts, reply.fingerprint, reply.weights) for reply in replies]
        row |= step.run(round_number, updates)
        self._note_shared(round_number)
        self.listener.server_step_done(round_number, step)
        return _joined(self._weights()), {}

    def evaluate(self, server_round: int, parameters: Parameters) -> None:
        """The server has no test clips; the sites evaluate."""
        del server_round, parameters

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Have every site score the adapters on its test clips, before and after the server step."""
        del parameters
        round_number = server_round + self.start_round
        self._clock = time.perf_counter()
        self.listener.phase(round_number, "evaluate")
        after = self._weights()
        reach = self._step().adapters.reach()
        self._reach = {kind: max(reach[kind], self._reach.get(kind, 0.0)) for kind in reach}
        arrays = self._before + after if "before" in self._models else after
        packed = _joined(arrays)
        wanted: dict[str, Scalar] = {
            "models": json.dumps(self._models),
            "calibration": self._step().calibration,
            "confusion": self._is_last(round_number),
        }
        # Who has not said its name when the round began is not waited for once more.
        sites = self._nodes.assign(client_manager, range(self.settings.partition.sites), ask=False)
        self._row["bytes_down"] += payload_bytes(arrays) * len(sites)
        return [
            (node, EvaluateIns(packed, self._message("evaluate", round_number, site, number, **wanted)))
            for site, number, node in sites
        ]

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[EvaluateResult],
        failures: list[EvaluateResult | BaseException],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Add up the sites' counts, and close the round."""
        round_number = server_round + self.start_round
        row = self._row
        answers = ReplyValidator(self.classes, self._nodes.assigned, row)
        by_site = answers.scores(
            results,
            failures,
            round_number,
            self._models,
            self._is_last(round_number),
            () if self.prompts.t5 is None else ("after",),
            bool(self._step().settings.unseen),
            self._test_clips,
            self._step().loss.highest(self._reach),
        )
        scores = {model: Scores.merge(site[model] for site in by_site.values()) for model in self._models}
        coverage = self._coverage(by_site)
        row["seconds/evaluate"] = time.perf_counter() - self._clock
        row["seconds"] = sum(value for key, value in row.items() if key.startswith("seconds/"))
        row |= {"test_clips": scores["after"].clips} | coverage.figures
        lost = self.lost_classes(round_number)
        row |= {"classes_lost": len(lost), "lost_classes": lost}
        if scores["after"].clips:
            row |= self._metrics(round_number, scores, coverage)
        else:
            log.warning("No site scored a clip of the test: the round has no accuracy")
        evaluation = class_figures(scores, self._step().bank, round_number, coverage, lost)
        self.listener.evaluated(round_number, self._step(), evaluation)
        self.listener.round_done(row)
        return row.get("loss"), {"accuracy": float(row.get("accuracy", 0.0))}

    # The registration

    def _register(self, client_manager: ClientManager) -> None:
        """Ask the sites what they have; build the server step for their embeddings, and fill its bank."""
        start = time.perf_counter()
        self.listener.phase(0, "registration")
        empty = ndarrays_to_parameters([])
        results, failures = fit_clients(
            [
                (node, FitIns(empty, self._message("register", 0, site, number, held="")))
                for site, number, node in self._nodes.assign(
                    client_manager, active_sites(self.settings, 1), registration=True
                )
            ],
            max_workers=self.max_workers,
            timeout=self.settings.federation.round_timeout,
            group_id=0,
        )
        if self.settings.partition.kind == "own":
            self._nodes.learn_names(self._told_names(results))
        row = fresh_row()
        replies = self._agreeing(self._good_replies(results, failures, 0, "register", row), row)
        if not replies or self.audio_shape is None:
            raise FederationError(f"no site could register: {reasons(row)}")
        self.step = self.make_step(self.audio_shape)
        self.step.fill_bank(0, [ClientUpdate(reply.site, reply.prompts, reply.fingerprint) for reply in replies])
        if self.settings.adapters.standardise:
            self.step.standardise_adapters({reply.site: reply.moments for reply in replies if reply.moments})
        self._note_shared(0)
        # The first round's row also has what went wrong here.
        self._registration = {key: row[key] for key in ("rejected", "rejections", "failures", "failure_reasons")} | {
            "bytes_registration": row["bytes_up"],
            "seconds_registration": time.perf_counter() - start,
        }
        log.info("%d sites registered in %.1f s", len(replies), time.perf_counter() - start)

    def _told_names(self, results: Sequence[FitResult]) -> dict[str, str]:
        """What the nodes call their sites in their answers, by their `cid`."""
        told = {}
        for node, result in results:
            with suppress(InvalidReplyError):  # counted when the replies are taken in
                told[node.cid] = claimed_site(result.metrics, self.classes)
        return told

    def _agreeing(self, replies: list[TrainReply], row: dict[str, Any]) -> list[TrainReply]:
        """The sites whose embeddings are of the kind that the adapters are to serve; the rest is turned away."""
        agreed = agreed_spec(replies, self.settings)
        if agreed is None:
            if replies:
                few = f"no site has share.min_clips={self.settings.share.min_clips} clips, of one class or in all"
                row["rejections"].append(few)
            return []
        self.audio_shape, self.square_root = (agreed.tokens, agreed.width), agreed.square_root
        agreeing = []
        for reply in replies:
            kind = embedding_spec(reply)
            if kind in (agreed, None):
                agreeing.append(reply)
            else:
                reject(row, reply.site, f"its embeddings are {kind}, the federation's {agreed}")
        off = self._off_scale(agreeing)
        for site, reason in off.items():
            reject(row, site, reason)
        return [reply for reply in agreeing if reply.site not in off]

    # Classes that no site shares

    def _note_shared(self, round_number: int) -> None:
        """Take in of which classes something has been shared; once all sites have had their turn, name the others.

        Raises:
            FederationError: nothing is shared, and without it nobody would learn.
        """
        step, settings = self._step(), self.settings
        shared = step.bank.counts().keys() | set(step.settings.unseen)  # those are not meant to be recorded
        self._unshared = tuple(name for name in self._unshared if name not in shared)
        if round_number != self._everyone_heard or not self._unshared or not self._serves:
            return
        log.warning(
            "Lost for the server step: no site that answered has share.min_clips=%d training clips of %d of %d classes "
            "(%s); lower it, or let fewer sites share a class",
            settings.share.min_clips,
            len(self._unshared),
            len(self.classes),
            ", ".join(self._unshared),
        )
        if step.bank.counts():
            return
        if settings.adapters.closed_form or not settings.aggregation.averages:
            key = "adapters.closed_form=true" if settings.adapters.closed_form else "aggregation.mode=none"
            raise FederationError(
                f"{key}: only the server step teaches the adapters, and no site has share.min_clips="
                f"{settings.share.min_clips} training clips of a class; lower it"
            )
        log.warning("The server step has nothing to learn from: the run is plain federated averaging, FedAvg")

    @property
    def _serves(self) -> bool:
        """Whether there is a server step, for which classes can be lost."""
        return self.settings.finetune.enabled or self.settings.aggregation.distils

    @property
    def _everyone_heard(self) -> int:
        """The round in which the last group of sites has its first turn; 0, the registration, where all are there."""
        scenario = self.settings.scenario
        return 0 if scenario.name == "static" else (scenario.steps - 1) * scenario.rounds_per_step + 1

    def lost_classes(self, round_number: int) -> list[str]:
        """The classes that the server step does not know, though all sites have had their turn."""
        return list(self._unshared) if self._serves and round_number >= self._everyone_heard else []

    # What the sites are asked

    def _training(self, round_number: int, manager: ClientManager) -> list[tuple[ClientProxy, FitIns]]:
        """The messages that ask the sites of a round to train the global adapters."""
        arrays = self._weights()
        self._note_before()
        parameters = _joined(arrays)
        held = self._step().bank.fingerprints
        sites = self._nodes.assign(manager, sampled_sites(self.settings, round_number))
        self._row["bytes_down"] += payload_bytes(arrays) * len(sites)
        return [
            (node, FitIns(parameters, self._message("train", round_number, site, number, held=held.get(site, ""))))
            for site, number, node in sites
        ]

    def _message(self, task: str, round_number: int, site: str, number: int, **more: Scalar) -> dict[str, Scalar]:
        return {
            "task": task,
            "round": round_number,
            "number": number,
            "site": site,
            "settings": self._settings_json,
            "classes": json.dumps(self.classes),
            "prompts": self._prompts_fingerprint,
            **more,
        }

    def _weights(self) -> NDArrays:
        """The global adapters as they travel: weights, then the standardisation in full precision."""
        adapters = self._step().adapters
        weights = encode_weights(adapters.weights(), self.settings.share.dtype)
        return weights + encode_weights([adapters.audio_mean, adapters.audio_std], "float32")

    def _note_before(self) -> None:
        """Keep what an evaluation of the adapters before the server step needs."""
        self._before = self._clip_side()
        self._reach = self._step().adapters.reach()

    def _clip_side(self) -> NDArrays:
        return encode_weights(self._step().adapters.clip_weights(), self.settings.share.dtype)

    # What they answer

    def _good_replies(
        self,
        results: Sequence[FitResult],
        failures: Sequence[FitResult | BaseException],
        round_number: int,
        task: Task,
        row: dict[str, Any],
    ) -> list[TrainReply]:
        """The replies that pass every check, by site name."""
        answers = ReplyValidator(self.classes, self._nodes.assigned, row)
        largest = self._largest_weights()
        replies = answers.replies(
            results,
            failures,
            lambda site: self._expected(site, round_number, task, largest),
            self._off_scale if task == "train" else None,  # else the kinds of embeddings are sorted out first
        )
        self._test_clips |= {reply.site: reply.test_clips for reply in replies}
        return replies

    def _off_scale(self, replies: Sequence[TrainReply]) -> dict[str, str]:
        """The sites whose reply is not of the others' scale, each with the reason."""
        return off_scale(replies, None if self.step is None else self.step.bank, self.settings.aggregation.scale_limit)

    def _largest_weights(self) -> float:
        """What the root mean square of a site's adapters may be, by that of those it was sent."""
        sent = root_mean_square([] if self.step is None else self.step.adapters.weights())
        return self.settings.aggregation.scale_limit * sent if sent else math.inf

    def _expected(self, site: str, round_number: int, task: Task, largest: float = math.inf) -> ReplySpec:
        step, settings = self.step, self.settings
        prompts, share = self.prompts, settings.share
        weights = step.adapters.weights() if step is not None and settings.needs_weights else []
        kind = share.kind if settings.needs_prototypes else "mean"
        return ReplySpec(
            site=site,
            round_number=round_number,
            task=task,
            weight_shapes=[tuple(weight.shape) for weight in weights],
            max_weight_rms=largest,
            classes=self.classes,
            audio_shape=self.audio_shape,
            clip_shape=(prompts.clip.shape[1], prompts.clip.shape[2]),
            t5_shape=None if prompts.t5 is None else (prompts.t5.shape[1], prompts.t5.shape[2]),
            square_root=self.square_root,
            prototypes=task == "register" or self.settings.needs_prototypes,
            groups={"mean": 1, "samples": 0}.get(kind, share.prototypes),
            min_clips=1 if kind == "samples" else share.min_clips,
            variances=share.variance,
            losses=() if settings.adapters.closed_form else ("loss", *TERMS),
            outputs=self.settings.needs_outputs,
            held_fingerprint="" if step is None else step.bank.fingerprints.get(site, ""),
            held_classes=() if step is None else tuple(step.bank.entries.get(site, ())),
        )

    def _repeated(self, round_number: int, row: dict[str, Any], replies: list[TrainReply]) -> list[TrainReply]:
        """The good replies, after asking all sites again while there are too few and `max_skipped_rounds` allows."""
        settings = self.settings.aggregation
        assert self._manager is not None
        for repetition in range(1, settings.max_skipped_rounds + 1):
            if len(replies) >= settings.min_replies:
                break
            log.warning(
                "Round %d: %d good replies, aggregation.min_replies=%d: asking again (%d of %d)",
                round_number,
                len(replies),
                settings.min_replies,
                repetition,
                settings.max_skipped_rounds,
            )
            if self.settings.partition.kind == "own":
                self._nodes.wait(self._manager, settings.min_replies)
            results, failures = fit_clients(
                self._training(round_number, self._manager),
                max_workers=self.max_workers,
                timeout=self.settings.federation.round_timeout,
                group_id=round_number,
            )
            row["repetitions"] = repetition
            replies = self._good_replies(results, failures, round_number, "train", row)
        return replies

    def _tell_cut(self, replies: Sequence[TrainReply], row: dict[str, Any]) -> None:
        """Say which sites `max_site_share` has kept below their share of the clips, where the mean is weighted."""
        aggregation = self.settings.aggregation
        if aggregation.mode != "weighted":
            return
        cut = cut_shares(replies, aggregation)
        row["aggregation/capped_sites"] = len(cut)
        if cut and cut != self._cut:
            log.warning(
                "aggregation.max_site_share=%g: the mean is not by clips alone: %s; where all are trusted, 1 lets "
                "every clip count",
                aggregation.max_site_share,
                listed(
                    [f"{site} has {had:.2f} of them and counts for {counts:.2f}" for site, (had, counts) in cut.items()]
                ),
            )
        self._cut = cut

    def _site_steps(self, round_number: int, replies: Sequence[TrainReply]) -> float:
        """Optimiser steps of a site, in the mean over those that replied."""
        return fmean(site_steps(self.settings, round_number, reply.num_examples) for reply in replies)

    def _skip(self, round_number: int, replies: int, row: dict[str, Any]) -> None:
        """Leave the adapters as they are for a round; end the run where that is too often."""
        settings = self.settings.aggregation
        few = f"round {round_number}: {replies} good replies, aggregation.min_replies={settings.min_replies}"
        most, repeats = settings.max_skipped_rounds, settings.if_too_few == "repeat"
        if repeats or self._skipped == most:
            tried = f"{most} repetitions" if repeats else f"{self._skipped} skipped rounds"
            raise FederationError(f"{few}, after {tried} (aggregation.max_skipped_rounds={most}): {reasons(row)}")
        log.warning("%s: the adapters stay as they were", few.capitalize())
        self._skipped += 1
        row["skipped"] = True

    def _coverage(self, by_site: Mapping[str, Mapping[str, Scores]]) -> Coverage:
        """Which sites were evaluated, of all; says which were not."""
        self._test_clips |= {
            site: {name: score.clips for name, score in scores["after"].classes.items()}
            for site, scores in by_site.items()
        }
        sites = {*self._nodes.assigned, *self._test_clips}
        coverage = Coverage(by_site.keys(), sites, self._test_clips, self._nodes.nameless)
        if coverage.missing:
            log.warning("The test clips of %s are not in the figures", ", ".join(coverage.missing))
        return coverage

    def _metrics(self, round_number: int, scores: Mapping[str, Scores], coverage: Coverage) -> dict[str, Any]:
        """The metrics of the round's row."""
        active = None
        if self.settings.scenario.name != "static":
            active = {site_name(number) for number in active_sites(self.settings, round_number)}
        return compute_metrics(self.metrics, Evaluation(scores, coverage, self.classes, self._step(), active))

    def _is_last(self, round_number: int) -> bool:
        """Whether the run ends with this round: then the sites also say what they confuse."""
        return round_number == self.settings.rounds

    # State

    def state_dict(self) -> dict[str, Any]:
        """By component, all that the next round depends on."""
        return {
            "strategy": {
                "audio_shape": list(self.audio_shape or ()),
                "square_root": self.square_root,
                "test_clips": {site: dict(clips) for site, clips in self._test_clips.items()},
                "unshared": list(self._unshared),
            },
            "nodes": self._nodes.state_dict(),
            **self._step().state_dict(),
        }

    def load_state_dict(self, components: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; makes the server step."""
        own = components["strategy"]
        self.audio_shape = (own["audio_shape"][0], own["audio_shape"][1])
        self.square_root = own["square_root"]
        self._test_clips = {site: dict(clips) for site, clips in own["test_clips"].items()}
        self._unshared = tuple(own["unshared"])
        self._nodes.load_state_dict(components["nodes"])
        self.step = self.make_step(self.audio_shape)
        self.step.load_state_dict(components)

    def _step(self) -> ServerStep:
        if self.step is None:
            raise FederationError("no site has registered yet")
        return self.step


def _for_sites(settings: Settings) -> Settings:
    """The settings without what only the server runs: a site refuses to import a user's classes."""
    aggregation = settings.aggregation
    if aggregation.target is not None:
        aggregation = aggregation.model_copy(update={"mode": "avg", "target": None, "arguments": {}})
    return settings.model_copy(update={"callbacks": {}, "metrics": {}, "aggregation": aggregation})


def _joined(arrays: NDArrays) -> Parameters:
    """Arrays as Flower takes them: one, whose bytes are all of them."""
    return ndarrays_to_parameters([join_arrays(arrays)])


def _mean_losses(replies: Sequence[TrainReply]) -> dict[str, float]:
    """Training losses of the sites, by number of clips."""
    clips = sum(reply.num_examples for reply in replies)
    names = sorted({name for reply in replies for name in reply.losses})
    return {
        f"site/{name}": sum(reply.losses.get(name, 0.0) * reply.num_examples for reply in replies) / clips
        for name in names
    }
