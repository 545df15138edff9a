"""The Flower strategy: what the server sends to the sites in each round, and what it does with their replies.

Flower's server calls the hooks in the order in which they are written; the trainer creates the strategy and follows its
phases and finished rounds. The file is long so that the order of a round, its messages and its state are in one place.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from flwr.common import EvaluateIns, FitIns, FitRes, NDArrays, Parameters, Scalar, ndarrays_to_parameters
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.server import fit_clients
from flwr.server.strategy import Strategy
from torch import Tensor

from fed_a2v.config.plugins import make_components
from fed_a2v.config.schema import Settings
from fed_a2v.core.adapters import ClassPrompts
from fed_a2v.core.class_sums import ClassSums
from fed_a2v.core.gaussian_release import ReleaseNoise
from fed_a2v.core.losses import TERMS
from fed_a2v.core.names import listed
from fed_a2v.core.public_space import PublicSpace
from fed_a2v.core.server_step import ClientUpdate, ServerStep
from fed_a2v.core.statistics import ClassStatistics, PooledMoments
from fed_a2v.core.weight_cap import cap_client_weights
from fed_a2v.data.partition import site_name
from fed_a2v.errors import ConfigError
from fed_a2v.federation.factory import site_steps
from fed_a2v.federation.memory import return_free_memory
from fed_a2v.federation.process import is_deployed_server
from fed_a2v.federation.protocol import (
    NOISE_LIMIT,
    VALIDATION,
    EvalReplySpec,
    FederationError,
    InvalidReplyError,
    MaskedTask,
    ReplySpec,
    Scores,
    Task,
    TrainReply,
    claimed_site,
    decode_reply,
    encode_weights,
    join_arrays,
    payload_bytes,
)
from fed_a2v.federation.protocol.masked import (
    centre_scales,
    entry_scales,
    quantisation_step,
    read_sums,
    sums_scales,
)
from fed_a2v.federation.protocol.prompt_check import fingerprint
from fed_a2v.federation.server.aggregation import aggregate, cut_shares, root_mean_square
from fed_a2v.federation.server.aggregation.base import make_rule
from fed_a2v.federation.server.embedding_spec import agreed_spec, embedding_spec
from fed_a2v.federation.server.evaluation import Coverage, class_figures
from fed_a2v.federation.server.intake import Intake, IntakeProxy
from fed_a2v.federation.server.metrics.base import Evaluation, Metric, compute_metrics
from fed_a2v.federation.server.privacy_account import PrivacyAccount
from fed_a2v.federation.server.reply_validator import (
    EvaluateResult,
    FitResult,
    ReplyValidator,
    fresh_row,
    reasons,
    reject,
)
from fed_a2v.federation.server.sampling import NodeRegistry, active_sites, sampled_sites
from fed_a2v.federation.server.scale_check import off_scale
from fed_a2v.federation.server.secure_exchange import SecureExchange
from fed_a2v.federation.server.unshared_classes import UnsharedClasses

log = logging.getLogger("fed_a2v")

# Makes the server step for embeddings of shape (S, Da), which is known after the sites' registration, in a public space
# with `share=statistics`.
StepFactory = Callable[[tuple[int, int], PublicSpace | None], ServerStep]


@dataclass(frozen=True)
class UnscoredRound:
    """A round whose scores come with the replies to the training messages of the next one.

    Attributes:
        number: number of the round.
        row: its row, complete except for the figures of the evaluation.
        before: the CLIP side of the adapters before its server step, if it is scored.
        reach: see `FedA2V._reach`.
    """

    number: int
    row: dict[str, Any]
    before: NDArrays
    reach: Mapping[str, float]


class RoundListener:
    """Interface for the events of the strategy; every method is a no-op by default."""

    def phase(self, round_number: int, name: str) -> None:
        """A phase of a round begins."""

    def server_step_done(self, round_number: int, step: ServerStep) -> None:
        """The generator and the global adapters of a round are trained."""

    def evaluated(self, round_number: int, step: ServerStep, evaluation: Mapping[str, Any]) -> None:
        """A round is evaluated, or not due; `evaluation` is the result of `class_figures`."""

    def round_done(self, row: Mapping[str, Any]) -> None:
        """A round is over; `row` are its metrics."""


class FedA2V(Strategy):
    """Averages the sites' adapters, trains a generator on their class statistics, and fine-tunes the average.

    Before the first round every site registers: it sends statistics of its clips' embeddings, which determine the
    shape of the embeddings and their standardisation. They stay in the server's bank; a site sends them again only
    when its data has changed.

    Results do not depend on the number of nodes, see `NodeRegistry`.

    Args:
        settings: settings of the experiment.
        prompts: the prompts of all classes.
        make_step: makes the server step for embeddings of shape (S, Da).
        make_space: makes the public space of `share=statistics`.
        listener: receives the phases and finished rounds; None: no listener.
        max_workers: maximum number of sites that register at the same time; None: Flower's default.

    Attributes:
        step: the server step; None before registration.
        start_round: last finished round of a resumed run, else 0, because Flower always counts from 1.
        training_clips: clips of the sites whose training is used in the current round, in total.
    """

    def __init__(
        self,
        settings: Settings,
        prompts: ClassPrompts,
        make_step: StepFactory,
        make_space: Callable[[], PublicSpace],
        listener: RoundListener | None = None,
        max_workers: int | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.classes = prompts.names
        self.prompts = prompts
        self.make_step = make_step
        self.make_space = make_space
        self.space: PublicSpace | None = None  # with share=statistics, after registration
        self._total: ClassSums | None = None  # of secure aggregation, until the server step stores it
        self.max_workers = max_workers
        self.listener = listener or RoundListener()
        self.metrics: dict[str, Metric] = make_components("metrics", settings.metrics, Metric)
        self.rule = make_rule(settings.aggregation)
        self.privacy = PrivacyAccount(settings.privacy, settings.secure_sums)
        self.step: ServerStep | None = None
        self.start_round = self.training_clips = 0
        self.audio_shape: tuple[int, int] | None = None
        self.square_root: bool | None = None
        # Without the classes that only the server imports: a site needs none of them, and may not have them.
        rule = settings.aggregation
        if rule.target is not None:
            rule = rule.model_copy(update={"mode": "avg", "target": None, "arguments": {}})
        for_sites = settings.model_copy(
            update={
                "callbacks": {},
                "metrics": {},
                "aggregation": rule,
                "bank": settings.bank.model_copy(update={"withdraw": []}),
            }
        )
        self._settings_json = for_sites.model_dump_json(by_alias=True)
        self._prompts_fingerprint = fingerprint(prompts)
        bound = settings.federation.bind_names and is_deployed_server()
        self._nodes = NodeRegistry(settings.federation, settings.partition.kind == "own", bound)
        self._unshared = UnsharedClasses(
            self.classes,
            settings.share.min_clips,
            settings.scenario.complete_from,
            settings.has_server_step,
            settings.only_server_trains,
        )
        # Sites that have withdrawn: they are not asked again.
        self._withdrawn = set(settings.bank.withdraw)
        if settings.partition.kind != "own":
            known = [site_name(number) for number in range(settings.partition.sites)]
            if unknown := sorted(self._withdrawn - set(known)):
                raise ConfigError(f"bank.withdraw: no site {unknown[0]!r}; the sites are {known[0]} to {known[-1]}")
        self._models = ["before", "after"] if settings.federation.evaluate_before else ["after"]
        if settings.dataset.validates:
            self._models.append(VALIDATION)
        # Number of test clips by site and class, as last reported: so that the clips of a failed site count as missing.
        self._test_clips: dict[str, dict[str, int]] = {}
        self._skipped = 0  # rounds in a row since this start: after a restart, the operator's nodes get new chances
        self._capped: dict[str, tuple[float, float]] = {}  # sites in the last warning about max_site_share
        # State of the current round.
        self._row: dict[str, Any] = {}
        self._clock = 0.0
        self._manager: ClientManager | None = None
        self._intake: Intake | None = None
        self._sent: NDArrays = []  # what the sites train, if they send differences from it
        self._before: NDArrays = []  # the CLIP adapters before the server step
        self._reach: dict[str, float] = {}  # distance of the scored models' outputs from the prompts: bounds the losses
        self._unscored: UnscoredRound | None = None  # the round before, while its scores are on their way
        # Traffic, time and rejections of the registration, for the row of the first round.
        self._registration: dict[str, Any] = {}

    # Flower's hooks, in the order in which it calls them

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters:
        """Wait for the nodes, and register the sites unless the run is resumed.

        The sites register here because Flower needs parameters before the first round, and the adapters' shape depends
        on the sites' embeddings.
        """
        self._nodes.wait(client_manager, self.settings.federation.min_nodes)
        if self.step is None:
            self._register(client_manager)
        return _joined(self._weights())

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Send the global adapters to the sites of the round, to be trained."""
        del parameters  # the same as the adapters of the server step
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
        """Check the replies, aggregate the adapters, and run the server step."""
        round_number = server_round + self.start_round
        start = time.perf_counter()
        self._take_scores(results)
        self._clock += time.perf_counter() - start  # the end of the round before is no part of this one
        self.training_clips = 0  # until here those of the round before
        row, step = self._row, self._step()
        replies = self._valid_replies(results, failures, round_number, "train", row)
        if self.settings.aggregation.if_too_few == "repeat":
            replies = self._repeated(round_number, row, replies)
        row["seconds/sites"] = time.perf_counter() - self._clock - row["seconds/replies"]
        if len(replies) < self.settings.aggregation.min_replies:
            self._skip(round_number, len(replies), row)
            return None, {}
        self._skipped = 0
        self.training_clips = sum(reply.num_examples for reply in replies)
        start = time.perf_counter()
        if self.settings.needs_weights:
            mean = None if self._intake is None else self._intake.mean
            weights = aggregate(self.rule, replies, self._sent_weights(), mean)
            if weights is not None:
                step.adapters.load_weights(weights)
        self._warn_of_capped_sites(replies, row)
        if not self.settings.aggregation.distils:  # frees the bytes of the replies for the server step
            replies = [replace(reply, weights=[]) for reply in replies]
            return_free_memory()
        row["seconds/aggregation"] = time.perf_counter() - start
        self._keep_before()
        row |= _mean_losses(replies)
        # The server step overwrites its own count if it takes optimiser steps.
        shape, site, finetune = self.settings.adapters, self.settings.site, self.settings.finetune
        steps = [site_steps(shape, site, finetune, round_number, reply.num_examples) for reply in replies]
        row |= {"site/optimiser_steps": fmean(steps), "server/optimiser_steps": 0}
        self.listener.phase(round_number, "server")
        updates = [
            ClientUpdate(each.site, self._known(each, step), each.fingerprint, each.weights, each.sums)
            for each in replies
        ]
        row |= step.run(round_number, updates)
        return_free_memory()
        self._unshared.update(round_number, step)
        self.listener.server_step_done(round_number, step)
        return _joined(self._weights()), {}

    def evaluate(self, server_round: int, parameters: Parameters) -> None:
        """Do nothing: the test clips are at the sites."""
        del server_round, parameters

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Send the adapters before and after the server step to all sites, to be scored on their test clips.

        Nothing is sent if the next training messages, which have the same adapters, can ask for the scores as well.
        """
        del parameters
        round_number = server_round + self.start_round
        self._clock = time.perf_counter()
        if not self._asks_scores(round_number):
            self._end_round(self._row, round_number, {})  # Flower does not call `aggregate_evaluate` without a message
            return []
        reach = self._step().adapters.reach()
        self._reach = {kind: max(reach[kind], self._reach.get(kind, 0.0)) for kind in reach}
        before = self._before if "before" in self._models else []
        if self._scores_with_training(round_number):
            self._row["seconds/evaluate"] = 0.0  # part of the next round's training
            self._unscored = UnscoredRound(round_number, self._row, before, self._reach)
            return []
        self.listener.phase(round_number, "evaluate")
        arrays = before + self._weights()
        packed = _joined(arrays)
        request = self._score_request(round_number)
        # Nodes that did not report their name at the start of the round get no second request for it.
        sites = self._nodes.assign(
            client_manager, range(self.settings.partition.sites), ask=False, without=self._withdrawn
        )
        self._row["bytes_down"] += payload_bytes(arrays) * len(sites)
        return [
            (node, EvaluateIns(packed, self._message("evaluate", round_number, site, number, **request)))
            for site, number, node in sites
        ]

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[EvaluateResult],
        failures: list[EvaluateResult | BaseException],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Add up the sites' scores, compute the metrics, and end the round."""
        round_number = server_round + self.start_round
        validator = ReplyValidator(self.classes, self._nodes.assigned, self._row)
        withdrawn, results = validator.withdrawals(results, round_number)
        self._withdraw(withdrawn, self._row)
        by_site = validator.scores(
            results, failures, lambda site: self._expected_scores(site, round_number, self._reach)
        )
        return self._end_round(self._row, round_number, by_site)

    @property
    def _may_ask_scores(self) -> bool:
        """Whether sites may send scores; with privacy, counts without noise may not leave them unless allowed."""
        return not self.settings.privacy.adds_noise or self.settings.privacy.scores

    def _asks_scores(self, round_number: int) -> bool:
        """Whether the sites evaluate the adapters of a round."""
        due = round_number % self.settings.federation.evaluate_frequency == 0 or self._is_last(round_number)
        return due and self._may_ask_scores

    def _scores_with_training(self, round_number: int) -> bool:
        """Whether the next training messages ask for the scores of a round: they must reach every site."""
        settings = self.settings
        wanted = settings.federation.evaluate_with_training
        everyone = settings.scenario.name == "static" and settings.federation.sites_per_round == 1
        possible = everyone and settings.sends_adapters and not self._is_last(round_number)
        return possible and (is_deployed_server() if wanted is None else wanted)

    def _score_request(self, round_number: int) -> dict[str, Scalar]:
        """What a message says about the scores that it asks for."""
        return {
            "models": json.dumps(self._models),
            "calibration": self._step().calibration,
            "confusion": self._is_last(round_number),
        }

    def _take_scores(self, results: Sequence[FitResult]) -> None:
        """End the round before with the scores in training replies, if they were asked for.

        This comes before anything of the replies changes the server's state, so that the state that is saved for that
        round is the one after its server step.
        """
        unscored, self._unscored = self._unscored, None
        if unscored is None:
            return
        validator = ReplyValidator(self.classes, self._nodes.assigned, unscored.row)
        by_site = validator.scores_with_training(
            results, lambda site: self._expected_scores(site, unscored.number, unscored.reach)
        )
        self._end_round(unscored.row, unscored.number, by_site)

    def _end_round(
        self, row: dict[str, Any], round_number: int, by_site: Mapping[str, Mapping[str, Scores]]
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Complete a round's row with the sites' scores."""
        row.setdefault("seconds/evaluate", time.perf_counter() - self._clock)
        row["seconds"] = sum(value for key, value in row.items() if key.startswith("seconds/"))
        asked = self._asks_scores(round_number)
        scores = {model: Scores.merge(site[model] for site in by_site.values()) for model in self._models}
        coverage = self._coverage(by_site, warn=asked)
        if asked or not self._may_ask_scores:  # in a round that is not due no score is missing
            row |= {"test_clips": scores["after"].clips} | coverage.figures
        lost = self._unshared.lost(round_number)
        row |= {"classes_lost": len(lost), "lost_classes": lost} | self.privacy.figures()
        if scores["after"].clips:
            row |= self._metrics(row, round_number, scores, coverage)
        elif asked:
            log.warning("No site scored a test clip: the round has no accuracy")
        evaluation = class_figures(scores, self._step().bank, round_number, coverage, lost)
        evaluation["classes"] = {name: self._counts_only(each) for name, each in evaluation["classes"].items()}
        self.listener.evaluated(round_number, self._step(), evaluation)
        self.listener.round_done(row)
        return row.get("loss"), {"accuracy": float(row.get("accuracy", 0.0))}

    # Registration

    def _register(self, client_manager: ClientManager) -> None:
        """Request the sites' class statistics, make the server step for their embeddings, and fill its bank."""
        start = time.perf_counter()
        self.listener.phase(0, "registration")
        row = fresh_row()
        if self.settings.has_secure_sums:
            replies = self._register_secure_sums(client_manager, row)
        elif self.settings.shares_sums:
            replies = self._register_sums(client_manager, row)
        else:
            replies = self._matching(self._registered("register", [], client_manager, row), row)
        if not replies or self.audio_shape is None:
            raise FederationError(f"no site could register: {reasons(row)}")
        self.step = self.make_step(self.audio_shape, self.space)
        self.step.fill_bank(
            0, [ClientUpdate(reply.site, reply.statistics, reply.fingerprint, sums=reply.sums) for reply in replies]
        )
        if self._total is not None and self.step.sums is not None:
            self.step.sums.store_total([reply.site for reply in replies], self._total)
            self._total = None
        if self.space is not None and not self.settings.adapters.closed_form:
            self.step.adapters.audio_std.fill_(self.space.deviation)
        elif self.space is None and self.settings.adapters.standardise:
            self.step.standardise_adapters({reply.site: reply.moments for reply in replies if reply.moments})
        self._unshared.update(0, self.step)
        self._warn_of_single_clips(replies)
        return_free_memory()
        self._registration = {key: row[key] for key in row if key == "withdrawn"}
        self._registration |= {key: row[key] for key in ("rejected", "rejections", "failures", "failure_reasons")} | {
            "bytes_registration": row["bytes_up"],
            "seconds_registration": time.perf_counter() - start,
        }
        if self.space is not None:  # other registrations send no arrays to the sites
            self._registration |= {"space": self.space.digest, "bytes_down_registration": row["bytes_down"]}
        log.info("%d sites registered in %.1f s", len(replies), time.perf_counter() - start)

    def _registered(
        self, task: Task, arrays: Sequence[Tensor], client_manager: ClientManager, row: dict[str, Any]
    ) -> list[TrainReply]:
        """The valid replies to a task of the registration, whose message carries some arrays."""
        encoded = encode_weights(arrays, "float32")
        packed = _joined(encoded) if encoded else ndarrays_to_parameters([])
        nodes = self._nodes.assign(client_manager, self._active_sites(1), registration=True, without=self._withdrawn)
        if self.settings.shares_sums:
            row["bytes_down"] += payload_bytes(encoded) * len(nodes)
        results, failures = fit_clients(
            [(node, FitIns(packed, self._message(task, 0, site, number, held=""))) for site, number, node in nodes],
            max_workers=self.max_workers,
            timeout=self.settings.federation.round_timeout,
            group_id=0,
        )
        if self._nodes.own:
            self._nodes.learn_names(self._reported_names(results))
        return self._valid_replies(results, failures, 0, task, row)

    def _register_sums(self, client_manager: ClientManager, row: dict[str, Any]) -> list[TrainReply]:
        """Register in two exchanges: the mean of all clips in the public space, then the class sums around it.

        The mean stays the centre for the whole run: sites that come later use it, too, so that all sums add up.
        """
        self.space = space = self.make_space()
        replies = self._matching(self._registered("centre", [space.matrix], client_manager, row), row, space)
        moments = [reply.moments for reply in replies if reply.moments is not None]
        if not moments:
            return []
        clips = cap_client_weights([each.count for each in moments], self.settings.aggregation.max_site_share)
        parts = [weight * each.mean[0].double() for weight, each in zip(clips, moments, strict=True)]
        self.space = space.centred(torch.stack(parts).sum(dim=0) / sum(clips))
        return self._registered("sums", self._space_arrays(), client_manager, row)

    def _register_secure_sums(self, manager: ClientManager, row: dict[str, Any]) -> list[TrainReply]:
        """Register with secure aggregation: the sites report their numbers of clips, and then add up hidden sums.

        The numbers are needed first, as quantisation needs the range of the sums. The replies returned are those of
        the sites in the total of the class sums, without sums.
        """
        space = self.make_space()
        # A site's own mean is not known; its shape is checked at the site, which multiplies by the space's matrix.
        unknown = PooledMoments(torch.zeros(1, space.columns), 0.0, 1)
        replies = [replace(each, moments=unknown) for each in self._registered("counts", [], manager, row)]
        sites = {each.site: replace(each, moments=None) for each in self._matching(replies, row, space)}
        if not sites:
            return []
        try:
            self.settings.secure_sums.check_sites(len(sites))
        except ValueError as error:
            raise FederationError(f"{error} ({reasons(row)})") from error
        self.space = space
        noise = self._largest_noise(len(sites))
        scales = centre_scales([_clips(reply) for reply in sites.values()], noise.centre)
        total, sites = self._secure_total("masked_centre", [space.matrix], scales, sites, manager, row)
        clips = sum(map(_clips, sites.values()))
        if not clips:
            raise FederationError(f"no site has share.min_clips={self.settings.share.min_clips} clips; lower it")
        self.space = space.centred(total / clips)
        noise = self._largest_noise(len(sites))
        scales = sums_scales([each.statistics for each in sites.values()], self.classes, (noise.classes, noise.scatter))
        total, sites = self._secure_total("masked_sums", self._space_arrays(), scales, sites, manager, row)
        counts = torch.zeros(len(self.classes), dtype=torch.int64)
        for reply in sites.values():
            for each in reply.statistics:
                counts[self.classes.index(each.name)] += each.count
        self._total = read_sums(total, counts, space.columns)
        step = quantisation_step(self.settings.secure_sums.bits)
        log.info(
            "The sums of %d sites are known in total only; one site's are quantised in steps of at most %.2g",
            len(sites),
            step * float(scales.max()),
        )
        return list(sites.values())

    def _largest_noise(self, sites: int) -> ReleaseNoise:
        """The largest privacy noise that one of so many sites adds to an entry of each sum, up to `NOISE_LIMIT`."""
        if self.privacy.noise is None:
            return ReleaseNoise(0.0, 0.0, 0.0)
        share = self.privacy.noise.shared_by(self.settings.secure_sums.needed(sites))
        return ReleaseNoise(*(NOISE_LIMIT * deviation for deviation in share))

    def _secure_total(
        self,
        task: MaskedTask,
        arrays: Sequence[Tensor],
        scales: Tensor,
        sites: Mapping[str, TrainReply],
        manager: ClientManager,
        row: dict[str, Any],
    ) -> tuple[Tensor, dict[str, TrainReply]]:
        """The total of the sites' vectors, and the sites in it with their numbers of clips.

        Raises:
            FederationError: a node represents several sites, or too few sites stay until the end.
        """
        registered = self._nodes.assign(manager, self._active_sites(1), registration=True)
        asked = [each for each in registered if each[0] in sites]
        names = {node.cid: site for site, _, node in asked}
        if len(names) < len(asked):
            raise FederationError(
                f"secure_sums=secagg needs a node for each of {len(asked)} sites, and there are {len(names)}; run it "
                f'with --federation-config "num-supernodes={len(registered)}"'
            )
        packed = _joined(encode_weights([*arrays, scales], "float32"))
        needed = self.settings.secure_sums.needed(len(asked))
        requests = [
            (node, FitIns(packed, self._message(task, 0, site, number, sites=needed))) for site, number, node in asked
        ]

        def check(cid: str, result: FitRes) -> None:
            site = names[cid]
            reply = decode_reply([], result.metrics, sites[site].num_examples, self._expected(site, 0, task))
            if _numbers(reply) != _numbers(sites[site]):
                raise InvalidReplyError(f"{site} has other numbers of clips than it has reported before")

        columns = self.settings.projection.columns
        entries = entry_scales(task, scales, columns, self.settings.sends_scatter)
        for site, _, _ in asked:  # a site that is lost may have sent its part
            self.privacy.count(site, centre=task == "masked_centre")
        exchange = SecureExchange(self.settings.secure_sums, self.settings.federation.round_timeout)
        total = exchange.run(requests, len(entries), check, row, manager)
        stayed = sorted(names[cid] for cid in total.nodes)
        return torch.from_numpy(total.mean) * entries * len(stayed), {site: sites[site] for site in stayed}

    def _space_arrays(self) -> list[Tensor]:
        assert self.space is not None
        assert self.space.centre is not None
        return [self.space.matrix, self.space.centre]

    def _reported_names(self, results: Sequence[FitResult]) -> dict[str, str]:
        """The site names in the replies, by the node's `cid`; replies without a valid one are counted later."""
        names = {}
        for node, result in results:
            with suppress(InvalidReplyError):
                names[node.cid] = claimed_site(result.metrics, self.classes)
        return names

    def _matching(
        self, replies: list[TrainReply], row: dict[str, Any], space: PublicSpace | None = None
    ) -> list[TrainReply]:
        """The replies whose embeddings, or rows in a space, are of the agreed spec and scale; others are rejected."""
        agreed = agreed_spec(replies, self.settings.dataset, self.settings.encoder, space is not None)
        if agreed is None:
            if replies:
                least = self.settings.share.min_clips
                row["rejections"].append(f"no site has share.min_clips={least} clips, of one class or in all")
            return []
        self.audio_shape, self.square_root = (agreed.tokens, agreed.width), agreed.square_root
        matching = []
        for reply in replies:
            spec = embedding_spec(reply)
            if spec in (agreed, None):
                matching.append(reply)
            else:
                reject(row, reply.site, f"its embeddings are {spec}, the federation's {agreed}")
        # In a public space all rows have length 1, and the protocol has checked their mean.
        off = self._off_scale(matching) if space is None else {}
        for site, reason in off.items():
            reject(row, site, reason)
        return [reply for reply in matching if reply.site not in off]

    # Messages to the sites

    def _training(self, round_number: int, manager: ClientManager) -> list[tuple[ClientProxy, FitIns]]:
        """A message with the global adapters to each site of the round."""
        sends_adapters = self.settings.sends_adapters
        arrays = self._weights() if sends_adapters else encode_weights(self._space_arrays(), "float32")
        self._sent = arrays if self.settings.share.sends_differences else []
        request: dict[str, Scalar] = {}
        if self._unscored is not None:
            request = self._score_request(self._unscored.number)
            arrays = self._unscored.before + arrays
        self._keep_before()
        parameters = _joined(arrays)
        # A site whose statistics the bank has already does not send them again.
        held = self._step().bank.fingerprints
        share, seed = self.settings.federation.sites_per_round, self.settings.seed
        active = [number for number in self._active_sites(round_number) if site_name(number) not in self._withdrawn]
        sampled = sampled_sites(active, share if active else 1.0, seed, round_number)
        sites = self._nodes.assign(manager, sampled, without=self._withdrawn)
        self._row["bytes_down"] += payload_bytes(arrays) * len(sites)
        largest = self._largest_weights()
        self._intake = intake = Intake(
            self.rule,
            self._sent_weights() if self.settings.needs_weights else [],
            lambda site: self._expected(site, round_number, "train", largest),
            self._row,
            self._compares_scale,
        )
        return [
            (
                IntakeProxy(node, site, intake),
                FitIns(
                    parameters,
                    self._message("train", round_number, site, number, held=held.get(site, ""), **request),
                ),
            )
            for site, number, node in sites
        ]

    def _active_sites(self, round_number: int) -> list[int]:
        return active_sites(self.settings.scenario, self.settings.partition.sites, round_number)

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
        """The arrays of the global adapters: weights, then what is not trained, in full precision."""
        adapters = self._step().adapters
        weights = encode_weights(adapters.weights(), self.settings.share.float_dtype)
        return weights + encode_weights(adapters.fixed(), "float32")

    def _sent_weights(self) -> list[Tensor]:
        """The global weights that the sites start from, on the CPU as their replies."""
        return [weight.cpu() for weight in self._step().adapters.weights()]

    def _keep_before(self) -> None:
        """Keep what is needed to evaluate the adapters as they are before the server step."""
        self._before = self._clip_side()
        self._reach = self._step().adapters.reach()

    def _clip_side(self) -> NDArrays:
        return encode_weights(self._step().adapters.clip_weights(), self.settings.share.float_dtype)

    # Replies of the sites

    def _valid_replies(
        self,
        results: Sequence[FitResult],
        failures: Sequence[FitResult | BaseException],
        round_number: int,
        task: Task,
        row: dict[str, Any],
    ) -> list[TrainReply]:
        """The replies that pass every check, in the order of the site names."""
        validator = ReplyValidator(self.classes, self._nodes.assigned, row)
        withdrawn, results = validator.withdrawals(results, round_number)
        self._withdraw(withdrawn, row)
        largest = self._largest_weights()
        replies = validator.replies(
            results,
            failures,
            lambda site: self._expected(site, round_number, task, largest),
            self._off_scale if task == "train" else None,  # at registration only after the specs agree
        )
        self._test_clips |= {reply.site: reply.test_clips for reply in replies}
        for reply in replies:
            if reply.sums is not None or (task == "centre" and reply.moments is not None):
                self.privacy.count(reply.site, centre=task == "centre")
        return replies

    def _withdraw(self, sites: Sequence[str], row: dict[str, Any]) -> None:
        """Remove what sites have sent, and record them in the row; they are not asked again."""
        if not sites:
            return
        inside = sorted({*sites}.intersection(self._in_total))
        if inside:
            log.warning(
                "Withdrawn, but their sums stay in the total of secure aggregation, out of which none can be taken: "
                "%s; start a new run without them",
                ", ".join(inside),
            )
        else:
            log.warning("Withdrawn, and what they have sent is removed: %s", ", ".join(sites))
        self._withdrawn.update(sites)
        row["withdrawn"] = sorted({*row.get("withdrawn", ()), *sites})
        for site in sites:
            self._test_clips.pop(site, None)
        if self.step is not None:
            self.step.withdraw([site for site in sites if site not in inside])

    @property
    def _in_total(self) -> tuple[str, ...]:
        """The sites whose sums are known in the total of secure aggregation only."""
        return () if self.step is None or self.step.sums is None else self.step.sums.within

    def _known(self, reply: TrainReply, step: ServerStep) -> list[ClassStatistics]:
        """The classes of a reply; none if the site is missing from the total of secure aggregation."""
        missing = self.settings.has_secure_sums and step.sums is not None and reply.site not in step.sums.within
        return [] if missing else reply.statistics

    @property
    def _compares_scale(self) -> bool:
        """Whether the sites' scales are compared: with privacy a site with few clips sends little but noise."""
        return not self.settings.privacy.adds_noise and math.isfinite(self.settings.aggregation.scale_limit)

    def _off_scale(self, replies: Sequence[TrainReply]) -> dict[str, str]:
        """The sites whose reply differs in scale from the others', each with the reason."""
        if not self._compares_scale:
            return {}
        return off_scale(replies, None if self.step is None else self.step.bank, self.settings.aggregation.scale_limit)

    def _largest_weights(self) -> float:
        """Largest root mean square of a site's adapters: a multiple of that of the adapters sent, or infinite."""
        sent = root_mean_square([] if self.step is None else self.step.adapters.weights())
        return self.settings.aggregation.scale_limit * sent if sent else math.inf

    def _expected(self, site: str, round_number: int, task: Task, largest: float = math.inf) -> ReplySpec:
        """The specification of a site's reply."""
        step, settings = self.step, self.settings
        prompts, share, noise = self.prompts, settings.share, self.privacy.noise
        weights = step.adapters.weights() if step is not None and settings.needs_weights else []
        kind = share.kind if settings.needs_prototypes else "mean"
        sums = settings.projection.columns if settings.shares_sums and not settings.has_secure_sums else 0
        return ReplySpec(
            site=site,
            round_number=round_number,
            task=task,
            weight_shapes=[tuple(weight.shape) for weight in weights],
            max_weight_rms=largest,
            sent_weights=self._sent[: len(weights)],
            classes=self.classes,
            audio_shape=self.audio_shape,
            clip_shape=(prompts.clip.shape[1], prompts.clip.shape[2]),
            t5_shape=None if prompts.t5 is None else (prompts.t5.shape[1], prompts.t5.shape[2]),
            square_root=self.square_root,
            prototypes=not settings.shares_sums and (task == "register" or self.settings.needs_prototypes),
            sums=sums,
            space=None if self.space is None else self.space.digest,
            sums_noise=(0.0, 0.0) if noise is None else (noise.classes, noise.scatter),
            centre_noise=0.0 if noise is None else noise.centre,
            groups={"mean": 1, "samples": 0}.get(kind, share.prototypes),
            min_clips=1 if kind == "samples" else share.min_clips,
            variances=share.variance,
            losses=("loss", *TERMS) if settings.site_trains else (),
            outputs=self.settings.needs_outputs,
            held_fingerprint="" if step is None else step.bank.fingerprints.get(site, ""),
            held_classes=() if step is None else tuple(step.bank.entries.get(site, ())),
        )

    def _expected_scores(self, site: str, round_number: int, reach: Mapping[str, float]) -> EvalReplySpec:
        """The specification of a site's evaluation reply."""
        return EvalReplySpec(
            site=site,
            round_number=round_number,
            classes=self.classes,
            models=self._models,
            confusion=self._is_last(round_number),
            t5_models=() if self.prompts.t5 is None else ("after",),
            has_unseen=bool(self._step().settings.unseen),
            test_clips=self._test_clips.get(site),
            max_loss=self._step().loss.highest(reach),
        )

    def _repeated(self, round_number: int, row: dict[str, Any], replies: list[TrainReply]) -> list[TrainReply]:
        """The valid replies, after sending the round again up to `max_skipped_rounds` times while they are too few."""
        settings = self.settings.aggregation
        assert self._manager is not None
        for repetition in range(1, settings.max_skipped_rounds + 1):
            if len(replies) >= settings.min_replies:
                break
            log.warning(
                "Round %d: %d valid replies, aggregation.min_replies=%d: sending again (%d of %d)",
                round_number,
                len(replies),
                settings.min_replies,
                repetition,
                settings.max_skipped_rounds,
            )
            if self._nodes.own:
                self._nodes.wait(self._manager, settings.min_replies)
            results, failures = fit_clients(
                self._training(round_number, self._manager),
                max_workers=self.max_workers,
                timeout=self.settings.federation.round_timeout,
                group_id=round_number,
            )
            row["repetitions"] = repetition
            replies = self._valid_replies(results, failures, round_number, "train", row)
        return replies

    def _warn_of_single_clips(self, replies: Sequence[TrainReply]) -> None:
        """Warn if the server sees class sums of one clip."""
        settings = self.settings
        single = sum(each.count == 1 for reply in replies if reply.sums is not None for each in reply.statistics)
        if single and settings.secure_sums.name == settings.privacy.name == "none":
            log.warning(
                "share=statistics: %d class sums are those of a single clip, whose row the server sees; raise "
                "share.min_clips=%d, or set secure_sums=secagg",
                single,
                settings.share.min_clips,
            )

    def _warn_of_capped_sites(self, replies: Sequence[TrainReply], row: dict[str, Any]) -> None:
        """Warn of the sites whose weight in a weighted mean is capped, unless the last warning was of the same."""
        aggregation = self.settings.aggregation
        if aggregation.mode != "weighted":
            return
        cut = cut_shares(self.rule, replies)
        row["aggregation/capped_sites"] = len(cut)
        if cut and cut != self._capped:
            log.warning(
                "aggregation.max_site_share=%g caps the weights of these sites in the mean: %s; if all sites are "
                "trusted, 1 removes the cap",
                aggregation.max_site_share,
                listed(
                    [f"{site} ({had:.2f} of the clips, weight {counts:.2f})" for site, (had, counts) in cut.items()]
                ),
            )
        self._capped = cut

    def _skip(self, round_number: int, replies: int, row: dict[str, Any]) -> None:
        """Keep the adapters for this round; end the run after too many such rounds in a row."""
        settings = self.settings.aggregation
        few = f"round {round_number}: {replies} valid replies, aggregation.min_replies={settings.min_replies}"
        most, repeats = settings.max_skipped_rounds, settings.if_too_few == "repeat"
        if repeats or self._skipped == most:
            tried = f"{most} repetitions" if repeats else f"{self._skipped} skipped rounds"
            raise FederationError(f"{few}, after {tried} (aggregation.max_skipped_rounds={most}): {reasons(row)}")
        log.warning("%s: the adapters are kept", few.capitalize())
        self._skipped += 1
        row["skipped"] = True

    def _coverage(self, by_site: Mapping[str, Mapping[str, Scores]], warn: bool) -> Coverage:
        """Which sites were evaluated; with `warn` a warning names the others."""
        self._test_clips |= {
            site: {name: score.clips for name, score in scores["after"].classes.items()}
            for site, scores in by_site.items()
        }
        sites = {*self._nodes.assigned, *self._test_clips}
        coverage = Coverage(by_site.keys(), sites, self._test_clips, self._nodes.nameless)
        if coverage.missing and warn:
            log.warning("The figures of this round do not include the test clips of %s", ", ".join(coverage.missing))
        return coverage

    def _metrics(
        self, row: Mapping[str, Any], round_number: int, scores: Mapping[str, Scores], coverage: Coverage
    ) -> dict[str, Any]:
        """The metrics of the round's row."""
        active = None
        if self.settings.scenario.name != "static":
            active = {site_name(number) for number in self._active_sites(round_number)}
        figures = compute_metrics(self.metrics, Evaluation(scores, coverage, self.classes, self._step(), active), row)
        return self._counts_only(figures)

    def _counts_only(self, figures: dict[str, Any]) -> dict[str, Any]:
        """The figures, with None for those of cosines and losses if the sites send counts only."""
        if self.settings.privacy.adds_noise:
            figures |= dict.fromkeys(key for key in figures if key.rpartition("/")[2] in ("cosine", "loss"))
        return figures

    def _is_last(self, round_number: int) -> bool:
        """Whether the run ends with this round; the sites then also report their confusion matrix."""
        return round_number == self.settings.rounds

    # State

    def state_dict(self) -> dict[str, Any]:
        """The state that the next round depends on, by component; without the warnings that were given."""
        return {
            "strategy": {
                "audio_shape": list(self.audio_shape or ()),
                "square_root": self.square_root,
                "space": None if self.space is None else self._space_arrays(),
                "test_clips": {site: dict(clips) for site, clips in self._test_clips.items()},
                "unshared": list(self._unshared.names),
                **({"withdrawn": sorted(self._withdrawn)} if self._withdrawn else {}),
            },
            "aggregation": self.rule.state_dict(),
            **({} if self.privacy.noise is None else {"privacy": self.privacy.state_dict()}),
            "nodes": self._nodes.state_dict(),
            **self._step().state_dict(),
        }

    def load_state_dict(self, components: Mapping[str, Any]) -> None:
        """Load the result of `state_dict`, and make the server step."""
        own = components["strategy"]
        self.audio_shape = (own["audio_shape"][0], own["audio_shape"][1])
        self.square_root = own["square_root"]
        self._test_clips = {site: dict(clips) for site, clips in own["test_clips"].items()}
        self._unshared.names = tuple(own["unshared"])
        self.rule.load_state_dict(components["aggregation"])
        if self.privacy.noise is not None:
            self.privacy.load_state_dict(components["privacy"])
        self._nodes.load_state_dict(components["nodes"])
        self.space = None if own["space"] is None else PublicSpace(*own["space"])
        self.step = self.make_step(self.audio_shape, self.space)
        self.step.load_state_dict(components)
        before = set(own.get("withdrawn", ()))
        now, self._withdrawn = sorted(self._withdrawn - before), self._withdrawn | before
        if now and self.settings.has_secure_sums:
            raise ConfigError(
                f"bank.withdraw: the sums of {now[0]} are in the total of secure aggregation, out of which none can be "
                "taken; start a new run without it"
            )
        self._withdraw(now, self._registration)

    def _step(self) -> ServerStep:
        if self.step is None:
            raise FederationError("no site has registered: the server step is made in `initialize_parameters`")
        return self.step


def _joined(arrays: NDArrays) -> Parameters:
    """Arrays packed into one, as Flower's parameters."""
    return ndarrays_to_parameters([join_arrays(arrays)])


def _numbers(reply: TrainReply) -> dict[str, int]:
    """Clips by class."""
    return {each.name: each.count for each in reply.statistics}


def _clips(reply: TrainReply) -> int:
    """Clips of all classes of a reply."""
    return sum(_numbers(reply).values())


def _mean_losses(replies: Sequence[TrainReply]) -> dict[str, float]:
    """Training losses, averaged over the sites by their numbers of clips."""
    clips = sum(reply.num_examples for reply in replies)
    names = sorted({name for reply in replies for name in reply.losses})
    return {
        f"site/{name}": sum(reply.losses.get(name, 0.0) * reply.num_examples for reply in replies) / clips
        for name in names
    }
