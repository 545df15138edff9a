"""A federation in one process whose messages pass through Flower's client app with its mods, and may be disturbed."""

from copy import deepcopy

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS
from flwr.server import SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy

from fed_a2v.config.compose import compose_settings
from fed_a2v.data.site import class_names
from fed_a2v.federation.client.flower_client import A2VClient
from fed_a2v.federation.client.secure_sums import secure_sums_mod
from fed_a2v.federation.factory import prompt_set
from fed_a2v.federation.server.step_factory import make_space, make_step
from fed_a2v.federation.server.strategy import FedA2V
from tests.federation.helpers import SMALL

SECURE = (
    *SMALL,
    "share=statistics",
    "secure_sums=secagg",
    "adapters=closed_form",
    "projection.columns=8",
    "partition.sites=4",
    "wandb.mode=disabled",
)


def stage_of(message):
    """Stage of secure aggregation, or the task of any other message."""
    records = message.content.config_records
    if RECORD_KEY_CONFIGS in records:
        return str(records[RECORD_KEY_CONFIGS]["stage"])
    ins = next((record for key, record in records.items() if key.endswith("ins.config")), {})
    return str(ins.get("task", ""))


class LocalGrid:
    """A grid whose nodes are in this process.

    `disturb(stage, node, message)` may change a message before a node receives it, `answer(stage, node, reply)` a
    reply; False loses it. `sent` and `replies` are all messages: (stage, node, content).
    """

    def __init__(self, nodes, disturb=None, answer=None, node_configs=None):
        self.app = ClientApp(
            client_fn=lambda context: A2VClient(dict(context.node_config)).to_client(), mods=[secure_sums_mod]
        )
        self.contexts = {
            node: Context(1, node, dict((node_configs or {}).get(node, {})), RecordDict(), {}) for node in nodes
        }
        self.disturb = disturb or (lambda *_: None)
        self.answer = answer or (lambda *_: None)
        self.sent, self.replies = [], []

    def send_and_receive(self, messages, *, timeout=None):
        del timeout
        answers = []
        for message in messages:
            node, stage = message.metadata.dst_node_id, stage_of(message)
            # Flower's mod takes the stage out of the message that it receives.
            mine = Message(deepcopy(message.content), node, message.metadata.message_type, group_id="0")
            if self.disturb(stage, node, mine) is False:
                continue
            self.sent.append((stage, node, deepcopy(mine.content)))
            try:
                reply = self.app(mine, self.contexts[node])
            except Exception as error:
                answers.append(Message(Error(0, f"{type(error)}:<'{error}'>"), reply_to=mine))
                continue
            if self.answer(stage, node, reply) is False:
                continue
            self.replies.append((stage, node, deepcopy(reply.content)))
            answers.append(reply)
        return answers


class SecureFederation:
    """A strategy with such nodes, driven by the hooks that Flower calls."""

    def __init__(self, *overrides, grid=None, nodes=4, **disturbances):
        self.settings = compose_settings([*SECURE, *overrides])
        prompts = prompt_set(self.settings, class_names(self.settings.dataset))
        self.strategy = FedA2V(
            self.settings,
            prompts,
            lambda shape, space: make_step(self.settings, prompts, shape, space),
            lambda: make_space(self.settings),
            max_workers=1,
        )
        numbers = [101 + number for number in range(nodes)]
        self.grid = grid or LocalGrid(numbers, **disturbances)
        self.manager = SimpleClientManager()
        for number in numbers:
            self.manager.register(GridClientProxy(number, self.grid, 1))

    def start(self):
        self.strategy.initialize_parameters(self.manager)
        return self

    @property
    def bank(self):
        return self.strategy.step.sums
