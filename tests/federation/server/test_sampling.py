"""Client sampling: sites are sampled, assigned to nodes and waited for; a node may be one site."""

import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.server import SimpleClientManager

from fed_a2v.config.compose import compose_settings
from fed_a2v.federation.protocol.errors import FederationError
from fed_a2v.federation.server import sampling as participants
from fed_a2v.federation.server import strategy as strategy_module
from fed_a2v.federation.server.sampling import active_sites, sampled_sites
from tests.federation.helpers import SMALL, Federation, Node, without_seconds
from tests.refusals import refused

# The sites of a round


@pytest.mark.parametrize("nodes", [1, 2, 3, 7])
def test_any_number_of_nodes_gives_the_same_bits(nodes, honest_row):
    federation = Federation(nodes=nodes).start()
    assert without_seconds(federation.round()) == without_seconds(honest_row)


def test_sites_are_distributed_evenly_over_the_nodes():
    federation = Federation(nodes=2).start()
    federation.round()
    asked = [{message["site"] for message in node.messages} for node in federation.nodes]
    assert asked == [{"site-000", "site-002", "site-004"}, {"site-001", "site-003"}]


def test_every_round_samples_its_sites_again_and_reproducibly():
    def drawn(seed):
        few = ("dataset.clips_per_class=4", "share.min_clips=1")
        federation = Federation("federation.sites_per_round=0.4", f"seed={seed}", *few).start()
        asked = [federation.strategy.configure_fit(n, federation.parameters, federation.manager) for n in range(1, 7)]
        return [[ins.config["site"] for _, ins in round_] for round_ in asked]

    first = drawn(0)
    assert first == drawn(0)
    assert [len(set(sites)) for sites in first] == [2] * 6
    assert any(first[0] != other for other in first[1:])
    assert first != drawn(1)


def test_sites_are_sampled_among_the_available_ones():
    incremental = ("scenario=class_incremental", "scenario.steps=2", "scenario.rounds_per_step=1")
    settings = compose_settings([*SMALL, *incremental, "federation.sites_per_round=0.5"])
    assert active_sites(settings.scenario, 5, 1) == [0, 1, 2]
    assert active_sites(settings.scenario, 5, 9) == [3, 4]
    assert set(sampled_sites([3, 4], 0.5, 0, 2)) < {3, 4}


# Waiting for nodes


class Clock:
    """A clock that advances only while a test waits."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


class EmptyManager(SimpleClientManager):
    """A manager that lets the clock run while it waits in vain."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def wait_for(self, num_clients, timeout=86400):
        if self.num_available() >= num_clients:
            return True
        self.clock.now += timeout
        return False


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(participants, "time", clock)
    return clock


def test_the_number_of_missing_nodes_is_logged_every_10_s(clock, caplog):
    federation = Federation("federation.min_nodes=3", "federation.start_timeout=35", nodes=0)
    with pytest.raises(FederationError), caplog.at_level("INFO", "fed_a2v"):
        federation.strategy.initialize_parameters(EmptyManager(clock))
    said = [record.getMessage() for record in caplog.records if record.module == "sampling"]
    assert [re.findall(r"\d+", line) for line in said] == [["3", "3"]] * 3


@pytest.mark.parametrize("present", [0, 1])
def test_nodes_that_do_not_come_in_time_are_an_error_that_counts_them(clock, present):
    federation = Federation("federation.min_nodes=3", "federation.start_timeout=25", nodes=present)
    manager = EmptyManager(clock)
    for node in federation.nodes:
        manager.register(node)
    with refused(FederationError, present, 3, 25, "federation.min_nodes", "federation.start_timeout"):
        federation.strategy.initialize_parameters(manager)
    assert 25 <= clock.now <= 36


def test_a_real_clock_ends_the_wait_as_well():
    federation = Federation("federation.start_timeout=0.5", nodes=0)
    with refused(FederationError, 0, 1, "federation.min_nodes", "federation.start_timeout"):
        federation.start()


def test_a_round_waits_if_all_nodes_are_disconnected(caplog):
    federation = Federation("federation.start_timeout=240").start()
    for node in federation.nodes:
        federation.manager.unregister(node)
    back = threading.Timer(0.3, lambda: [federation.manager.register(node) for node in federation.nodes])
    back.start()
    assert federation.round()["replies"] > 0
    back.join()


def test_a_run_whose_nodes_do_not_come_back_ends():
    federation = Federation("federation.start_timeout=1").start()
    for node in federation.nodes:
        federation.manager.unregister(node)
    with refused(FederationError, 0, 1, "federation.min_nodes", "federation.start_timeout"):
        federation.strategy.configure_fit(1, federation.parameters, federation.manager)


# Every node is one site


@pytest.fixture
def own_files(tmp_path):
    """Two nodes with files of their own: other classes, other numbers of clips."""
    random = np.random.default_rng(0)
    configs = []
    for name, classes, clips in (("lab", ["dog", "rain"], 6), ("field", ["siren"], 9)):
        labels = np.repeat(np.arange(len(classes)), clips * 4)
        means = random.normal(0, 3, (len(classes), 20))
        path = tmp_path / f"{name}.npz"
        np.savez(
            path,
            embeddings=(means[labels] + random.normal(0, 0.3, (len(labels), 20))).astype(np.float32),
            category=np.array(classes)[labels],
            fold=np.tile([1, 2, 3, 4], clips * len(classes)),
        )
        configs.append({"site": name, "data-dir": str(path)})
    return configs


OWN = ("partition=own", "dataset=embeddings", "dataset.classes=[dog,rain,siren]", "finetune.first_steps=40")


def test_where_every_node_is_a_site_it_trains_on_its_own_data_under_its_own_name(own_files):
    federation = Federation(*OWN, node_configs=own_files).start()
    bank = federation.strategy.step.bank
    assert {site: set(classes) for site, classes in bank.entries.items()} == {
        "site-lab": {"dog", "rain"},
        "site-field": {"siren"},
    }
    row = federation.round()
    assert (row["replies"], row["test_clips"]) == (2, 6 + 6 + 9)
    assert row["accuracy"] > 0.9


def test_a_node_that_does_not_report_its_name_is_left_out_until_it_does(own_files):
    federation = Federation(*OWN, node_configs=own_files)
    lost = federation.nodes[1]

    def unreachable(ins, timeout, group_id):
        raise ConnectionError("node gone")

    lost.fit = lost.get_properties = unreachable
    federation.start()
    assert set(federation.strategy.step.bank.entries) == {"site-lab"}
    assert federation.round(1)["replies"] == 1
    del lost.fit, lost.get_properties
    row = federation.round(2)
    assert row["sites"] == {"site-field": "replied", "site-lab": "replied"}


def test_nodes_that_register_are_not_asked_for_their_names(own_files):
    federation = Federation(*OWN, node_configs=own_files)
    for node in federation.nodes:
        node.get_properties = None
    federation.start()
    assert set(federation.strategy.step.bank.entries) == {"site-field", "site-lab"}
    assert federation.round()["replies"] == 2


def test_a_node_without_a_name_keeps_the_number_that_flower_gave_it(own_files):
    del own_files[1]["site"]
    federation = Federation(*OWN, node_configs=own_files).start()
    assert set(federation.strategy.step.bank.entries) == {"site-lab", "site-000001"}
    assert set(federation.round()["sites"]) == {"site-lab", "site-000001"}


def test_a_node_with_an_invalid_name_is_left_out(own_files, caplog):
    own_files[1]["site"] = "../../x"
    federation = Federation(*OWN, node_configs=own_files).start()
    assert set(federation.round()["sites"]) == {"site-lab"}
    assert "'site-../../x'" in caplog.text


def test_a_site_without_a_usable_clip_reports_it_and_the_round_continues(own_files, tmp_path):
    empty = {"site": "empty", "data-dir": str(tmp_path / "nothing.npz")}
    federation = Federation(*OWN, node_configs=[*own_files, empty]).start()
    row = federation.round()
    assert row["sites"] == {"site-empty": "failed", "site-field": "replied", "site-lab": "replied"}
    assert "nothing.npz" in row["failure_reasons"][0]


def test_late_nodes_are_asked_for_their_names_at_the_same_time(own_files):
    federation = Federation(*OWN, node_configs=own_files[:1]).start()
    together = threading.Barrier(2, timeout=240)
    for number, config in enumerate(({**own_files[1]}, {**own_files[1], "site": "field 2"})):
        late = Node(f"00000{8 + number}", None, config)
        answer = late.get_properties
        late.get_properties = lambda *words, answer=answer: (together.wait(), answer(*words))[1]
        federation.manager.register(late)
    assert federation.round()["replies"] == 3


def test_two_nodes_of_the_same_name_do_not_count_twice(own_files):
    twin = {**own_files[0]}
    federation = Federation(*OWN, node_configs=[*own_files, twin]).start()
    row = federation.round()
    assert row["replies"] == 2
    assert row["test_clips"] == 21


@pytest.mark.parametrize("gone", ["at once", "after a round"])
def test_a_site_that_comes_back_as_another_node_has_its_name_again(own_files, gone):
    federation = Federation(*OWN, node_configs=own_files).start()
    if gone == "after a round":
        federation.round(1)
    federation.manager.unregister(federation.nodes[1])
    federation.manager.register(Node("000009", None, own_files[1]))
    row = federation.round(2)
    assert row["sites"] == {"site-field": "replied", "site-lab": "replied"}


def test_a_late_node_may_join_in_a_later_round(own_files):
    federation = Federation(*OWN, node_configs=own_files[:1]).start()
    federation.round(1)
    federation.manager.register(Node("000009", None, own_files[1]))
    assert federation.round(2)["replies"] == 2
    assert "site-field" in federation.strategy.step.bank.entries


# Names


SEPARATE = "federation.evaluate_with_training=false"  # a round ends before the next begins


@pytest.fixture
def deployed(monkeypatch):
    """The strategy behaves as in a deployment, where nodes are identified by their keys."""
    monkeypatch.setattr(strategy_module, "is_deployed_server", lambda: True)


@pytest.mark.usefixtures("deployed")
@pytest.mark.parametrize("resumed", [False, True])
def test_a_name_belongs_to_the_node_that_gave_it_first_even_while_it_is_away(own_files, resumed, caplog):
    federation = Federation(*OWN, SEPARATE, node_configs=own_files).start()
    federation.round(1)
    impostor = Node("000009", None, {**own_files[1], "site": "FIELD"})
    if resumed:
        federation = Federation(*OWN, SEPARATE, node_configs=own_files[:1], state=federation.states[-1], after=1)
        federation.start()
    else:
        federation.manager.unregister(federation.nodes[1])
    federation.manager.register(impostor)
    row = federation.round(1 if resumed else 2)
    assert row["sites"] == {"site-lab": "replied"}
    assert "federation.bind_names" in caplog.text


@pytest.mark.usefixtures("deployed")
def test_where_nodes_have_no_keys_a_name_is_free_while_its_node_is_away(own_files):
    federation = Federation(*OWN, SEPARATE, "federation.bind_names=false", node_configs=own_files).start()
    federation.manager.unregister(federation.nodes[1])
    federation.manager.register(Node("000009", None, own_files[1]))
    assert federation.round(1)["sites"] == {"site-field": "replied", "site-lab": "replied"}


@pytest.mark.parametrize("name", ["l\u0430b", "lab\u200b", "l\uff41b", " lab", "lab\u202e", "LAB"])
def test_a_name_that_looks_like_another_one_is_left_out(own_files, name, monkeypatch):
    """Even from a node whose own program lets it through."""
    federation = Federation(*OWN, node_configs=own_files[:1]).start()
    twin = Node("000009", None, own_files[1])
    twin.get_properties = lambda *words: SimpleNamespace(properties={"site": name})
    federation.manager.register(twin)
    assert set(federation.round(1)["sites"]) == {"site-lab"}


def test_a_node_that_does_not_report_its_name_gets_requests_with_exponential_backoff(own_files):
    federation = Federation(*OWN, "federation.round_timeout=10000", node_configs=own_files[:1]).start()
    silent, asked = Node("000009", None, own_files[1]), []

    def hangs(ins, timeout, group_id):
        asked.append((federation.strategy._row["round"], timeout))
        raise TimeoutError

    silent.get_properties = hangs
    federation.manager.register(silent)
    for number in range(1, 10):
        federation.round(number)
    assert [round_number for round_number, _ in asked] == [1, 2, 4, 8]
    assert {timeout for _, timeout in asked} == {participants.NAME_TIMEOUT}
