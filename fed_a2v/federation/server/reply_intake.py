"""The sites' answers: those that pass every check are used, the others counted in the round's row with the reason."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from typing import Any

from flwr.common import EvaluateRes, FitRes, Parameters, Scalar
from flwr.server.client_proxy import ClientProxy

from fed_a2v.federation.protocol import (
    EvalReplySpec,
    InvalidReplyError,
    ReplySpec,
    Scores,
    TrainReply,
    claimed_site,
    decode_reply,
    decode_scores,
    payload_bytes,
    read_arrays,
    show,
)

log = logging.getLogger("fed_a2v")

FitResult = tuple[ClientProxy, FitRes]
EvaluateResult = tuple[ClientProxy, EvaluateRes]

SECOND_REPLY = "a second reply of the same site"


def fresh_row() -> dict[str, Any]:
    """What a row counts, before any answer has come."""
    return {"rejected": 0, "rejections": [], "failures": 0, "failure_reasons": [], "bytes_up": 0, "bytes_down": 0}


def reject(row: dict[str, Any], what: str, reason: InvalidReplyError | str) -> None:
    """Count and log an answer that is not used."""
    row["rejected"] += 1
    row["rejections"].append(str(reason))
    log.warning("Rejected %s: %s", what, reason)
    if isinstance(reason, InvalidReplyError) and reason.__cause__ is not None:
        log.debug("It was refused because of", exc_info=reason.__cause__)


def reasons(row: Mapping[str, Any]) -> str:
    """Why sites were rejected or failed: the first three different reasons, in one line."""
    different = dict.fromkeys([*row["rejections"], *row["failure_reasons"]])
    return "; ".join(" ".join(reason.split()) for reason in list(different)[:3]) or "no site answered"


class ReplyValidator:
    """Takes in what comes back from the sites that were asked.

    Args:
        classes: names of all classes.
        asked: by site, the `cid` of the node that was asked to speak for it.
        row: of the round, made by `fresh_row`: counts bytes, failures and what is rejected.
    """

    def __init__(self, classes: Collection[str], asked: Mapping[str, str], row: dict[str, Any]) -> None:
        self.classes = classes
        self.asked = asked
        self.row = row

    def replies(
        self,
        results: Iterable[FitResult],
        failures: Sequence[FitResult | BaseException],
        expected: Callable[[str], ReplySpec],
        off_scale: Callable[[list[TrainReply]], Mapping[str, str]] | None = None,
    ) -> list[TrainReply]:
        """The good replies, by site name; the row says of every site how it answered.

        Args:
            results: with a reply. The arrays of those that are read are taken out: a good reply keeps them.
            failures: what Flower could not get, or a site could not do.
            expected: of a site's reply.
            off_scale: which sites' replies are not of the others' scale, and why; None: nobody asks.
        """
        start = time.perf_counter()
        self._count_failures(failures)
        claims, refused = self._claims(results)
        replies: dict[str, TrainReply] = {}
        for site, node, result in claims:
            try:
                if site in replies:
                    raise InvalidReplyError(SECOND_REPLY)
                replies[site] = self._unpacked(result, expected(site))
            except InvalidReplyError as error:
                refused.add(site)
                reject(self.row, f"the reply of node {node.cid}", error)
        for site, reason in (off_scale(list(replies.values())) if off_scale else {}).items():
            del replies[site]
            refused.add(site)
            reject(self.row, f"the reply of {site}", reason)
        self._record(replies, refused)
        self.row["seconds/replies"] = self.row.get("seconds/replies", 0.0) + time.perf_counter() - start
        return list(replies.values())

    def scores(
        self,
        results: Iterable[EvaluateResult],
        failures: Sequence[EvaluateResult | BaseException],
        round_number: int,
        models: Collection[str],
        confusion: bool,
        t5: Collection[str] = (),
        unseen: bool = False,
        registered: Mapping[str, Mapping[str, int]] | None = None,
        highest: Mapping[str, float] | None = None,
    ) -> dict[str, dict[str, Scores]]:
        """The good scores of each site, by its name and by model, in the order of the names.

        Args:
            results: with scores.
            failures: what Flower could not get, or a site could not do.
            round_number: the round the sites were asked in.
            models: that they were asked to score.
            confusion: whether they were asked which classes were predicted.
            t5: the models of which they were sent a T5 side.
            unseen, highest: see `has_unseen` and `max_loss` of `EvalReplySpec`.
            registered: by site, the test clips of each class that it has said it has.
        """
        self._count_failures(failures)
        scores: dict[str, dict[str, Scores]] = {}
        for node, result in results:
            try:
                site = self._sender(node, result.metrics)
                if site in scores:
                    raise InvalidReplyError(SECOND_REPLY)
                expected = EvalReplySpec(
                    site=site,
                    round_number=round_number,
                    classes=self.classes,
                    models=models,
                    confusion=confusion,
                    t5_models=t5,
                    has_unseen=unseen,
                    test_clips=(registered or {}).get(site),
                    max_loss=highest,
                )
                scores[site] = decode_scores(result.metrics, result.num_examples, expected)
            except InvalidReplyError as error:
                reject(self.row, f"the scores of node {node.cid}", error)
        return dict(sorted(scores.items()))

    def _claims(self, results: Iterable[FitResult]) -> tuple[list[tuple[str, ClientProxy, FitRes]], set[str]]:
        """Replies with the site they claim to come from, by its name; and the sites of nodes that claim another."""
        claims: list[tuple[str, ClientProxy, FitRes]] = []
        refused: set[str] = set()
        for node, result in results:
            try:
                claims.append((self._sender(node, result.metrics), node, result))
            except InvalidReplyError as error:
                refused |= {site for site, cid in self.asked.items() if cid == node.cid}
                reject(self.row, f"the reply of node {node.cid}", error)
        return sorted(claims, key=lambda claim: claim[0]), refused

    def _sender(self, node: ClientProxy, metrics: Mapping[str, Scalar]) -> str:
        """The site that an answer claims to come from, if that node was asked for it."""
        site = claimed_site(metrics, self.classes)
        if self.asked.get(site) != node.cid:
            raise InvalidReplyError(f"it names site {show(site)}, which this node was not asked for")
        return site

    def _unpacked(self, result: FitRes, expected: ReplySpec) -> TrainReply:
        """The reply in `result`; its weights alone keep hold of the bytes."""
        arrays = read_arrays(result.parameters, expected.max_arrays)
        result.parameters = Parameters([], result.parameters.tensor_type)
        self.row["bytes_up"] += payload_bytes(arrays)
        return decode_reply(arrays, result.metrics, result.num_examples, expected)

    def _record(self, replies: Mapping[str, TrainReply], refused: Container[str]) -> None:
        """Put into the row, and into the log, who gave a good reply and who did not."""
        self.row["replies"] = len(replies)
        self.row["sites"] = {
            site: "replied" if site in replies else "rejected" if site in refused else "failed"
            for site in sorted(self.asked)
        }
        self.row["site_seconds"] = {site: reply.seconds for site, reply in replies.items()}
        if missing := [site for site, answer in self.row["sites"].items() if answer != "replied"]:
            log.warning("No good reply of %s", ", ".join(missing))

    def _count_failures(self, failures: Sequence[Any]) -> None:
        """Count and log why sites failed: an exception, or a reply with an error status."""
        self.row["failures"] += len(failures)
        for failure in failures:
            reason = failure[1].status.message if isinstance(failure, tuple) else _raised(failure)
            reason = "".join(sign if sign.isprintable() else " " for sign in reason[:500])
            self.row["failure_reasons"].append(reason)
            log.warning("A site failed: %s", reason)


def _raised(failure: BaseException) -> str:
    """An exception in one line; of one that was raised at a site, what Flower tells of it."""
    told = re.search(r"\(reason: (?:<class '[\w.]*?(\w+)'>:<')?(.*?)(?:'>)?\)\. It originated", str(failure), re.DOTALL)
    if told is None:
        return repr(failure)
    return " ".join(": ".join(part for part in told.groups() if part).split())
