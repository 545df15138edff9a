"""Classes of which no site shares any statistics: the server step cannot learn them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from fed_a2v.config.schema import Settings
from fed_a2v.core.server_step import ServerStep
from fed_a2v.federation.protocol.errors import FederationError

log = logging.getLogger("fed_a2v")


class UnsharedClasses:
    """Tracks the classes without statistics, and warns of them after every site has taken part.

    Args:
        settings: settings of the experiment.
        classes: names of all classes.

    Attributes:
        names: the classes of which no site has shared statistics so far.
    """

    def __init__(self, settings: Settings, classes: Sequence[str]) -> None:
        self.settings = settings
        self.classes = tuple(classes)
        self.names = self.classes

    @property
    def _has_server_step(self) -> bool:
        return self.settings.finetune.enabled or self.settings.aggregation.distils

    @property
    def _complete_from(self) -> int:
        """The first round after which every site has taken part; 0 (the registration) if all sites register."""
        scenario = self.settings.scenario
        return 0 if scenario.name == "static" else (scenario.steps - 1) * scenario.rounds_per_step + 1

    def lost(self, round_number: int) -> list[str]:
        """The classes that the server step does not learn; [] until every site has taken part."""
        return list(self.names) if self._has_server_step and round_number >= self._complete_from else []

    def update(self, round_number: int, step: ServerStep) -> None:
        """Remove the classes that the bank has; warn of the rest in the first round after which no more can come.

        Raises:
            FederationError: the bank is empty and only the server step would train the adapters.
        """
        self._remove([*step.bank.counts(), *step.settings.unseen])  # unseen classes are not recorded on purpose
        if round_number != self._complete_from or not self.names or not self._has_server_step:
            return
        settings, least = self.settings, self.settings.share.min_clips
        log.warning(
            "Lost for the server step: no site that replied has share.min_clips=%d training clips of %d of %d classes "
            "(%s); lower it, or let fewer sites share a class",
            least,
            len(self.names),
            len(self.classes),
            ", ".join(self.names),
        )
        if step.bank.counts():
            return
        if settings.adapters.closed_form or not settings.aggregation.averages:
            key = "adapters.closed_form=true" if settings.adapters.closed_form else "aggregation.mode=none"
            raise FederationError(
                f"{key}: only the server step trains the adapters, and no site has share.min_clips={least} training "
                "clips of a class; lower it"
            )
        log.warning("The server step has no class statistics: the run is plain federated averaging (FedAvg)")

    def _remove(self, shared: Iterable[str]) -> None:
        known = set(shared)
        self.names = tuple(name for name in self.names if name not in known)
