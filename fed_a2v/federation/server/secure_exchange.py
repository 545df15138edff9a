"""One exchange of secure aggregation: masked vectors of the sites in, their mean out.

With Flower's engines it runs Flower's `SecAggPlusWorkflow`; in one process, where nothing is hidden, the same quantised
arithmetic. The strategy calls it in the registration.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common import FitIns, FitRes, Parameters, Scalar, ndarray_to_bytes, parameters_to_ndarrays
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.compat.common import recorddict_compat as compat
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fed_a2v.config.sections.federation import SecureSumsSettings
from fed_a2v.federation.protocol import WEIGHT, FederationError, InvalidReplyError, show
from fed_a2v.federation.protocol.masked import CLIPPING, MODULUS, quantised_mean
from fed_a2v.federation.server.reply_validator import count_failures, reasons, reject

log = logging.getLogger("fed_a2v")

# Largest sizes in bytes of a public key and of an encrypted share, which have some hundreds.
_KEY_BYTES, _SHARE_BYTES = 4096, 4096
# Bytes of an npy file beside the data.
_NPY_HEADER = 256

# Raises an `InvalidReplyError` if the reply of the node with this `cid` is wrong.
Check = Callable[[str, FitRes], None]


class Total(NamedTuple):
    """The result of an exchange.

    Attributes:
        mean: (n,) mean of the sites' vectors.
        nodes: `cid` of the nodes whose vectors are in it.
    """

    mean: NDArray[np.float64]
    nodes: list[str]


class SecureExchange:
    """Aggregates one vector of each node.

    Args:
        settings: the section `secure_sums`.
        timeout: time limit for each of the four stages, in s.
    """

    def __init__(self, settings: SecureSumsSettings, timeout: float) -> None:
        self.settings = settings
        self.timeout = timeout

    def run(
        self,
        requests: Sequence[tuple[ClientProxy, FitIns]],
        size: int,
        check: Check,
        row: dict[str, Any],
        manager: ClientManager,
    ) -> Total:
        """Send the requests, and aggregate the vectors of the nodes that reply.

        Args:
            requests: one for each node.
            size: n, entries of a vector.
            check: called for each reply before its vector is added; a refused one counts as lost.
            row: row of the round; bytes, failures and rejections are counted in it.
            manager: Flower's list of connected nodes.

        Raises:
            FederationError: fewer nodes than the threshold stay until the end.
        """
        if all(isinstance(node, GridClientProxy) for node, _ in requests):
            total = self._masked(requests, size, check, row, manager)
        else:
            total = self._plain(requests, size, check, row)
        needed = self.settings.needed(len(requests))
        if len(total.nodes) < needed:
            raise FederationError(
                f"secure_sums=secagg: {len(total.nodes)} of {len(requests)} sites stayed until the end of the "
                f"exchange, and secure_sums.threshold={self.settings.threshold:g} needs {needed}: {reasons(row)}; "
                "start the run again when they are back, lower secure_sums.threshold, or raise federation.round_timeout"
            )
        return total

    def _plain(
        self, requests: Sequence[tuple[ClientProxy, FitIns]], size: int, check: Check, row: dict[str, Any]
    ) -> Total:
        """The total in one process: the vectors are quantised as the client mod does it, and not masked."""
        vectors, nodes = [], []
        for node, request in requests:
            try:
                reply = node.fit(request, self.timeout, 0)
                check(node.cid, reply)
                (vector,) = quantize(parameters_to_ndarrays(reply.parameters), CLIPPING, 2**self.settings.bits)
                if vector.shape != (size,):
                    raise InvalidReplyError(f"its vector has shape {show(vector.shape)}, expected {(size,)}")
            except InvalidReplyError as error:
                reject(row, f"the vector of node {node.cid}", error)
                continue
            except Exception as error:
                count_failures(row, [error])
                continue
            vectors.append(vector)
            nodes.append(node.cid)
            row["bytes_up"] += 4 * (size + 1)
        mean = quantised_mean(vectors, self.settings.bits) if vectors else np.zeros(size)
        return Total(mean, nodes)

    def _masked(
        self,
        requests: Sequence[tuple[ClientProxy, FitIns]],
        size: int,
        check: Check,
        row: dict[str, Any],
        manager: ClientManager,
    ) -> Total:
        """The total by SecAgg+."""
        proxy = cast(GridClientProxy, requests[0][0])
        state = RecordDict()
        state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 0})
        state.array_records[MAIN_PARAMS_RECORD] = ArrayRecord()
        context = Context(run_id=proxy.run_id, node_id=0, node_config={}, state=state, run_config={})
        exchange = _OneAggregate(requests)
        sites = len(requests)
        shares = self.settings.shares(sites)
        workflow = _Workflow(
            shares,
            self.settings.needed(shares) / shares,
            max_weight=float(WEIGHT),
            clipping_range=CLIPPING,
            quantization_range=2**self.settings.bits,
            modulus_range=MODULUS,
            timeout=self.timeout,
        )
        grid = _CheckedGrid(proxy.grid, size, check, row)
        try:
            workflow(cast(Grid, grid), LegacyContext(context, strategy=exchange, client_manager=manager))
        except Exception as error:
            raise FederationError(f"secure_sums=secagg: a site's message ended the exchange: {error!r:.200}") from error
        log.info(
            "Secure aggregation: %d of %d sites, %.1f kB up and %.1f kB down a site",
            len(exchange.results),
            sites,
            grid.bytes_up / sites / 1e3,
            grid.bytes_down / sites / 1e3,
        )
        if not exchange.results:
            return Total(np.zeros(size), [str(node) for node in workflow.left])
        (mean,) = parameters_to_ndarrays(exchange.results[0][1].parameters)
        return Total(mean, [node.cid for node, _ in exchange.results])


class _OneAggregate(FedAvg):
    """What the workflow sees of a strategy: the requests, and a place for the one aggregate."""

    def __init__(self, requests: Sequence[tuple[ClientProxy, FitIns]]) -> None:
        super().__init__()
        self.requests = list(requests)
        self.results: list[tuple[ClientProxy, FitRes]] = []

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """The requests of the exchange."""
        del server_round, parameters, client_manager
        return self.requests

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Keep the replies: the workflow has put the mean of all vectors in place of each one's arrays."""
        del server_round, failures
        self.results = sorted(results, key=lambda result: result[0].cid)
        return None, {}


class _Workflow(SecAggPlusWorkflow):
    """Flower's workflow, for sites that are lost before they have distributed shares.

    Flower would ask the others to unmask them, too, and they have no share to do it with.
    """

    left: Collection[int] = ()  # nodes that replied to the last stage

    def share_keys_stage(self, grid: Grid, context: LegacyContext, state: WorkflowState) -> bool:
        """Go on with the sites that have distributed shares."""
        goes_on = super().share_keys_stage(grid, context, state)
        state.sampled_node_ids = set(state.active_node_ids)
        state.nid_to_neighbours = {
            node: neighbours & state.active_node_ids
            for node, neighbours in state.nid_to_neighbours.items()
            if node in state.active_node_ids
        }
        return goes_on and self._check_threshold(state)

    def _check_threshold(self, state: WorkflowState) -> bool:
        self.left = set(state.active_node_ids)
        return super()._check_threshold(state)

    def unmask_stage(self, grid: Grid, context: LegacyContext, state: WorkflowState) -> bool:
        """Remember how many were left."""
        ended = super().unmask_stage(grid, context, state)
        self.left = set(state.active_node_ids)
        return ended


class _CheckedGrid:
    """Passes the workflow's messages on, and drops replies that it could not use: their nodes count as lost.

    Sizes are checked before arrays are read or added up.
    """

    def __init__(self, grid: Grid, size: int, check: Check, row: dict[str, Any]) -> None:
        self.grid = grid
        self.size = size
        self.check = check
        self.row = row
        self.bytes_up = self.bytes_down = 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See `Grid`."""
        sent = list(messages)
        self.bytes_down += sum(_bytes(message.content) for message in sent)
        stage = str(sent[0].content.config_records[RECORD_KEY_CONFIGS][Key.STAGE])
        nodes = {message.metadata.dst_node_id for message in sent}
        # Shares are for nodes that are asked, or in the last stage of nodes that the message names.
        known = {*nodes, *(node for message in sent for node in _named(message))}
        valid: dict[int, Message] = {}
        for reply in self.grid.send_and_receive(sent, timeout=timeout):
            node = reply.metadata.src_node_id
            if reply.has_error():
                # In the words of Flower's own proxy, from which the reason is quoted.
                error = f"(reason: {reply.error.reason}). It originated at node {node} in secure aggregation, {stage}"
                count_failures(self.row, [ValueError(error)])
                continue
            self.bytes_up += (up := _bytes(reply.content))
            self.row["bytes_up"] += up
            try:
                if node not in nodes or node in valid:
                    raise InvalidReplyError("no reply of this node is expected")
                self._check(stage, str(node), reply.content, known)
            except Exception as error:
                invalid = error if isinstance(error, InvalidReplyError) else InvalidReplyError(f"unreadable: {error!r}")
                reject(self.row, f"the {stage} reply of node {node}", invalid)
                continue
            valid[node] = reply
        return list(valid.values())

    def _check(self, stage: str, cid: str, content: RecordDict, known: set[int]) -> None:
        record = content.config_records[RECORD_KEY_CONFIGS]
        if stage == Stage.SETUP:
            _bytes_list([record[Key.PUBLIC_KEY_1], record[Key.PUBLIC_KEY_2]], _KEY_BYTES)
        elif stage == Stage.SHARE_KEYS:
            _shares(record[Key.DESTINATION_LIST], record[Key.CIPHERTEXT_LIST], known)
        elif stage == Stage.COLLECT_MASKED_VECTORS:
            parts = _bytes_list(record[Key.MASKED_PARAMETERS], 4 * self.size + _NPY_HEADER)
            arrays = [np.load(io.BytesIO(part), allow_pickle=False) for part in parts]
            if [(array.dtype, array.shape) for array in arrays] != [("uint32", (1,)), ("uint32", (self.size,))]:
                raise InvalidReplyError(f"its masked vector is not one of {self.size} numbers of 32 bits")
            self.check(cid, compat.recorddict_to_fitres(content, True))
            record[Key.MASKED_PARAMETERS] = [ndarray_to_bytes(array.astype(np.int64)) for array in arrays]
        else:
            _shares(record[Key.NODE_ID_LIST], record[Key.SHARE_LIST], known)


def _named(message: Message) -> list[int]:
    """The nodes whose shares a message of the last stage asks for."""
    record = message.content.config_records[RECORD_KEY_CONFIGS]
    if record[Key.STAGE] != Stage.UNMASK:
        return []
    return [*cast(list[int], record[Key.ACTIVE_NODE_ID_LIST]), *cast(list[int], record[Key.DEAD_NODE_ID_LIST])]


def _shares(nodes: Any, shares: Any, known: set[int]) -> None:
    """Check a list of shares, each for another node."""
    if not isinstance(nodes, list) or len({*nodes}) < len(nodes) or len(_bytes_list(shares, _SHARE_BYTES)) < len(nodes):
        raise InvalidReplyError("its shares do not fit to their nodes")
    if len(shares) > len(nodes) or not {*nodes} <= known:
        raise InvalidReplyError("its shares are for unknown nodes")


def _bytes_list(values: Any, most: int) -> list[bytes]:
    if not isinstance(values, list) or any(type(value) is not bytes or len(value) > most for value in values):
        raise InvalidReplyError(f"it has no list of at most {most} bytes each")
    return values


def _bytes(content: RecordDict) -> int:
    """Bytes of a message's values, without its envelope."""
    values = [value for record in content.config_records.values() for value in record.values()]
    arrays = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    return arrays + sum(_value_bytes(value) for value in values)


def _value_bytes(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_value_bytes, value))
    return len(value) if isinstance(value, bytes | str) else 8
