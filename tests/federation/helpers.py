"""Short runs and federations that tests can observe, disturb and compare."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.common import Code, EvaluateRes, FitRes, Status, ndarrays_to_parameters
from flwr.server import SimpleClientManager
from flwr.server.server import evaluate_clients, fit_clients

from fed_a2v.config.compose import compose_settings
from fed_a2v.config.schema import Settings
from fed_a2v.core.prototype_bank import PrototypeBank
from fed_a2v.data.partition import site_name
from fed_a2v.data.site import class_names
from fed_a2v.federation.client.flower_client import A2VClient
from fed_a2v.federation.factory import prompt_set
from fed_a2v.federation.protocol import join_arrays, read_arrays
from fed_a2v.federation.server.step_factory import make_space, make_step
from fed_a2v.federation.server.strategy import FedA2V, RoundListener
from fed_a2v.federation.simulation import InProcessClient
from fed_a2v.runs.checkpoint import load_state
from fed_a2v.runs.speed import without_clock
from fed_a2v.storage.files import read_jsonl

QUICK = "experiment=quick"
# Narrow adapters and fewer steps: half a second a run, and still enough to learn something.
FAST = (QUICK, "report=false", "adapters.hidden_width=64", "finetune.first_steps=30", "finetune.steps=10")
# For tests of the replies, not of the training.
SMALL = (
    QUICK,
    "report=false",
    "adapters.hidden_width=16",
    "finetune.first_steps=2",
    "finetune.steps=2",
    "generator=none",
)
# The result is the sites' average, so that it can be compared.
PLAIN = "finetune.enabled=false"
SITES = [site_name(number) for number in range(5)]
BAD = SITES[2]


@dataclass(frozen=True)
class Finished:
    """A finished run and its files."""

    folder: Path
    results: dict

    @property
    def rows(self):
        return read_jsonl(self.folder / "metrics.jsonl")

    @property
    def log(self):
        return (self.folder / "run.log").read_text()

    @property
    def evaluation(self):
        return json.loads((self.folder / "evaluation.json").read_text())

    @property
    def config(self):
        return Settings.model_validate(load_state(self.folder)["config"])

    @property
    def state(self):
        """The saved state by component."""
        return load_state(self.folder)["components"]

    @property
    def bank(self):
        """The prototype bank in the saved state."""
        return PrototypeBank.from_state_dict(self.state["bank"])


def without_seconds(row):
    """A row of metrics, or results, without the figures that a clock gave."""
    return without_clock(row)


def assert_same(left, right, where="state"):
    """Two nested structures are equal to the last bit."""
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype, where
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert list(left) == list(right), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert left == right, where


def assert_same_run(left, right):
    """Two runs left the same metrics and the same adapters, generator and bank, bit for bit.

    Only a deployed run stores Flower's numbers of the sites' nodes.
    """
    assert [without_seconds(row) for row in left.rows] == [without_seconds(row) for row in right.rows]
    assert_same(
        *({key: part for key, part in run.state.items() if key not in ("nodes", "callbacks")} for run in (left, right))
    )


class Node(InProcessClient):
    """A node that can be made to misbehave.

    `tamper` is called for every message with the task (register, train, evaluate), the site, and a function
    that does the honest work; what it returns is the node's reply.
    """

    def __init__(self, cid, tamper=None, node_config=None):
        super().__init__(cid, A2VClient(node_config or {}).to_client())
        self.tamper = tamper or (lambda task, site, work: work())
        self.messages = []

    def fit(self, ins, timeout, group_id):
        self.messages.append(ins.config)
        return self.tamper(
            ins.config["task"], ins.config["site"], lambda: super(Node, self).fit(ins, timeout, group_id)
        )

    def evaluate(self, ins, timeout, group_id):
        self.messages.append(ins.config)
        return self.tamper("evaluate", ins.config["site"], lambda: super(Node, self).evaluate(ins, timeout, group_id))


class Federation(RoundListener):
    """A strategy and its nodes, driven hook by hook as Flower's server does it."""

    def __init__(self, *overrides, nodes=5, tamper=None, node_configs=None, state=None, after=0):
        self.settings = compose_settings([*SMALL, *overrides])
        torch.set_num_threads(self.settings.threads)
        classes = class_names(self.settings.dataset)
        prompts = prompt_set(self.settings, classes)
        self.rows, self.states = [], []
        self.strategy = FedA2V(
            self.settings,
            prompts,
            lambda shape, space: make_step(self.settings, prompts, shape, space),
            lambda: make_space(self.settings),
            self,
            max_workers=1,
        )
        if state is not None:
            self.strategy.load_state_dict(state)
            self.strategy.start_round = after
        self.manager = SimpleClientManager()
        self.nodes = [
            Node(f"{number:06d}", tamper, config)
            for number, config in enumerate(node_configs or [{} for _ in range(nodes)])
        ]
        for node in self.nodes:
            self.manager.register(node)

    def round_done(self, row):
        self.rows.append(row)
        self.states.append(copy.deepcopy(self.strategy.state_dict()))  # the strategy goes on with its tensors

    def start(self):
        self.parameters = self.strategy.initialize_parameters(self.manager)
        return self

    def train(self, number, order=lambda results: results):
        """The first half of a round; `order` rearranges the replies."""
        asked = self.strategy.configure_fit(number, self.parameters, self.manager)
        results, failures = fit_clients(asked, 1, None, number)
        results.sort(key=lambda result: result[0].cid)
        self.strategy.aggregate_fit(number, order(results), failures)

    def evaluate(self, number, order=lambda results: results):
        asked = self.strategy.configure_evaluate(number, self.parameters, self.manager)
        if not asked:  # as Flower's server
            return
        results, failures = evaluate_clients(asked, 1, None, number)
        self.strategy.aggregate_evaluate(number, order(results), failures)

    def round(self, number=1, order=lambda results: results):
        """A whole round; returns its row."""
        self.train(number, order)
        self.evaluate(number, order)
        return self.rows[-1]

    @property
    def weights(self):
        return [weight.clone() for weight in self.strategy.step.adapters.weights()]


def rewrite(reply, change):
    """A fit or evaluate reply whose arrays and manifest `change(arrays, manifest)` has altered."""
    manifest = json.loads(reply.metrics["manifest"])
    if isinstance(reply, EvaluateRes):
        change([], manifest)
        metrics = {"manifest": json.dumps(manifest)}
        return EvaluateRes(reply.status, reply.loss, reply.num_examples, metrics)
    arrays = read_arrays(reply.parameters, 1000)
    change(arrays, manifest)
    parameters = ndarrays_to_parameters([join_arrays(arrays)])
    return FitRes(reply.status, parameters, reply.num_examples, {"manifest": json.dumps(manifest)})


def trained_weights(reply):
    """The adapters' weights in a fit reply, as float32 arrays."""
    count = json.loads(reply.metrics["manifest"])["weights"]
    return [array.astype("float32") for array in read_arrays(reply.parameters, 1000)[:count]]


def failed(reply, message):
    """The reply with an error status."""
    return FitRes(Status(Code.FIT_NOT_IMPLEMENTED, message), reply.parameters, 0, {})


def lie(change, task="train", site=BAD):
    """A tamper function: one site's replies to one task are altered."""
    return lambda t, s, work: rewrite(work(), change) if (t, s) == (task, site) else work()


def overwrite(position, value):
    def change(arrays, manifest):
        arrays[position] = np.array(value(arrays[position]))

    return change


def set_manifest(**entries):
    def change(arrays, manifest):
        manifest.update(entries)

    return change


def with_nan(array):
    array = array.copy()
    array.flat[0] = np.nan
    return array
