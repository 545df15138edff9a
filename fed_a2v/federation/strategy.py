"""The Flower strategy: what the server asks of the sites, and what it does with their answers."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from flwr.common import (
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetPropertiesIns,
    NDArrays,
    Parameters,
    Scalar,
    ndarrays_to_parameters,
)
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.server import fit_clients
from flwr.server.strategy import Strategy

from fed_a2v.core.adapters import PromptSet
from fed_a2v.core.seeding import numpy_generator
from fed_a2v.core.server_step import ServerStep, SiteUpdate
from fed_a2v.core.shares import capped
from fed_a2v.core.zero_shot import UnseenAccuracy
from fed_a2v.data.partition import site_name
from fed_a2v.federation.aggregation import aggregate
from fed_a2v.federation.agreement import fingerprint
from fed_a2v.federation.memory import return_free_memory
from fed_a2v.federation.wire import (
    BadReplyError,
    Expected,
    Scores,
    SiteReply,
    Task,
    claimed_site,
    decode_reply,
    decode_scores,
    encode_weights,
    payload_bytes,
    read_arrays,
)
from fed_a2v.settings import Settings

log = logging.getLogger("fed_a2v")

FitResult = tuple[ClientProxy, FitRes]
EvaluateResult = tuple[ClientProxy, EvaluateRes]
# Builds the server step once the sites have said how wide their embeddings are: (S, Da) -> step.
StepFactory = Callable[[tuple[int, int]], ServerStep]

SECOND_REPLY = "a second reply of the same site"
SITE_NAME = re.compile(r"site-[\w .-]{1,64}")


class FederationError(RuntimeError):
    """The federation cannot start or go on."""


class RoundListener:
    """What wants to know how the run goes. The default listens to nothing."""

    def phase(self, round_number: int, name: str) -> None:
        """A phase of a round begins."""

    def generator_due(self, round_number: int, step: ServerStep) -> None:
        """The generator of a round is trained."""

    def evaluated(self, round_number: int, scores: Mapping[str, Scores], step: ServerStep) -> None:
        """The sites have scored the models of a round ("before" and "after" the server step)."""

    def round_done(self, row: dict[str, Any], state: dict[str, Any]) -> None:
        """A round is over: its row of metrics, and all that the next round depends on."""


class FedA2V(Strategy):
    """Averages the sites' adapters, trains a generator on what they sent, and fine-tunes the average.

    Before the first round the sites introduce themselves: they send averages of their clips' embeddings, from
    which the server learns the width of the embeddings and how to standardise them. The averages stay in its
    bank; a site sends them again only when its data has changed.

    The sites of a simulated federation are dealt to whatever nodes there are, several to a node if need be, so
    results do not depend on the number of nodes. With `partition.kind = own` every node is a site.

    Args:
        settings: of the experiment.
        classes: names of all classes.
        prompts: the class prompts.
        make_step: builds the server step for embeddings of shape (S, Da).
        listener: told of phases and finished rounds.
        state: of an earlier run, as handed to `RoundListener.round_done`; rounds go on behind it.
        max_workers: sites that work at the same time during the introduction; None: Flower's default.
    """

    def __init__(
        self,
        settings: Settings,
        classes: Sequence[str],
        prompts: PromptSet,
        make_step: StepFactory,
        listener: RoundListener | None = None,
        state: dict[str, Any] | None = None,
        max_workers: int | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.classes = tuple(classes)
        self.prompts = prompts
        self._prompts_fingerprint = fingerprint(prompts)
        self.make_step = make_step
        self.max_workers = max_workers
        self.listener = listener or RoundListener()
        self.step: ServerStep | None = None
        self.start_round = 0
        self.audio_shape: tuple[int, int] | None = None
        self.square_root: bool | None = None
        self._names: dict[str, str] = {}
        self._asked: dict[str, str] = {}
        self._models = ("before", "after") if settings.federation.evaluate_before else ("after",)
        self._manager: ClientManager | None = None
        # Rounds in a row that were skipped for want of good replies.
        self._skipped = 0
        self._row: dict[str, Any] = {}
        # What the introduction cost, put into the row of the first round.
        self._introduction: dict[str, Any] = {}
        self._before: NDArrays = []
        self._clock = 0.0
        if state is not None:
            self._restore(state)

    # Flower's hooks, in the order in which it calls them

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters:
        """Wait for the nodes; let the sites introduce themselves unless an earlier run did."""
        self._wait_for_nodes(client_manager, self.settings.federation.min_nodes)
        if self.step is None:
            self._introduce(client_manager)
        return ndarrays_to_parameters(self._weights())

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Ask every site of the round to train the global adapters."""
        del parameters
        round_number = server_round + self.start_round
        self._row = {"round": round_number, **_fresh_row(), **self._introduction}
        self._introduction = {}
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
        weights = aggregate(replies, step.adapters.weights(), self.settings.aggregation)
        if weights is not None:
            step.adapters.load_weights(weights)
        if self.settings.aggregation.mode != "kd":  # else the bytes that came would stay for the rest of the round
            replies = [replace(reply, weights=[]) for reply in replies]
            return_free_memory()
        row["seconds/aggregation"] = time.perf_counter() - start
        self._before = self._clip_side()
        row |= _mean_losses(replies)
        self.listener.phase(round_number, "server")
        updates = [SiteUpdate(reply.site, reply.prompts, reply.fingerprint, reply.weights) for reply in replies]
        row |= step.run(round_number, updates)
        self.listener.generator_due(round_number, step)
        return ndarrays_to_parameters(self._weights()), {}

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
        arrays = self._before + after if "before" in self._models else after
        packed = ndarrays_to_parameters(arrays)

        def instruction(site: str, number: int) -> EvaluateIns:
            message = self._message("evaluate", round_number, site, number)
            models: dict[str, Scalar] = {
                "models": json.dumps(self._models),
                "calibration": self._step().calibration,
                "confusion": self._is_last(round_number),
            }
            return EvaluateIns(packed, message | models)

        instructions = self._messages(client_manager, range(self.settings.partition.sites), instruction)
        self._row["bytes_down"] += payload_bytes(arrays) * len(instructions)
        return instructions

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[EvaluateResult],
        failures: list[EvaluateResult | BaseException],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Add up the sites' counts, and close the round."""
        round_number = server_round + self.start_round
        row = self._row
        scores = self._good_scores(results, failures, round_number, row)
        row["seconds/evaluate"] = time.perf_counter() - self._clock
        row["seconds"] = sum(value for key, value in row.items() if key.startswith("seconds/"))
        after = scores.get("after")
        if after is not None and after.clips:
            row |= {
                "accuracy": after.accuracy,
                "accuracy_at_5": after.accuracy_at_5,
                "cosine": after.cosine,
                "loss": after.loss,
                "test_clips": after.clips,
                "per_class": after.class_accuracy,
            }
            if "before" in scores:
                row["accuracy_before"] = scores["before"].accuracy
            row |= self._without_recordings(after)
            if self.settings.scenario.name != "static":
                row |= self._remembered(after, round_number)
        self.listener.evaluated(round_number, scores, self._step())
        self.listener.round_done(row, self.state_dict(round_number))
        return row.get("loss"), {"accuracy": float(row.get("accuracy", 0.0))}

    def _without_recordings(self, scores: Scores) -> dict[str, Any]:
        """Accuracy on the classes that no site trains on, and on the others; nothing where there are none."""
        unseen = set(self._step().settings.unseen)
        of_unseen, of_seen = scores.of(unseen), scores.of(set(self.classes) - unseen)
        if not of_unseen.classes or not of_seen.classes:
            return {}
        plain = UnseenAccuracy(of_unseen.accuracy_among, of_unseen.accuracy, of_seen.accuracy)
        calibrated = UnseenAccuracy(
            of_unseen.accuracy_among, of_unseen.accuracy_calibrated, of_seen.accuracy_calibrated
        )
        return {
            "unseen/among_unseen": plain.among_unseen,
            "unseen/unseen": plain.unseen,
            "unseen/seen": plain.seen,
            "unseen/harmonic": plain.harmonic,
            "unseen/unseen_calibrated": calibrated.unseen,
            "unseen/seen_calibrated": calibrated.seen,
            "unseen/harmonic_calibrated": calibrated.harmonic,
            "unseen/calibration": self._step().calibration,
        }

    def _remembered(self, scores: Scores, round_number: int) -> dict[str, Any]:
        """Accuracy on the classes heard of so far, and on those whose sites are all gone; of all prompts each time."""
        here = {site_name(number) for number in self._active(round_number)}
        known: dict[str, bool] = {}
        for site, prompt in self._step().bank:
            known[prompt.name] = known.get(prompt.name, False) or site in here
        old = {name for name, present in known.items() if not present}
        of_known, of_old = scores.of(known), scores.of(old)
        return {
            "classes_known": len(known),
            "accuracy_known": of_known.accuracy if of_known.classes else None,
            "classes_old": len(old),
            "accuracy_old": of_old.accuracy if of_old.classes else None,
        }

    # State

    def state_dict(self, round_number: int) -> dict[str, Any]:
        """All that the rounds behind `round_number` depend on."""
        return {
            "round": round_number,
            "audio_shape": list(self.audio_shape or ()),
            "square_root": self.square_root,
            "step": self._step().state_dict(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.start_round = state["round"]
        self.audio_shape = (state["audio_shape"][0], state["audio_shape"][1])
        self.square_root = state["square_root"]
        self.step = self.make_step(self.audio_shape)
        self.step.load_state_dict(state["step"])

    def _step(self) -> ServerStep:
        if self.step is None:
            raise FederationError("no site has introduced itself yet")
        return self.step

    # Too few good replies

    def _repeated(self, round_number: int, row: dict[str, Any], replies: list[SiteReply]) -> list[SiteReply]:
        """The good replies, after asking all sites again while there are too few and patience lasts."""
        settings = self.settings.aggregation
        assert self._manager is not None
        for repetition in range(1, settings.patience + 1):
            if len(replies) >= settings.min_replies:
                break
            log.warning(
                "Round %d: %d good replies, aggregation.min_replies=%d: asking again (%d of %d)",
                round_number,
                len(replies),
                settings.min_replies,
                repetition,
                settings.patience,
            )
            if self.settings.partition.kind == "own":
                self._wait_for_nodes(self._manager, settings.min_replies)
            results, failures = fit_clients(
                self._training(round_number, self._manager),
                max_workers=self.max_workers,
                timeout=self.settings.federation.round_timeout,
                group_id=round_number,
            )
            row["repetitions"] = repetition
            replies = self._good_replies(results, failures, round_number, "train", row)
        return replies

    def _skip(self, round_number: int, replies: int, row: dict[str, Any]) -> None:
        """Leave the adapters as they are for a round; end the run where that is too often."""
        settings = self.settings.aggregation
        few = f"round {round_number}: {replies} good replies, aggregation.min_replies={settings.min_replies}"
        repeats = settings.if_too_few == "repeat"
        if repeats or self._skipped == settings.patience:
            times = f"{settings.patience} repetitions" if repeats else f"{self._skipped} rounds skipped before it"
            raise FederationError(f"{few}, aggregation.patience ended after {times}: {_reasons(row)}")
        log.warning("%s: the adapters stay as they were", few.capitalize())
        self._skipped += 1
        row["skipped"] = True

    # Nodes and sites

    def _wait_for_nodes(self, client_manager: ClientManager, wanted: int) -> None:
        """Wait for so many nodes, with a word every 10 s.

        Raises:
            FederationError: they do not come within `federation.start_timeout`.
        """
        limit = self.settings.federation.start_timeout
        deadline = time.monotonic() + limit
        while not client_manager.wait_for(wanted, timeout=min(10, max(1, int(deadline - time.monotonic())))):
            present = client_manager.num_available()
            if time.monotonic() >= deadline:
                raise FederationError(
                    f"{present} of {wanted} nodes came within {limit:.0f} s: start more, or lower "
                    "federation.min_nodes and aggregation.min_replies, or raise federation.start_timeout"
                )
            log.info("Waiting for %d more of %d nodes", wanted - present, wanted)

    def _introduce(self, client_manager: ClientManager) -> None:
        start = time.perf_counter()
        self.listener.phase(0, "introduction")

        def instruction(site: str, number: int) -> FitIns:
            empty = ndarrays_to_parameters([])
            return FitIns(empty, self._message("introduce", 0, site, number) | {"held": ""})

        results, failures = fit_clients(
            self._messages(client_manager, self._active(1), instruction),
            max_workers=self.max_workers,
            timeout=self.settings.federation.round_timeout,
            group_id=0,
        )
        row = _fresh_row()
        replies = self._agreeing(self._good_replies(results, failures, 0, "introduce", row), row)
        if not replies or self.audio_shape is None:
            raise FederationError(f"no site could introduce itself: {_reasons(row)}")
        self.step = self.make_step(self.audio_shape)
        self.step.fill_bank(0, [SiteUpdate(reply.site, reply.prompts, reply.fingerprint) for reply in replies])
        if self.settings.adapters.standardise:
            self.step.standardise_adapters()
        # The first round's row also has what went wrong here.
        self._introduction = {key: row[key] for key in ("rejected", "rejections", "failures", "failure_reasons")} | {
            "bytes_introduction": row["bytes_up"],
            "seconds_introduction": time.perf_counter() - start,
        }
        log.info("%d sites introduced themselves in %.1f s", len(replies), time.perf_counter() - start)

    def _agreeing(self, replies: list[SiteReply], row: dict[str, Any]) -> list[SiteReply]:
        """The sites whose embeddings have the shape and scale of most clips; the rest is turned away."""
        clips: dict[tuple[int, int, bool], float] = {}
        described = [(reply, _audio_kind(reply)) for reply in replies]
        believed = capped([reply.num_examples for reply in replies], self.settings.aggregation.max_site_share)
        for (_, kind), count in zip(described, believed, strict=True):
            if kind is not None:
                clips[kind] = clips.get(kind, 0) + count
        if not clips:
            if replies:
                row["rejections"].append("no site has as many clips of a class as share.min_clips asks for")
            return []
        most = max(sorted(clips), key=lambda kind: clips[kind])
        self.audio_shape, self.square_root = most[:2], most[2]
        agreeing = []
        for reply, kind in described:
            if kind in (most, None):
                agreeing.append(reply)
            else:
                _reject(row, reply.site, f"its embeddings are {_words(kind)}, most are {_words(most)}")
        return agreeing

    def _messages(self, manager: ClientManager, numbers: Iterable[int], make: Callable[..., Any]) -> list[Any]:
        """One message for each of the sites `numbers`; for all nodes where each is a site of its own.

        Flower passes over a round in which nobody is asked, as if it had been done: there is always somebody.

        Raises:
            FederationError: there is no node, and none comes within `federation.start_timeout`.
        """
        self._wait_for_nodes(manager, 1)
        proxies = [proxy for _, proxy in sorted(manager.all().items())]
        if self.settings.partition.kind == "own":
            self._learn_names(proxies)
            asked = [(self._names[proxy.cid], 0, proxy) for proxy in proxies if proxy.cid in self._names]
        else:
            asked = [(site_name(number), number, proxies[number % len(proxies)]) for number in numbers if proxies]
        if not asked:
            raise FederationError(f"none of {len(proxies)} nodes answers; see the log of their SuperNodes")
        self._asked = {site: proxy.cid for site, _, proxy in asked}
        return [(proxy, make(site, number)) for site, number, proxy in asked]

    def _active(self, round_number: int) -> list[int]:
        """The sites that are there in a round."""
        scenario, sites = self.settings.scenario, self.settings.partition.sites
        if scenario.name == "static":
            return list(range(sites))
        step = min((round_number - 1) // scenario.rounds_per_step, scenario.steps - 1)
        return [site for site in range(sites) if site * scenario.steps // sites == step]

    def _is_last(self, round_number: int) -> bool:
        """Whether the run ends with this round: then the sites also say what they confuse."""
        return round_number == self.settings.rounds

    def _sampled(self, round_number: int) -> list[int]:
        """The sites that train in a round."""
        active, share = self._active(round_number), self.settings.federation.sites_per_round
        if share == 1.0:
            return active
        random = numpy_generator(self.settings.seed, "sites of a round", round_number)
        return sorted(random.choice(active, size=max(1, round(share * len(active))), replace=False).tolist())

    def _learn_names(self, proxies: Sequence[ClientProxy]) -> None:
        """Ask the nodes not heard of before, all at once, what they call their site; some may not answer."""
        timeout = self.settings.federation.round_timeout
        strangers = [proxy for proxy in proxies if proxy.cid not in self._names]

        def ask(proxy: ClientProxy) -> str | None:
            try:
                properties = proxy.get_properties(GetPropertiesIns({}), timeout, 0).properties
            except Exception as error:  # whatever the transport raises for a node that is lost
                log.warning("Node %s does not say its name and is left out: %r", proxy.cid, error)
                return None
            return f"site-{properties.get('site', proxy.cid)!s}"

        taken = {self._names[proxy.cid] for proxy in proxies if proxy.cid in self._names}
        with ThreadPoolExecutor(max_workers=len(strangers) or 1) as pool:
            for proxy, name in zip(strangers, pool.map(ask, strangers), strict=True):
                if name is None:
                    continue
                if name in taken or not SITE_NAME.fullmatch(name):
                    why = "is another node's" if name in taken else "is not 1 to 64 letters, digits, spaces or ._-"
                    log.warning("Node %s is left out: the name of its site, %.80r, %s", proxy.cid, name, why)
                    continue
                taken.add(name)
                self._names[proxy.cid] = name

    # Messages

    def _training(self, round_number: int, manager: ClientManager) -> list[tuple[ClientProxy, FitIns]]:
        """The messages that ask the sites of a round to train the global adapters."""
        arrays = self._weights()
        self._before = self._clip_side()
        parameters = ndarrays_to_parameters(arrays)
        bank = self._step().bank

        def instruction(site: str, number: int) -> FitIns:
            held = bank.fingerprints.get(site, "")
            return FitIns(parameters, self._message("train", round_number, site, number) | {"held": held})

        instructions = self._messages(manager, self._sampled(round_number), instruction)
        self._row["bytes_down"] += payload_bytes(arrays) * len(instructions)
        return instructions

    def _message(self, task: str, round_number: int, site: str, number: int) -> dict[str, Scalar]:
        return {
            "task": task,
            "round": round_number,
            "number": number,
            "site": site,
            "settings": self.settings.model_dump_json(by_alias=True),
            "classes": json.dumps(self.classes),
            "prompts": self._prompts_fingerprint,
        }

    def _weights(self) -> NDArrays:
        """The global adapters as they travel: weights, then the standardisation in full precision."""
        adapters = self._step().adapters
        weights = encode_weights(adapters.weights(), self.settings.share.dtype)
        return weights + encode_weights([adapters.audio_mean, adapters.audio_std], "float32")

    def _clip_side(self) -> NDArrays:
        """The weights that an evaluation before the server step needs."""
        return encode_weights(self._step().adapters.clip_weights(), self.settings.share.dtype)

    # Replies

    def _good_replies(
        self,
        results: Iterable[FitResult],
        failures: Sequence[FitResult | BaseException],
        round_number: int,
        task: Task,
        row: dict[str, Any],
    ) -> list[SiteReply]:
        """The replies that pass every check, by site name; the others are counted with the reason."""
        start = time.perf_counter()
        _report(failures, row)
        refused: set[str] = set()
        claims: list[tuple[str, ClientProxy, FitRes]] = []
        for proxy, result in results:
            try:
                claims.append((self._sender(proxy, result.metrics, ()), proxy, result))
            except BadReplyError as error:
                refused |= {site for site, node in self._asked.items() if node == proxy.cid}
                _reject(row, f"the reply of node {proxy.cid}", error)
        replies: dict[str, SiteReply] = {}
        for site, proxy, result in sorted(claims, key=lambda claim: claim[0]):
            try:
                if site in replies:
                    raise BadReplyError(SECOND_REPLY)
                reply = self._unpacked(result, self._expected(site, round_number, task), row)
            except BadReplyError as error:
                refused.add(site)
                _reject(row, f"the reply of node {proxy.cid}", error)
                continue
            replies[site] = reply
        row["replies"] = len(replies)
        row["sites"] = {
            site: "replied" if site in replies else "rejected" if site in refused else "failed"
            for site in sorted(self._asked)
        }
        row["site_seconds"] = {site: reply.seconds for site, reply in replies.items()}
        if missing := [site for site, answer in row["sites"].items() if answer != "replied"]:
            log.warning("No good reply of %s", ", ".join(missing))
        row["seconds/replies"] = row.get("seconds/replies", 0.0) + time.perf_counter() - start
        return list(replies.values())

    def _unpacked(self, result: FitRes, expected: Expected, row: dict[str, Any]) -> SiteReply:
        """The reply in `result`; its weights alone keep hold of the bytes."""
        arrays = read_arrays(result.parameters)
        result.parameters = Parameters([], result.parameters.tensor_type)
        row["bytes_up"] += payload_bytes(arrays)
        return decode_reply(arrays, result.metrics, result.num_examples, expected)

    def _good_scores(
        self,
        results: Iterable[EvaluateResult],
        failures: Sequence[EvaluateResult | BaseException],
        round_number: int,
        row: dict[str, Any],
    ) -> dict[str, Scores]:
        """The sites' scores added up, by model."""
        _report(failures, row)
        scores: dict[str, dict[str, Scores]] = {}
        for proxy, result in results:
            try:
                site = self._sender(proxy, result.metrics, scores)
                scores[site] = decode_scores(
                    result.metrics,
                    result.num_examples,
                    site,
                    round_number,
                    self.classes,
                    self._models,
                    self._is_last(round_number),
                )
            except BadReplyError as error:
                _reject(row, f"the scores of node {proxy.cid}", error)
        return {model: Scores.merge([scores[site][model] for site in sorted(scores)]) for model in self._models}

    def _sender(self, proxy: ClientProxy, metrics: Mapping[str, Scalar], heard: Container[str]) -> str:
        """The site that a reply claims to come from, if that node was asked for it and it is the first."""
        site = claimed_site(metrics, self.classes)
        if self._asked.get(site) != proxy.cid:
            raise BadReplyError("it names a site that this node was not asked for")
        if site in heard:
            raise BadReplyError(SECOND_REPLY)
        return site

    def _expected(self, site: str, round_number: int, task: Task) -> Expected:
        step = self.step
        prompts = self.prompts
        return Expected(
            site=site,
            round_number=round_number,
            task=task,
            weight_shapes=[] if step is None else [tuple(weight.shape) for weight in step.adapters.weights()],
            classes=self.classes,
            audio_shape=self.audio_shape,
            clip_shape=(prompts.clip.shape[1], prompts.clip.shape[2]),
            t5_shape=None if prompts.t5 is None else (prompts.t5.shape[1], prompts.t5.shape[2]),
            square_root=self.square_root,
            held_fingerprint="" if step is None else step.bank.fingerprints.get(site, ""),
            held_classes=() if step is None else tuple(step.bank.entries.get(site, ())),
        )


def _audio_kind(reply: SiteReply) -> tuple[int, int, bool] | None:
    """(S, Da, whether square roots were taken), or None for a site that shares no class."""
    for prompt in reply.prompts:
        if prompt.audio is not None:
            return prompt.audio.means.shape[1], prompt.audio.means.shape[2], reply.square_root
    return None


def _words(kind: tuple[int, int, bool] | None) -> str:
    assert kind is not None
    tokens, width, root = kind
    return f"{tokens} x {width}" + (" square roots" if root else "")


def _fresh_row() -> dict[str, Any]:
    """What a row counts, before any reply has come."""
    return {"rejected": 0, "rejections": [], "failures": 0, "failure_reasons": [], "bytes_up": 0, "bytes_down": 0}


def _reasons(row: Mapping[str, Any]) -> str:
    """Why sites were rejected or failed: the first three different reasons, in one line."""
    reasons = dict.fromkeys([*row["rejections"], *row["failure_reasons"]])
    return "; ".join(" ".join(reason.split()) for reason in list(reasons)[:3]) or "no site answered"


def _reject(row: dict[str, Any], what: str, reason: BadReplyError | str) -> None:
    row["rejected"] += 1
    row["rejections"].append(str(reason))
    log.warning("Rejected %s: %s", what, reason)
    if isinstance(reason, BadReplyError) and reason.__cause__ is not None:
        log.debug("It was refused because of", exc_info=reason.__cause__)


def _report(failures: Sequence[Any], row: dict[str, Any]) -> None:
    """Count and log why sites failed: an exception, or a reply with an error status."""
    row["failures"] += len(failures)
    for failure in failures:
        reason = failure[1].status.message if isinstance(failure, tuple) else _raised(failure)
        reason = "".join(sign if sign.isprintable() else " " for sign in reason[:500])
        row["failure_reasons"].append(reason)
        log.warning("A site failed: %s", reason)


def _raised(failure: BaseException) -> str:
    """An exception in one line; of one that was raised at a site, what Flower tells of it."""
    told = re.search(r"\(reason: (?:<class '[\w.]*?(\w+)'>:<')?(.*?)(?:'>)?\)\. It originated", str(failure), re.DOTALL)
    if told is None:
        return repr(failure)
    return " ".join(": ".join(part for part in told.groups() if part).split())


def _mean_losses(replies: Sequence[SiteReply]) -> dict[str, float]:
    """Training losses of the sites, by number of clips."""
    clips = sum(reply.num_examples for reply in replies)
    names = sorted({name for reply in replies for name in reply.losses})
    return {
        f"site/{name}": sum(reply.losses.get(name, 0.0) * reply.num_examples for reply in replies) / clips
        for name in names
    }
