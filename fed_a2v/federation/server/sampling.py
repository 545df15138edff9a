"""Client sampling: the sites that take part in a round, and the Flower node that represents each of them."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from flwr.common import GetPropertiesIns
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy

from fed_a2v.config.sections.federation import FederationSettings, ScenarioSettings
from fed_a2v.core.names import plain_name
from fed_a2v.core.seeding import numpy_generator
from fed_a2v.data.partition import site_name
from fed_a2v.federation.protocol.errors import FederationError

log = logging.getLogger("fed_a2v")

SITE_NAME = re.compile(r"site-[\w .-]{1,64}")
# Seconds that a node has to send its name, for which it needs neither its data nor torch.
NAME_TIMEOUT = 60.0


def active_sites(scenario: ScenarioSettings, sites: int, round_number: int) -> list[int]:
    """Numbers of the sites that are available in a round: all sites, or one group of them, as the scenario defines."""
    if scenario.name == "static":
        return list(range(sites))
    step = min((round_number - 1) // scenario.rounds_per_step, scenario.steps - 1)
    return [site for site in range(sites) if site * scenario.steps // sites == step]


def sampled_sites(active: list[int], share: float, seed: int, round_number: int) -> list[int]:
    """Numbers of the sites that train in a round, in order: a new random sample of the available sites."""
    if share == 1.0:
        return active
    random = numpy_generator(seed, "sites of a round", round_number)
    return sorted(random.choice(active, size=max(1, round(share * len(active))), replace=False).tolist())


class NodeRegistry:
    """Flower's nodes and the sites that each of them represents.

    The sites of a simulated federation are distributed over the connected nodes, several to a node if necessary. With
    `partition.kind = own` every node is a site and reports its own name.

    Args:
        settings: the section `federation`.
        own: every node is a site.
        bound: a name belongs to the node that reported it first, for the whole run including resumed parts. This is
            safe in a deployment, where Flower identifies a node by its registered key. Otherwise a name is free while
            its node is disconnected, as in a simulation, where a resumed run's nodes have other numbers.

    Attributes:
        assigned: by site, the `cid` of the node that represented it in the last request.
        nameless: number of nodes that were left out of the last request because they did not report a name.
    """

    def __init__(self, settings: FederationSettings, own: bool, bound: bool = False) -> None:
        self.settings = settings
        self.own = own
        self.bound = bound
        self.assigned: dict[str, str] = {}
        self.nameless = 0
        self._names: dict[str, str] = {}
        # By `cid` of nodes without a name: failed requests in a row, and number of rounds until the next request.
        self._backoff: dict[str, tuple[int, int]] = {}

    def state_dict(self) -> dict[str, str]:
        """The names of nodes by their `cid`."""
        return dict(self._names) if self.bound else {}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Load the names of an earlier part of the run."""
        self._names = dict(state) if self.bound else {}

    def wait(self, manager: ClientManager, count: int) -> None:
        """Wait for `count` nodes; log the number of missing nodes every 10 s.

        Raises:
            FederationError: fewer nodes connect within `federation.start_timeout`.
        """
        limit = self.settings.start_timeout
        deadline = time.monotonic() + limit
        while not manager.wait_for(count, timeout=min(10, max(1, int(deadline - time.monotonic())))):
            present = manager.num_available()
            if time.monotonic() >= deadline:
                raise FederationError(
                    f"{present} of {count} nodes connected within {limit:.0f} s: start more, or lower "
                    "federation.min_nodes and aggregation.min_replies, or raise federation.start_timeout"
                )
            log.info("Waiting for %d more of %d nodes", count - present, count)

    def assign(
        self,
        manager: ClientManager,
        numbers: Iterable[int],
        registration: bool = False,
        ask: bool = True,
        without: Container[str] = (),
    ) -> list[tuple[str, int, ClientProxy]]:
        """Name, number and node of each of the sites `numbers`; of all nodes if every node is a site.

        The result is never empty, because Flower counts a round without any request as done.

        Args:
            manager: Flower's list of connected nodes.
            numbers: numbers of the sites; ignored if every node is a site.
            registration: give new nodes a temporary name, which their reply replaces (`learn_names`), instead of
                requesting their name first.
            ask: also request the names of new nodes; False leaves them out.
            without: names of sites that have withdrawn, which are left out.

        Raises:
            FederationError: there is no node, and none connects within `federation.start_timeout`.
        """
        self.wait(manager, 1)
        nodes = [node for _, node in sorted(manager.all().items())]
        if self.own:
            if ask and not registration:
                self._request_names(nodes)
            names = {node.cid: f"site-{node.cid}" for node in nodes} if registration else {}
            names |= self._names
            sites = [(names[node.cid], 0, node) for node in nodes if node.cid in names]
        else:
            sites = [(site_name(number), number, nodes[number % len(nodes)]) for number in numbers if nodes]
        named = bool(sites)
        sites = [each for each in sites if each[0] not in without]
        if named and not sites:
            raise FederationError("every site that is connected has withdrawn: the run has none left")
        if not sites:
            raise FederationError(
                f"none of {len(nodes)} nodes reported the name of its site; see the logs of their SuperNodes"
            )
        self.assigned = {site: node.cid for site, _, node in sites}
        return sites

    def learn_names(self, reported: Mapping[str, str]) -> None:
        """Replace the temporary names of the last request by the reported names, by `cid`; see `assign`."""
        self._add_names(reported, self.assigned.values())
        self.assigned = {self._names.get(cid, site): cid for site, cid in self.assigned.items()}

    def _add_names(self, reported: Mapping[str, str], connected: Iterable[str]) -> None:
        """Store the names of new nodes, except invalid names and names of other nodes."""
        present = set(connected)
        owned = {name.casefold() for cid, name in self._names.items() if self.bound or cid in present}
        for cid, name in sorted(reported.items()):
            if cid in self._names:
                continue
            if name.casefold() in owned:
                problem = "belongs to another node"
                if self.bound:
                    problem += "; if that node does not come back, federation.bind_names=false frees the name"
            elif not SITE_NAME.fullmatch(name) or not _is_plain(name.removeprefix("site-")):
                problem = "is not 1 to 64 letters of one alphabet, digits, spaces or ._-"
            else:
                self._names[cid] = name
                if self.bound or cid in present:
                    owned.add(name.casefold())
                continue
            log.warning("Node %s is left out: the name of its site, %.80r, %s", cid, name, problem)

    def _request_names(self, nodes: Sequence[ClientProxy]) -> None:
        """Request the names of new nodes, of all at once.

        A node that does not reply is skipped for 0, 1, 3, 7, ... rounds (exponential backoff), because each request may
        take `NAME_TIMEOUT`.
        """
        unnamed = [node for node in nodes if node.cid not in self._names]
        due = []
        for node in unnamed:
            failures, pause = self._backoff.get(node.cid, (0, 0))
            if pause:
                self._backoff[node.cid] = (failures, pause - 1)
            else:
                due.append(node)
        with ThreadPoolExecutor(max_workers=len(due) or 1) as pool:
            replies = zip(due, pool.map(self._request_name, due), strict=True)
            names = {node.cid: name for node, name in replies if name is not None}
        for node in due:
            failures, _ = self._backoff.pop(node.cid, (0, 0))
            if node.cid not in names:
                self._backoff[node.cid] = (failures + 1, 2**failures - 1)
        self.nameless = len(unnamed) - len(names)
        self._add_names(names, [node.cid for node in nodes])

    def _request_name(self, node: ClientProxy) -> str | None:
        """The name that a node reports for its site; None if it does not reply."""
        timeout = min(NAME_TIMEOUT, self.settings.round_timeout)
        try:
            properties = node.get_properties(GetPropertiesIns({}), timeout, 0).properties
        except Exception as error:  # any error of the transport, for a node that is disconnected
            log.warning("Node %s does not report its name and is left out: %r", node.cid, error)
            return None
        return f"site-{properties.get('site', node.cid)!s}"


def _is_plain(name: str) -> bool:
    """Whether a name is already in the form of `plain_name`."""
    try:
        return plain_name(name) == name
    except ValueError:
        return False
