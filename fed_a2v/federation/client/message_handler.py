"""What a node does with a message: unpack it, let the site work, pack the reply."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from flwr.common import Config, NDArrays, Scalar

from fed_a2v.config.schema import ConfigError
from fed_a2v.core.adapters import Adapters
from fed_a2v.data.errors import DataError
from fed_a2v.encoders.pretrained import ModelError
from fed_a2v.encoders.text import TargetsError
from fed_a2v.federation.client.ledger import Ledger
from fed_a2v.federation.client.local_training import Site
from fed_a2v.federation.client.node_config import NodeConfigError, read_node_config
from fed_a2v.federation.client.privacy_policy import PolicyViolationError, settings_here
from fed_a2v.federation.client.time_limit import DeadlineError, within
from fed_a2v.federation.memory import limit_memory
from fed_a2v.federation.protocol import (
    VALIDATION,
    InvalidReplyError,
    Scores,
    decode_weights,
    encode_scores,
    pack_reply,
    split_arrays,
)
from fed_a2v.federation.protocol.instruction import Instruction, InvalidInstructionError, read_instruction
from fed_a2v.federation.protocol.prompt_check import OtherPromptsError, check_same_prompts

log = logging.getLogger("fed_a2v")

Reply = TypeVar("Reply")

# Errors that go to the server as they are: made of its own message, of keys, and of the node's limits.
TOLD = (
    InvalidReplyError,
    PolicyViolationError,
    DeadlineError,
    NodeConfigError,
    InvalidInstructionError,
    OtherPromptsError,
)
# Of others, which may quote a file, the server learns what they are about.
ABOUT = {
    DataError: "its data cannot be used",
    ModelError: "its models cannot be used",
    TargetsError: "its class prompts cannot be used",
    ConfigError: "its configuration and the run's do not go together",
    MemoryError: "its memory does not suffice",
    OSError: "a file cannot be read or written",
}


class SiteError(RuntimeError):
    """A site cannot do what it was asked; of the reason, the server learns no more than what it is about."""


class Node:
    """A node's work for the federation.

    Settings and class names come with each message, so a node needs nothing but its data. A node may act for
    several sites of a simulated federation: the message says for which.

    Args:
        node_config: see `A2VClient`.
        deployed: see `A2VClient`.

    Raises:
        NodeConfigError: a key or a value in it is wrong, or one is missing that a deployed node needs.
    """

    def __init__(self, node_config: dict[str, Scalar], deployed: bool = False) -> None:
        self.node_config = read_node_config(node_config)
        self.deployed = deployed
        if deployed:
            self.node_config.check_deployed()

    def fit(self, parameters: NDArrays, config: Config) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Register the site, or train the adapters in `parameters` on its clips.

        Raises:
            InvalidInstructionError: the message is not what it should be.
            InvalidReplyError: the arrays in it are not.
            PolicyViolationError: the run asks for more than the site's owner allows.
            DeadlineError: it takes longer than `federation.site_timeout`, or than the owner allows.
            SiteError: deployed: it cannot be done; the cause is in the node's own log. Elsewhere the cause itself is
                raised: `DataError`, `TargetsError`, ...
        """
        order = read_instruction(config, "register", "train")
        return self._in_time(order, lambda: self._fit(parameters, order))

    def evaluate(self, parameters: NDArrays, config: Config) -> tuple[float, int, dict[str, Scalar]]:
        """Score the models in `parameters` on the site's test clips, the last also on those for validation.

        It raises as `fit` does.

        They are the adapters after the server step and, where `models` names two, the CLIP side of those before it:
        the accuracy that the step has gained is CLIP's, and T5, which is most of the bytes, is scored after it alone.
        """
        order = read_instruction(config, "evaluate")
        return self._in_time(order, lambda: self._evaluate(parameters, order))

    def _fit(self, parameters: NDArrays, order: Instruction) -> tuple[NDArrays, int, dict[str, Scalar]]:
        site = self._site(order)
        if order.task == "register":
            reply = site.register(order.round)
        else:
            adapters = site.new_adapters()
            _load(adapters, split_arrays(parameters, _arrays_of(adapters)))
            reply = site.train(order.round, adapters, order.held)
        parts, metrics = pack_reply(reply, site.settings.share.dtype)
        return parts, reply.num_examples, metrics

    def _evaluate(self, parameters: NDArrays, order: Instruction) -> tuple[float, int, dict[str, Scalar]]:
        site = self._site(order)
        names = [name for name in order.models if name != VALIDATION]
        adapters = site.new_adapters()
        size = _arrays_of(adapters)
        arrays = split_arrays(parameters, 2 * size)
        earlier, last = arrays[:-size], arrays[-size:]
        # Of the adapters before the server step the CLIP side has come; the rest are the last model's.
        models = {names[0]: earlier + last[len(earlier) :], names[-1]: last}
        scores: dict[str, Scores] = {}
        for name, model in models.items():
            _load(adapters, model)
            is_last = name == names[-1]
            scores[name] = site.evaluate(adapters, order.calibration, order.confusion and is_last, t5=is_last)
        if VALIDATION in order.models:
            scores[VALIDATION] = site.evaluate(adapters, clips=site.data.validation, t5=False)
        metrics = encode_scores(site.name, order.round, scores)
        final = scores[names[-1]]
        return float(final.loss), int(final.clips), metrics

    def _site(self, order: Instruction) -> Site:
        own = self.node_config
        settings = settings_here(order.settings, own, self.deployed)
        torch.set_num_threads(settings.threads)
        site = Site(
            settings,
            order.classes,
            order.number,
            own.data_dir or None,
            name=self._site_name(order),
            least=own.min_clips or 0,
        )
        check_same_prompts(site.prompts, order.prompts)
        if own.ledger:
            Ledger(Path(own.ledger), own.min_clips or 1).admit(site.averaged(order.task))
        return site

    def _site_name(self, order: Instruction) -> str:
        """What the server calls the site; where every node is a site of its own, what its operator calls it."""
        own = self.node_config.name if order.settings.partition.kind == "own" else None
        return order.site if own is None else f"site-{own}"

    def _in_time(self, order: Instruction, work: Callable[[], Reply]) -> Reply:
        """The work's result, if it comes in time; its errors as the server may learn them."""
        seconds = order.settings.federation.site_seconds
        key, own = "federation.site_timeout", self.node_config
        if own.max_seconds is not None and own.max_seconds < seconds:
            key, seconds = "max-seconds", own.max_seconds
        try:
            with limit_memory(own.max_memory):
                return within(seconds, f"the task {order.task} of {self._site_name(order)}", work, key)
        except TOLD:
            raise
        except Exception as error:
            if not self.deployed:
                raise
            raise SiteError(_about(error)) from error


def _about(error: Exception) -> str:
    """What an error is about, in a line without any of its text."""
    kinds = ABOUT | ({RuntimeError: ABOUT[MemoryError]} if "memory" in str(error) else {})
    about = next((words for kind, words in kinds.items() if isinstance(error, kind)), "it cannot do this")
    return f"{about} ({type(error).__name__}); the log of this site's SuperNode says why"


def _arrays_of(adapters: Adapters) -> int:
    """Arrays that global adapters consist of: trained weights, then mean and deviation that standardise their input."""
    return len(adapters.weights()) + 2


def _load(adapters: Adapters, arrays: NDArrays) -> None:
    """Make `adapters` the global ones."""
    shapes = [tuple(weight.shape) for weight in adapters.weights()] + [tuple(adapters.audio_mean.shape)] * 2
    *loaded, mean, std = decode_weights(arrays, shapes)
    adapters.load_weights(loaded)
    adapters.audio_mean.copy_(mean)
    adapters.audio_std.copy_(std)
