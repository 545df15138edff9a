"""The Flower client: unpacks a message, lets the site work, packs the reply."""

from __future__ import annotations

import json
from functools import lru_cache

import torch
from flwr.client import NumPyClient
from flwr.common import Config, NDArrays, Scalar

from fed_a2v.core.adapters import Adapters
from fed_a2v.federation.site import Site
from fed_a2v.federation.wire import decode_weights, encode_reply, encode_scores
from fed_a2v.settings import Settings


class A2VClient(NumPyClient):
    """A node's side of the federation.

    Settings and class names come with each message, so a node needs nothing but its data. A node may act for
    several sites of a simulated federation: the message says for which.

    Args:
        node_config: what only this node knows: `site` (its name), `data-dir`, `cache-dir`, `device`; all optional.
    """

    def __init__(self, node_config: dict[str, Scalar]) -> None:
        super().__init__()
        self.node_config = node_config

    def get_properties(self, config: Config) -> dict[str, Scalar]:
        """The node's name, for federations in which every node is a site of its own."""
        del config
        for key in ("site", "partition-id"):
            if key in self.node_config:
                return {"site": str(self.node_config[key])}
        return {}

    def fit(self, parameters: NDArrays, config: Config) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Introduce the site, or train the adapters in `parameters` on its clips."""
        site = self._site(config)
        round_number = int(config["round"])
        if config["task"] == "introduce":
            reply = site.introduce(round_number)
        else:
            reply = site.train(round_number, _load(site, parameters), str(config["held"]))
        arrays, metrics = encode_reply(reply, site.settings.share.dtype)
        return arrays, reply.num_examples, metrics

    def evaluate(self, parameters: NDArrays, config: Config) -> tuple[float, int, dict[str, Scalar]]:
        """Score each of the models in `parameters` on the site's test clips."""
        site = self._site(config)
        names = json.loads(str(config["models"]))
        size = (len(parameters) - 2) // len(names)
        standardisation = parameters[-2:]
        scores = {
            name: site.evaluate(
                _load(site, parameters[k * size : (k + 1) * size] + standardisation),
                float(config.get("calibration", 0.0)),
                bool(config.get("confusion", False)) and name == names[-1],
            )
            for k, name in enumerate(names)
        }
        metrics = encode_scores(site.name, int(config["round"]), scores)
        last = scores[names[-1]]
        return float(last.loss), int(last.clips), metrics

    def _site(self, config: Config) -> Site:
        settings = _settings(str(config["settings"]))
        if device := self.node_config.get("device"):
            settings = settings.model_copy(update={"device": str(device)})
        torch.set_num_threads(settings.threads)
        return Site(
            settings,
            json.loads(str(config["classes"])),
            int(config["number"]),
            _text(self.node_config.get("data-dir")),
            _text(self.node_config.get("cache-dir")),
            _text(config.get("site")),
        )


@lru_cache(maxsize=4)
def _settings(text: str) -> Settings:
    return Settings.model_validate_json(text)


def _text(value: Scalar | None) -> str | None:
    return None if value in (None, "") else str(value)


def _load(site: Site, arrays: NDArrays) -> Adapters:
    """The global adapters: trained weights, then the mean and deviation that standardise their input."""
    adapters = site.new_adapters()
    weights = adapters.weights()
    shapes = [tuple(weight.shape) for weight in weights] + [tuple(adapters.audio_mean.shape)] * 2
    *loaded, mean, std = decode_weights(arrays, shapes)
    adapters.load_weights(loaded)
    adapters.audio_mean.copy_(mean)
    adapters.audio_std.copy_(std)
    return adapters
