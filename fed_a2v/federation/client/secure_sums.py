"""The client mod of `secure_sums=secagg`: Flower's `secaggplus_mod` behind the checks of a site's owner.

The client app calls it for every message. Only vectors of the tasks `masked_centre` and `masked_sums` are masked, and
these never leave without a mask. Flower's mod assumes a server that follows the protocol; the checks here refuse what
such a server does not send. They cannot recognise nodes that a server invents.

A SuperNode may start a program for each message, so this module must not import torch.
"""

from __future__ import annotations

import io
from typing import Annotated, Any, Literal, cast

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from flwr.app.message_type import MessageType
from flwr.client.mod import secaggplus_mod
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, RECORD_KEY_STATE, Key, Stage
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fed_a2v.config.sections.federation import SecureSumsSettings
from fed_a2v.federation.client.node_config import NodeConfig, read_node_config

# Prefix of the tasks whose replies must be masked; see `MASKED_TASKS` of the protocol.
MASKED = "masked_"
# Records of Flower's messages and of the context, by their keys.
_FIT, _DONE = "fitins.config", "fed_a2v.secure_sums"


class SecureSumsError(ValueError):
    """A message of secure aggregation is refused. The server receives this text: it has no content of the site."""


class _Setup(BaseModel):
    """What a setup may ask for.

    A threshold above half of the shares keeps a server from getting both secrets of one site from different sites. With
    few shares among many sites, the total could be of these few, and would lack the privacy noise of the others.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    stage: Literal["setup"]
    sample_num: Annotated[int, Field(ge=3)]
    share_num: Annotated[int, Field(ge=3)]
    threshold: Annotated[int, Field(ge=2)]
    clipping_range: Annotated[float, Field(ge=1.0, le=1.0)]
    target_range: Annotated[int, Field(ge=2**8, le=2**30)]
    mod_range: Annotated[int, Field(ge=2**32, le=2**32)]
    max_weight: Annotated[float, Field(ge=1.0, le=1.0)]

    @model_validator(mode="after")
    def _check(self) -> _Setup:
        if not self.share_num // 2 < self.threshold <= self.share_num <= self.sample_num:
            raise ValueError("sites, shares and threshold do not fit together")
        if self.share_num < SecureSumsSettings.shares(self.sample_num):
            raise ValueError("too few shares for so many sites")
        if self.sample_num * self.target_range >= self.mod_range:
            raise ValueError("the total would overflow")
        return self


def secure_sums_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Pass a message on; mask the reply of a masked task with SecAgg+.

    Raises:
        SecureSumsError: the message is refused.
        Exception: as the client app's.
    """
    if message.metadata.message_type != MessageType.TRAIN:
        return call_next(message, context)
    task = str(message.content.config_records.get(_FIT, ConfigRecord()).get("task", ""))
    configs = message.content.config_records.get(RECORD_KEY_CONFIGS)
    if configs is None:
        if task.startswith(MASKED):
            raise SecureSumsError(f"the sums of task {task[:20]} leave this site only through secure aggregation")
        return call_next(message, context)
    stage = configs.get(Key.STAGE)
    failures: list[Exception] = []

    def handle(inner: Message, inner_context: Context) -> Message:
        try:
            return call_next(inner, inner_context)
        except Exception as error:
            failures.append(error)
            raise

    try:
        sites = message.content.config_records.get(_FIT, ConfigRecord()).get("sites", 0)
        _check(stage, configs, task, sites if type(sites) is int else 0, context)
        reply = secaggplus_mod(message, context, handle)
    except SecureSumsError:
        raise
    except Exception as error:
        if failures:  # of the site's own work, which has its own messages
            raise
        raise SecureSumsError(f"secure aggregation: the message cannot be used ({type(error).__name__})") from error
    if stage == Stage.COLLECT_MASKED_VECTORS:
        _pack(reply.content.config_records[RECORD_KEY_CONFIGS])
    if stage == Stage.UNMASK:  # its keys have no further use
        del context.state.config_records[RECORD_KEY_STATE]
    return reply


def _pack(record: ConfigRecord) -> None:
    """Send masked entries as four bytes each: they are below 2**32, and Flower's mod sends eight."""
    packed = []
    for part in cast(list[bytes], record[Key.MASKED_PARAMETERS]):
        file = io.BytesIO()
        np.save(file, np.load(io.BytesIO(part), allow_pickle=False).astype("<u4"), allow_pickle=False)
        packed.append(file.getvalue())
    record[Key.MASKED_PARAMETERS] = packed


def _check(stage: object, configs: ConfigRecord, task: str, sites: int, context: Context) -> None:
    """Refuse a message that a server that follows the protocol does not send."""
    if stage == Stage.SETUP:
        _check_setup(dict(configs), read_node_config(dict(context.node_config)))
        return
    state = context.state.config_records.get(RECORD_KEY_STATE, ConfigRecord())
    known = {*_ints(state.get("public_keys_dict:K", []))}
    if stage == Stage.SHARE_KEYS:
        if len(configs) - 1 > int(str(state.get("share_num", 0))):
            raise SecureSumsError("secure aggregation: more neighbours than shares")
    elif stage == Stage.COLLECT_MASKED_VECTORS:
        if not task.startswith(MASKED):
            raise SecureSumsError("secure aggregation of a task whose reply is not masked")
        sources = _ints(configs[Key.SOURCE_LIST])
        _check_distinct(sources, known, "sources of shares")
        _check_noise(sites, state)
        _check_first(task, context)
    elif stage == Stage.UNMASK:
        # Both secrets of one site together would unmask its vector.
        _check_distinct(
            _ints(configs[Key.ACTIVE_NODE_ID_LIST]) + _ints(configs[Key.DEAD_NODE_ID_LIST]), known, "sites to unmask"
        )


def _check_setup(configs: dict[str, Any], own: NodeConfig) -> None:
    try:
        setup = _Setup.model_validate(configs)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise SecureSumsError(f"secure aggregation: setup {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    least = own.min_sites or 0
    if setup.threshold < least:
        raise SecureSumsError(
            f"secure aggregation: a total of {setup.threshold} sites, fewer than min-sites={least} in this node's "
            "configuration; more sites or a larger secure_sums.threshold are needed"
        )


def _check_noise(sites: int, state: ConfigRecord) -> None:
    """Refuse that sites share the privacy noise among more sites than the setup's threshold keeps in the total."""
    shares, threshold, all_sites = (int(str(state.get(key, 0))) for key in ("share_num", "threshold", "sample_num"))
    # The threshold is of the shares: rounded up from the same part of them as `sites` is of all sites.
    if (sites - 1) * shares >= threshold * all_sites:
        raise SecureSumsError(
            f"secure aggregation: privacy noise shared by {sites} sites, and a threshold of {threshold} of {shares}"
        )


def _check_first(task: str, context: Context) -> None:
    """Refuse a second total of the same task in a run: the difference to the first could be one site."""
    done = [str(each) for each in _list(context.state.config_records.get(_DONE, ConfigRecord()).get("tasks", []))]
    if task in done:
        raise SecureSumsError(f"secure aggregation: this site has already taken part in {task[:20]} in this run")
    context.state.config_records[_DONE] = ConfigRecord({"tasks": [*done, task]})


def _check_distinct(numbers: list[int], known: set[int], what: str) -> None:
    if len({*numbers}) < len(numbers) or not {*numbers} <= known:
        raise SecureSumsError(f"secure aggregation: {what} are named twice or unknown")


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _ints(value: object) -> list[int]:
    return [each for each in _list(value) if type(each) is int]
