"""Who takes part in a round: which sites, and which node speaks for each of them."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from flwr.common import GetPropertiesIns
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy

from fed_a2v.config.schema import Settings
from fed_a2v.core.names import plain_name
from fed_a2v.core.seeding import numpy_generator
from fed_a2v.data.partition import site_name
from fed_a2v.federation.errors import FederationError

log = logging.getLogger("fed_a2v")

SITE_NAME = re.compile(r"site-[\w .-]{1,64}")
# Seconds that a node has to say its name, for which it needs neither its data nor torch.
NAME_TIMEOUT = 60.0


def active_sites(settings: Settings, round_number: int) -> list[int]:
    """Numbers of the sites that are there in a round: all of them, or the group whose turn it is in the scenario."""
    scenario, sites = settings.scenario, settings.partition.sites
    if scenario.name == "static":
        return list(range(sites))
    step = min((round_number - 1) // scenario.rounds_per_step, scenario.steps - 1)
    return [site for site in range(sites) if site * scenario.steps // sites == step]


def sampled_sites(settings: Settings, round_number: int) -> list[int]:
    """Numbers of the sites that train in a round, drawn anew among those that are there; in order."""
    active, share = active_sites(settings, round_number), settings.federation.sites_per_round
    if share == 1.0:
        return active
    random = numpy_generator(settings.seed, "sites of a round", round_number)
    return sorted(random.choice(active, size=max(1, round(share * len(active))), replace=False).tolist())


class NodeRegistry:
    """Flower's nodes, and the sites that each of them speaks for.

    The sites of a simulated federation are dealt to whatever nodes there are, several to a node if need be. With
    `partition.kind = own` every node is a site, and says what it is called.

    Args:
        settings: of the experiment.
        bound: a name belongs to the node that gave it first, for the whole run and where it is resumed: Flower knows
            a node by the number of its registered key. Otherwise a name is free while its node is away, as in a
            simulation, where a resumed run's nodes have other numbers.

    Attributes:
        assigned: by site, the `cid` of the node that was asked to speak for it last.
        nameless: nodes that were not asked last time, for they do not say which site they are.
    """

    def __init__(self, settings: Settings, bound: bool = False) -> None:
        self.settings = settings
        self.bound = bound
        self.assigned: dict[str, str] = {}
        self.nameless = 0
        self._names: dict[str, str] = {}
        # Of nodes that did not say their name: how often in a row, and how many more times they are passed over.
        self._silent: dict[str, tuple[int, int]] = {}

    def state_dict(self) -> dict[str, str]:
        """The names that nodes have, by their `cid`."""
        return dict(self._names) if self.bound else {}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Take over the names of an earlier part of the run."""
        self._names = dict(state) if self.bound else {}

    def wait(self, manager: ClientManager, wanted: int) -> None:
        """Wait for so many nodes, with a word every 10 s.

        Raises:
            FederationError: they do not come within `federation.start_timeout`.
        """
        limit = self.settings.federation.start_timeout
        deadline = time.monotonic() + limit
        while not manager.wait_for(wanted, timeout=min(10, max(1, int(deadline - time.monotonic())))):
            present = manager.num_available()
            if time.monotonic() >= deadline:
                raise FederationError(
                    f"{present} of {wanted} nodes came within {limit:.0f} s: start more, or lower "
                    "federation.min_nodes and aggregation.min_replies, or raise federation.start_timeout"
                )
            log.info("Waiting for %d more of %d nodes", wanted - present, wanted)

    def assign(
        self, manager: ClientManager, numbers: Iterable[int], registration: bool = False, ask: bool = True
    ) -> list[tuple[str, int, ClientProxy]]:
        """Name, number and node of each of the sites `numbers`; of all nodes where each is a site of its own.

        Flower passes over a round in which nobody is asked, as if it had been done: there is always somebody.

        Args:
            manager: knows the nodes.
            numbers: of the sites, where nodes are not sites of their own.
            registration: nodes not heard of before get a name for the time being, and tell their own with what they
                answer (`learn_names`); otherwise they are asked for it first.
            ask: also ask nodes not heard of before; False leaves them out.

        Raises:
            FederationError: there is no node, and none comes within `federation.start_timeout`.
        """
        self.wait(manager, 1)
        nodes = [node for _, node in sorted(manager.all().items())]
        if self.settings.partition.kind == "own":
            if ask and not registration:
                self._ask_names(nodes)
            names = {node.cid: f"site-{node.cid}" for node in nodes} if registration else {}
            names |= self._names
            sites = [(names[node.cid], 0, node) for node in nodes if node.cid in names]
        else:
            sites = [(site_name(number), number, nodes[number % len(nodes)]) for number in numbers if nodes]
        if not sites:
            raise FederationError(f"none of {len(nodes)} nodes answers; see the log of their SuperNodes")
        self.assigned = {site: node.cid for site, _, node in sites}
        return sites

    def learn_names(self, told: Mapping[str, str]) -> None:
        """Take in what the nodes that were asked last call their site, by their `cid`; see `assign`."""
        self._learn(told, self.assigned.values())
        self.assigned = {self._names.get(cid, site): cid for site, cid in self.assigned.items()}

    def _learn(self, told: Mapping[str, str], present: Iterable[str]) -> None:
        """Keep the names of nodes not heard of before; not those that are unusable, or another node's."""
        here = set(present)
        for cid, name in sorted(told.items()):
            if cid in self._names:
                continue
            holders = self._names if self.bound else here & self._names.keys()
            if name.casefold() in {self._names[other].casefold() for other in holders}:
                why = "is another node's" + (
                    "; if that node is gone for good, federation.bind_names=false frees it" if self.bound else ""
                )
            elif not SITE_NAME.fullmatch(name) or not _is_plain(name.removeprefix("site-")):
                why = "is not 1 to 64 letters of one alphabet, digits, spaces or ._-"
            else:
                self._names[cid] = name
                continue
            log.warning("Node %s is left out: the name of its site, %.80r, %s", cid, name, why)

    def _ask_names(self, nodes: Sequence[ClientProxy]) -> None:
        """Ask the nodes not heard of before, all at once, what they call their site; some may not answer.

        A node that does not for the second time is passed over once, then three times, seven times and so on: each
        question may cost `NAME_TIMEOUT`.
        """
        strangers = [node for node in nodes if node.cid not in self._names]
        asked = [node for node in strangers if self._is_due(node.cid)]
        with ThreadPoolExecutor(max_workers=len(asked) or 1) as pool:
            told = zip(asked, pool.map(self._told_name, asked), strict=True)
            names = {node.cid: name for node, name in told if name is not None}
        for node in asked:
            times = self._silent.pop(node.cid, (0, 0))[0]
            if node.cid not in names:
                self._silent[node.cid] = (times + 1, 2**times - 1)
        self.nameless = len(strangers) - len(names)
        self._learn(names, [node.cid for node in nodes])

    def _is_due(self, cid: str) -> bool:
        times, pause = self._silent.get(cid, (0, 0))
        if pause:
            self._silent[cid] = (times, pause - 1)
        return not pause

    def _told_name(self, node: ClientProxy) -> str | None:
        """What a node calls its site; None if it does not answer."""
        timeout = min(NAME_TIMEOUT, self.settings.federation.round_timeout)
        try:
            properties = node.get_properties(GetPropertiesIns({}), timeout, 0).properties
        except Exception as error:  # whatever the transport raises for a node that is lost
            log.warning("Node %s does not say its name and is left out: %r", node.cid, error)
            return None
        return f"site-{properties.get('site', node.cid)!s}"


def _is_plain(name: str) -> bool:
    try:
        return plain_name(name) == name
    except ValueError:
        return False
