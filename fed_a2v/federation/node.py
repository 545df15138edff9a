"""What a node does with a message: unpack it, let the site work, pack the reply."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import torch
from flwr.common import Config, NDArrays, Scalar
from pydantic import ValidationError

from fed_a2v.core.adapters import Adapters
from fed_a2v.data.errors import DataError
from fed_a2v.federation.agreement import check_same_prompts
from fed_a2v.federation.consent import check_consent
from fed_a2v.federation.deadline import within
from fed_a2v.federation.node_config import read_node_config
from fed_a2v.federation.site import Site
from fed_a2v.federation.wire import VALIDATION, decode_weights, encode_scores, pack_reply, split_arrays
from fed_a2v.settings import DatasetSettings, Settings, targets_in_file

Reply = TypeVar("Reply")


class Node:
    """A node's work for the federation.

    Settings and class names come with each message, so a node needs nothing but its data. A node may act for
    several sites of a simulated federation: the message says for which.

    Args:
        node_config: see `A2VClient`.

    Raises:
        ConfigError: a key or a value in it is wrong.
    """

    def __init__(self, node_config: dict[str, Scalar]) -> None:
        self.node_config = read_node_config(node_config)

    def fit(self, parameters: NDArrays, config: Config) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Introduce the site, or train the adapters in `parameters` on its clips.

        Raises:
            DeadlineError: it takes longer than `federation.site_timeout`.
            DataError: the site has no usable clips.
            TargetsError: its class prompts are missing, or are not the server's.
            ConsentError: the run asks for averages of fewer clips than its owner allows.
        """
        task = "introduction" if config["task"] == "introduce" else "training"
        return self._in_time(config, task, lambda: self._fit(parameters, config))

    def evaluate(self, parameters: NDArrays, config: Config) -> tuple[float, int, dict[str, Scalar]]:
        """Score the models in `parameters` on the site's test clips, the last also on those for validation.

        It raises as `fit` does.

        They are the adapters after the server step and, where `models` names two, the CLIP side of those before it:
        the accuracy that the step has gained is CLIP's, and T5, which is most of the bytes, is scored after it alone.
        """
        return self._in_time(config, "evaluation", lambda: self._evaluate(parameters, config))

    def _fit(self, parameters: NDArrays, config: Config) -> tuple[NDArrays, int, dict[str, Scalar]]:
        site = self._site(config)
        round_number = int(config["round"])
        if config["task"] == "introduce":
            reply = site.introduce(round_number)
        else:
            adapters = site.new_adapters()
            _load(adapters, split_arrays(parameters, _arrays_of(adapters)))
            reply = site.train(round_number, adapters, str(config["held"]))
        parts, metrics = pack_reply(reply, site.settings.share.dtype)
        return parts, reply.num_examples, metrics

    def _evaluate(self, parameters: NDArrays, config: Config) -> tuple[float, int, dict[str, Scalar]]:
        site = self._site(config)
        asked = json.loads(str(config["models"]))
        names = [name for name in asked if name != VALIDATION]
        adapters = site.new_adapters()
        size = _arrays_of(adapters)
        arrays = split_arrays(parameters, 2 * size)
        earlier, last = arrays[:-size], arrays[-size:]
        # Of the adapters before the server step the CLIP side has come; the rest are the last model's.
        models = {names[0]: earlier + last[len(earlier) :], names[-1]: last}
        calibration, confusion = float(config.get("calibration", 0.0)), bool(config.get("confusion", False))
        scores = {}
        for name, model in models.items():
            _load(adapters, model)
            is_last = name == names[-1]
            scores[name] = site.evaluate(adapters, calibration, confusion and is_last, t5=is_last)
        if VALIDATION in asked:
            scores[VALIDATION] = site.evaluate(adapters, clips=site.data.validation, t5=False)
        metrics = encode_scores(site.name, int(config["round"]), scores)
        final = scores[names[-1]]
        return float(final.loss), int(final.clips), metrics

    def _site(self, config: Config) -> Site:
        settings, own = _settings(str(config["settings"])), self.node_config
        check_consent(settings.share, own.min_clips or 0)
        if own.device:
            settings = settings.model_copy(update={"device": own.device})
        if own.dataset:
            settings = settings.model_copy(update={"dataset": _of_kind(settings.dataset, own.dataset)})
        if own.targets:
            settings = settings.model_copy(update={"targets": targets_in_file(own.targets)})
        torch.set_num_threads(settings.threads)
        site = Site(
            settings,
            json.loads(str(config["classes"])),
            int(config["number"]),
            own.data_dir or None,
            own.cache_dir or None,
            self._site_name(config),
        )
        check_same_prompts(site.prompts, str(config["prompts"]))
        return site

    def _site_name(self, config: Config) -> str:
        """What the server calls the site; where every node is a site of its own, what its operator calls it."""
        own = self.node_config.name if _settings(str(config["settings"])).partition.kind == "own" else None
        return str(config["site"]) if own is None else f"site-{own}"

    def _in_time(self, config: Config, task: str, work: Callable[[], Reply]) -> Reply:
        seconds = _settings(str(config["settings"])).federation.site_seconds
        return within(seconds, f"the {task} of {self._site_name(config)}", work)


@lru_cache(maxsize=4)
def _settings(text: str) -> Settings:
    return Settings.model_validate_json(text)


def _of_kind(dataset: DatasetSettings, kind: str) -> DatasetSettings:
    """The settings for another kind of data set, which this node has."""
    try:
        return DatasetSettings.model_validate(dataset.model_dump() | {"name": kind})
    except ValidationError as error:
        raise DataError(f"dataset={kind} in this node's configuration: {error.errors()[0]['msg']}") from error


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
