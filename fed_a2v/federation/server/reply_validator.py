"""Validation of the sites' replies: invalid ones are counted in the round's row, with the reason.

The strategy calls it with the replies and failures that Flower reports. Most replies to training have been read before
(`server/intake.py`).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from flwr.common import EvaluateRes, FitRes, Parameters, Scalar
from flwr.server.client_proxy import ClientProxy

from fed_a2v.config.own_class import described, place_of
from fed_a2v.federation.protocol import (
    EvalReplySpec,
    InvalidReplyError,
    ReplySpec,
    Scores,
    TrainReply,
    check_withdrawal,
    claimed_site,
    decode_reply,
    decode_scores,
    is_withdrawal,
    payload_bytes,
    read_arrays,
    scores_beside_training,
    show,
)
from fed_a2v.runs.logs import TRACEBACKS

log = logging.getLogger("fed_a2v")

FitResult = tuple[ClientProxy, FitRes]
EvaluateResult = tuple[ClientProxy, EvaluateRes]

Result = TypeVar("Result", FitRes, EvaluateRes)

SECOND_REPLY = "a second reply of the same site"


@dataclass
class Taken(FitRes):
    """A reply that has been read before Flower returns it, without its arrays; of its metrics only scores are left.

    Attributes:
        site: the site that the reply names and that it was requested for.
        outcome: the reply, or the reason why it is refused; None once it is handed over, because Flower keeps the
            results until the next round has ended.
    """

    site: str
    outcome: TrainReply | str | None


def unpacked(result: FitRes, expected: ReplySpec, row: dict[str, Any]) -> TrainReply:
    """The reply in `result`, whose bytes are counted in the row; afterwards only its weights reference the bytes.

    Raises:
        InvalidReplyError: it is not as expected.
    """
    arrays = read_arrays(result.parameters, expected.max_arrays)
    row["bytes_up"] += payload_bytes(arrays)
    result.parameters = Parameters([], result.parameters.tensor_type)
    return decode_reply(arrays, result.metrics, result.num_examples, expected)


def fresh_row() -> dict[str, Any]:
    """The counters of a row before any reply."""
    return {"rejected": 0, "rejections": [], "failures": 0, "failure_reasons": [], "bytes_up": 0, "bytes_down": 0}


def reject(row: dict[str, Any], what: str, reason: InvalidReplyError | str) -> None:
    """Count and log a reply that is not used."""
    row["rejected"] += 1
    row["rejections"].append(str(reason))
    log.warning("Rejected %s: %s", what, reason)
    if isinstance(reason, InvalidReplyError) and reason.__cause__ is not None:
        log.debug("The cause of the rejection:", exc_info=reason.__cause__)


def reasons(row: Mapping[str, Any]) -> str:
    """The first three different reasons for rejections and failures, in one line."""
    different = dict.fromkeys([*row["rejections"], *row["failure_reasons"]])
    return "; ".join(" ".join(reason.split()) for reason in list(different)[:3]) or "no site replied"


def count_failures(row: dict[str, Any], failures: Sequence[Any]) -> None:
    """Count and log the failures: exceptions, and replies with an error status."""
    row["failures"] += len(failures)
    for failure in failures:
        reason = failure[1].status.message if isinstance(failure, tuple) else _one_line(failure)
        reason = "".join(sign if sign.isprintable() else " " for sign in reason[:500])
        row["failure_reasons"].append(reason)
        log.warning("A site failed: %s", reason)
        if isinstance(failure, BaseException) and place_of(failure):
            logging.getLogger(TRACEBACKS).warning("The cause, in a class of the user:", exc_info=failure)


class ReplyValidator:
    """Checks the replies to one message of the server.

    Args:
        classes: names of all classes.
        asked: by site, the `cid` of the node that the message was sent to.
        row: row of the round, made by `fresh_row`; bytes, failures and rejections are counted in it.
    """

    def __init__(self, classes: Collection[str], asked: Mapping[str, str], row: dict[str, Any]) -> None:
        self.classes = classes
        self.asked = asked
        self.row = row

    def withdrawals(
        self, results: Sequence[tuple[ClientProxy, Result]], round_number: int
    ) -> tuple[list[str], list[tuple[ClientProxy, Result]]]:
        """The sites that withdraw, sorted, which are then no longer among those asked; and all other results."""
        replied = {each.site for _, each in results if isinstance(each, Taken) and isinstance(each.outcome, TrainReply)}
        withdrawn: list[str] = []
        others = []
        for node, result in results:
            if not is_withdrawal(result.metrics):
                others.append((node, result))
                continue
            try:
                site = self._sender(node, result.metrics)
                check_withdrawal(result.metrics, self.classes, site, round_number)
                if site in replied:
                    raise InvalidReplyError(f"{show(site)} has replied to the same message")
                withdrawn.append(site)
            except InvalidReplyError as error:
                reject(self.row, f"the withdrawal of node {node.cid}", error)
        self.asked = {site: cid for site, cid in self.asked.items() if site not in withdrawn}
        return sorted(set(withdrawn)), others

    def replies(
        self,
        results: Iterable[FitResult],
        failures: Sequence[FitResult | BaseException],
        expected: Callable[[str], ReplySpec],
        off_scale: Callable[[list[TrainReply]], Mapping[str, str]] | None = None,
    ) -> list[TrainReply]:
        """The valid replies, in the order of the site names; the row records the status of every site.

        Args:
            results: training replies. Their arrays are moved into the returned replies, to free memory; the weights of
                those that have been `Taken` may be in the mean instead.
            failures: exceptions of Flower, and replies with an error status.
            expected: what the reply of a site may hold.
            off_scale: finds the sites whose reply differs in scale from the others', with the reason; None: no check.
        """
        start = time.perf_counter()
        count_failures(self.row, failures)
        claims, refused = self._claims(results)
        replies: dict[str, TrainReply] = {}
        for site, node, result in claims:
            try:
                if site in replies:
                    raise InvalidReplyError(SECOND_REPLY)
                replies[site] = _outcome(result, expected(site), self.row)
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
        expected: Callable[[str], EvalReplySpec],
    ) -> dict[str, dict[str, Scores]]:
        """The valid scores of each site by model, in the order of the site names.

        Args:
            results: evaluation replies.
            failures: exceptions of Flower, and replies with an error status.
            expected: what the reply of a site may hold.
        """
        count_failures(self.row, failures)
        return self._scores(((node, each.metrics, each.num_examples) for node, each in results), expected)

    def scores_with_training(
        self, results: Iterable[FitResult], expected: Callable[[str], EvalReplySpec]
    ) -> dict[str, dict[str, Scores]]:
        """The valid scores that training replies carry, by site and model; a site may send none."""
        scored = (
            (node, scores_beside_training(each.metrics)) for node, each in results if not is_withdrawal(each.metrics)
        )
        return self._scores(((node, metrics, None) for node, metrics in scored if metrics), expected)

    def _scores(
        self,
        claims: Iterable[tuple[ClientProxy, Mapping[str, Scalar], int | None]],
        expected: Callable[[str], EvalReplySpec],
    ) -> dict[str, dict[str, Scores]]:
        scores: dict[str, dict[str, Scores]] = {}
        for node, metrics, num_examples in claims:
            try:
                site = self._sender(node, metrics)
                if site in scores:
                    raise InvalidReplyError(SECOND_REPLY)
                scores[site] = decode_scores(metrics, num_examples, expected(site))
            except InvalidReplyError as error:
                reject(self.row, f"the scores of node {node.cid}", error)
        return dict(sorted(scores.items()))

    def _claims(self, results: Iterable[FitResult]) -> tuple[list[tuple[str, ClientProxy, FitRes]], set[str]]:
        """The replies with the site that each names, sorted by site; and the sites whose node names another site."""
        claims: list[tuple[str, ClientProxy, FitRes]] = []
        refused: set[str] = set()
        for node, result in results:
            try:
                site = result.site if isinstance(result, Taken) else self._sender(node, result.metrics)
                claims.append((site, node, result))
            except InvalidReplyError as error:
                refused |= {site for site, cid in self.asked.items() if cid == node.cid}
                reject(self.row, f"the reply of node {node.cid}", error)
        # The reply that a site was asked for goes first: its weights may be in the mean already.
        return sorted(claims, key=lambda claim: (claim[0], not isinstance(claim[2], Taken))), refused

    def _sender(self, node: ClientProxy, metrics: Mapping[str, Scalar]) -> str:
        """The site that a reply names.

        Raises:
            InvalidReplyError: the node got no request for that site.
        """
        site = claimed_site(metrics, self.classes)
        if self.asked.get(site) != node.cid:
            raise InvalidReplyError(f"it names site {show(site)}, for which this node got no request")
        return site

    def _record(self, replies: Mapping[str, TrainReply], refused: Container[str]) -> None:
        """Record the status of every site in the row; log the sites without a valid reply."""
        self.row["replies"] = len(replies)
        self.row["sites"] = {
            site: "replied" if site in replies else "rejected" if site in refused else "failed"
            for site in sorted(self.asked)
        }
        self.row["site_seconds"] = {site: reply.seconds for site, reply in replies.items()}
        if missing := [site for site, answer in self.row["sites"].items() if answer != "replied"]:
            log.warning("No valid reply of %s", ", ".join(missing))


def _outcome(result: FitRes, expected: ReplySpec, row: dict[str, Any]) -> TrainReply:
    if not isinstance(result, Taken):
        return unpacked(result, expected, row)
    outcome, result.outcome = result.outcome, None
    if not isinstance(outcome, TrainReply):
        raise InvalidReplyError(outcome or SECOND_REPLY)
    return outcome


def _one_line(failure: BaseException) -> str:
    """An exception in one line; if it was raised at a site, its type and message as quoted by Flower."""
    quoted = re.search(
        r"\(reason: (?:<class '[\w.]*?(\w+)'>:<')?(.*?)(?:'>)?\)\. It originated", str(failure), re.DOTALL
    )
    if quoted is None:
        return described(failure) if place_of(failure) else repr(failure)
    return " ".join(": ".join(part for part in quoted.groups() if part).split())
