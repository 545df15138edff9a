"""Training of the sites of one process together, for `engine=batched`; messages and strategy stay the same.

Flower's server asks one site after the other, but the strategy returns the instructions of all before the first. So the
first site of a group that is asked trains the whole group, and the others have their replies ready.
"""

from __future__ import annotations

from typing import Any

from flwr.common import Code, FitIns, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Strategy

from fed_a2v.core.stacked_adapters import StackedAdapters, sites_at_once
from fed_a2v.federation.client.message_handler import MessageHandler, Prepared
from fed_a2v.federation.factory import site_optimiser


class RoundBatches:
    """The training messages of a round, answered by groups of sites.

    A group has as many sites as train together fastest (`sites_at_once`), so that memory does not grow with the number
    of sites. A site whose message cannot be prepared fails alone. `federation.site_timeout` does not apply.

    Args:
        sites: number of sites in the run.
    """

    def __init__(self, sites: int) -> None:
        self.sites = sites
        self.handler = MessageHandler({})
        self._waiting: dict[str, FitIns] = {}
        self._ready: dict[str, FitRes | Exception] = {}
        self._stack: StackedAdapters | None = None

    def announce(self, instructions: list[tuple[ClientProxy, FitIns]]) -> None:
        """The instructions of the round, in the order in which the sites will be asked.

        Those that also ask for scores (`federation.evaluate_with_training=true`) are answered one by one.
        """
        alone = {proxy.cid for proxy, message in instructions if "models" in message.config}
        self._waiting = {proxy.cid: message for proxy, message in instructions if proxy.cid not in alone}
        self._ready = {}

    def fit(self, cid: str, message: FitIns) -> FitRes | None:
        """The reply of a site to a message; None if it was not announced, e.g. because it is asked again.

        Raises:
            Exception: the site cannot do its task.
        """
        if self._waiting.get(cid) is message:
            self._train(cid)
        elif cid not in self._ready:
            return None
        reply = self._ready.pop(cid)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _train(self, first: str) -> None:
        """Train the next group, which begins with the site `first`."""
        group: dict[str, Prepared] = {}
        shared: Parameters | None = None
        for cid in [first, *(cid for cid in self._waiting if cid != first)]:
            message = self._waiting[cid]
            like = next(iter(group.values()), None)
            if like is not None and (len(group) >= self._stack_for(like).sites or message.parameters is not shared):
                break
            del self._waiting[cid]
            try:
                arrays = parameters_to_ndarrays(message.parameters) if like is None else []
                group[cid] = self.handler.prepare_training(arrays, message.config, like)
                shared = message.parameters
            except Exception as error:  # this site's reply, as if it had been asked alone
                self._ready[cid] = error
        if not group:
            return
        one = next(iter(group.values()))
        settings, tasks = one.site.settings.site, [prepared.task for prepared in group.values()]
        losses = self._stack_for(one).train(
            tasks, one.site.training_loss(), site_optimiser(settings), settings.proximal
        )
        for (cid, prepared), loss in zip(group.items(), losses, strict=True):
            try:
                parts, examples, metrics = prepared.reply(loss)
                self._ready[cid] = FitRes(Status(Code.OK, ""), ndarrays_to_parameters(parts), examples, metrics)
            except Exception as error:
                self._ready[cid] = error

    def _stack_for(self, prepared: Prepared) -> StackedAdapters:
        adapters = prepared.task.adapters
        if self._stack is None:
            rows = prepared.site.settings.site.batch_size
            self._stack = StackedAdapters(adapters, min(self.sites, sites_at_once(adapters, rows)))
        return self._stack


class Announced(Strategy):
    """A strategy whose training messages are announced to `RoundBatches`; everything else is the strategy's own."""

    def __init__(self, strategy: Strategy, batches: RoundBatches) -> None:
        self.strategy, self.batches = strategy, batches

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """See `Strategy`."""
        return self.strategy.initialize_parameters(client_manager)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """See `Strategy`."""
        instructions = self.strategy.configure_fit(server_round, parameters, client_manager)
        self.batches.announce(instructions)
        return instructions

    def aggregate_fit(self, *args: Any, **named: Any) -> Any:
        """See `Strategy`."""
        return self.strategy.aggregate_fit(*args, **named)

    def configure_evaluate(self, *args: Any, **named: Any) -> Any:
        """See `Strategy`."""
        return self.strategy.configure_evaluate(*args, **named)

    def aggregate_evaluate(self, *args: Any, **named: Any) -> Any:
        """See `Strategy`."""
        return self.strategy.aggregate_evaluate(*args, **named)

    def evaluate(self, *args: Any, **named: Any) -> Any:
        """See `Strategy`."""
        return self.strategy.evaluate(*args, **named)
