"""Takes the sites' replies to training as they come, so that the server does not keep the weights of a whole round.

Flower returns the replies of a round together, when the last one has come. Before that it calls `fit` of each node's
proxy in a thread; `IntakeProxy` stands in for the proxy and passes what the node sends through the round's `Intake`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from flwr.common import (
    Code,
    DisconnectRes,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetParametersIns,
    GetParametersRes,
    GetPropertiesIns,
    GetPropertiesRes,
    Parameters,
    ReconnectIns,
)
from flwr.server.client_proxy import ClientProxy
from torch import Tensor

from fed_a2v.federation.memory import return_free_memory
from fed_a2v.federation.protocol import (
    InvalidReplyError,
    ReplySpec,
    TrainReply,
    beside_training,
    claimed_site,
    is_withdrawal,
    scores_beside_training,
)
from fed_a2v.federation.server.aggregation import limited
from fed_a2v.federation.server.aggregation.base import AggregationRule, MeanRule
from fed_a2v.federation.server.reply_validator import Taken, unpacked
from fed_a2v.federation.server.scale_check import is_compared

log = logging.getLogger("fed_a2v")


class Intake:
    """The replies of one round, each of which is checked when it comes.

    If the rule needs their mean only, the weights are added to it and dropped. They are kept until all replies have
    come if the scale of what the reply brings must be compared with the other sites', because the reply may then still
    be refused, and for other rules.

    A reply that does not name the site that it was requested for is left to `ReplyValidator`, as are withdrawals and
    failures. So each site is in the mean once at most, and no site that withdraws is.

    Args:
        rule: the rule of the run.
        sent: the global weights that all sites start from.
        expected: what the reply of a site may hold.
        row: row of the round; bytes and seconds are counted in it.
        compares_scale: the scale of prototypes and outputs is compared between the sites.

    Attributes:
        mean: the mean that the replies without weights are in; None: the rule needs the weights of all sites.
    """

    def __init__(
        self,
        rule: AggregationRule,
        sent: Sequence[Tensor],
        expected: Callable[[str], ReplySpec],
        row: dict[str, Any],
        compares_scale: bool,
    ) -> None:
        self.rule, self.sent, self.expected, self.row = rule, sent, expected, row
        self.compares_scale = compares_scale
        # A rule with a `combine` of its own is asked for it.
        is_mean = isinstance(rule, MeanRule) and type(rule).combine is MeanRule.combine
        needs_mean_only = is_mean and not rule.settings.distils and bool(sent)
        self.mean = rule.running_mean() if isinstance(rule, MeanRule) and needs_mean_only else None
        self._taken: set[str] = set()
        # One reply at a time: Python 3.11 fails at times if several threads read the headers of arrays.
        self._lock = threading.Lock()

    def take(self, site: str, result: FitRes) -> FitRes:
        """What is left of a site's reply; other results are returned as they are."""
        if result.status.code != Code.OK or is_withdrawal(result.metrics):
            return result
        with self._lock:
            start = time.perf_counter()
            left = self._left(site, result)
            self.row["seconds/replies"] = self.row.get("seconds/replies", 0.0) + time.perf_counter() - start
        if isinstance(left, Taken) and isinstance(left.outcome, TrainReply) and left.outcome.weights:
            return_free_memory()
        return left

    def _left(self, site: str, result: FitRes) -> FitRes:
        spec = self.expected(site)
        try:
            if site in self._taken or claimed_site(result.metrics, spec.classes) != site:
                return result
        except InvalidReplyError:
            return result
        self._taken.add(site)
        try:
            outcome: TrainReply | str = self._added(unpacked(result, spec, self.row))
        except InvalidReplyError as error:
            outcome = str(error)  # not the exception, whose traceback would keep the arrays
            if error.__cause__ is not None:
                log.debug("The cause of the rejection:", exc_info=error.__cause__)
        scores = scores_beside_training(result.metrics)  # checked when the round before ends
        metrics = beside_training(scores) if scores else {}
        return Taken(result.status, Parameters([], "numpy.ndarray"), result.num_examples, metrics, site, outcome)

    def _added(self, reply: TrainReply) -> TrainReply:
        """The reply, without its weights if they are in the mean."""
        if self.mean is None or (self.compares_scale and is_compared(reply)):
            return reply
        self.mean.add(limited(self.rule, reply, self.sent), reply.num_examples)
        return replace(reply, weights=[])


class IntakeProxy(ClientProxy):
    """A node, as asked for one site: what it sends goes through an intake.

    Attributes:
        inner: Flower's proxy of the node.
    """

    def __init__(self, inner: ClientProxy, site: str, intake: Intake) -> None:
        super().__init__(inner.cid)
        self.inner, self.site, self.intake = inner, site, intake

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        """See `ClientProxy`."""
        return self.intake.take(self.site, self.inner.fit(ins, timeout, group_id))

    def get_properties(self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None) -> GetPropertiesRes:
        """See `ClientProxy`."""
        return self.inner.get_properties(ins, timeout, group_id)

    def get_parameters(self, ins: GetParametersIns, timeout: float | None, group_id: int | None) -> GetParametersRes:
        """See `ClientProxy`."""
        return self.inner.get_parameters(ins, timeout, group_id)

    def evaluate(self, ins: EvaluateIns, timeout: float | None, group_id: int | None) -> EvaluateRes:
        """See `ClientProxy`."""
        return self.inner.evaluate(ins, timeout, group_id)

    def reconnect(self, ins: ReconnectIns, timeout: float | None, group_id: int | None) -> DisconnectRes:
        """See `ClientProxy`."""
        return self.inner.reconnect(ins, timeout, group_id)
