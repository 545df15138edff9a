"""Classes of which no site shares any statistics: the server step cannot learn them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fed_a2v.core.server_step import ServerStep
from fed_a2v.federation.protocol.errors import FederationError

log = logging.getLogger("fed_a2v")


class UnsharedClasses:
    """Tracks the classes without statistics, and warns of them after every site has taken part.

    Args:
        classes: names of all classes.
        min_clips: `share.min_clips`.
        complete_from: first round in which every site has taken part, see `ScenarioSettings`.
        has_server_step: whether the server trains the adapters.
        only_server_trains: the setting because of which no site does, else empty; see `Settings`.

    Attributes:
        names: the classes of which no site has shared statistics so far.
    """

    def __init__(
        self, classes: Sequence[str], min_clips: int, complete_from: int, has_server_step: bool, only_server_trains: str
    ) -> None:
        self.classes = self.names = tuple(classes)
        self.min_clips = min_clips
        self.complete_from = complete_from
        self.has_server_step = has_server_step
        self.only_server_trains = only_server_trains

    def lost(self, round_number: int) -> list[str]:
        """The classes that the server step does not learn; [] until every site has taken part."""
        return list(self.names) if self.has_server_step and round_number >= self.complete_from else []

    def update(self, round_number: int, step: ServerStep) -> None:
        """Remove the classes that the bank has; warn of the rest in the first round after which no more can come.

        Raises:
            FederationError: the bank is empty and only the server step would train the adapters.
        """
        known = {*step.bank.counts(), *step.settings.unseen}  # unseen classes are not recorded on purpose
        self.names = tuple(name for name in self.names if name not in known)
        if round_number != self.complete_from or not self.names or not self.has_server_step:
            return
        log.warning(
            "Lost for the server step: no site that replied has share.min_clips=%d training clips of %d of %d classes "
            "(%s); lower it, or let fewer sites share a class",
            self.min_clips,
            len(self.names),
            len(self.classes),
            ", ".join(self.names),
        )
        if step.bank.counts():
            return
        if self.only_server_trains:
            raise FederationError(
                f"{self.only_server_trains}: only the server step trains the adapters, and no site has "
                f"share.min_clips={self.min_clips} training clips of a class; lower it"
            )
        log.warning("The server step has no class statistics: the run is plain federated averaging (FedAvg)")
