"""Callbacks outside a run, called as a trainer calls them."""

import io

import torch
from rich.console import Console

from fed_a2v.callbacks.base import Callback, CallbackList, RunContext
from fed_a2v.config.plugins import make_components
from fed_a2v.core.adapters import ClassPrompts
from fed_a2v.runs.folder import RunFolder
from fed_a2v.runs.logs import logging

PROMPTS = ClassPrompts(("dog", "rain"), torch.zeros(2, 1, 4), None)
# Callbacks that need no state of a run.
NAMES = ("metrics_file", "wandb", "tensorboard")


def context(folder, settings, **changes):
    """The context that a trainer passes to callbacks."""
    usual = {
        "config": settings.as_dict(),
        "folder": RunFolder(folder),
        "prompts": PROMPTS,
        "rounds_done": 0,
        "partition": None,
        "state": dict,
        "announce_phase": lambda round_number, phase: None,
        "console": Console(file=io.StringIO()),
        "output": "full",
        "title": "",
        "last_log": logging.getLogger("fed_a2v"),
    }
    return RunContext(**usual | changes)


class Tracked:
    """A run's files and trackers, from start to end."""

    def __init__(self, folder, settings, partition=None, after_round=0, wandb_id=None, names=NAMES):
        chosen = {name: settings.callbacks[name] for name in names}
        self.callbacks = CallbackList(make_components("callbacks", chosen, Callback))
        if wandb_id is not None:
            self.callbacks.load_state_dict({"wandb": {"id": wandb_id}})
        self.folder = RunFolder(folder)
        self.context = context(folder, settings, partition=partition, rounds_done=after_round)

    @property
    def wandb_id(self):
        return self.callbacks.state_dict().get("wandb", {}).get("id")

    def __enter__(self):
        self.callbacks.start(self.context)
        return self

    def __exit__(self, *error):
        self.callbacks.end(None)

    def log_round(self, metrics):
        self.callbacks.call("on_round_end", metrics)

    def finish(self, results):
        self.callbacks.end(results)
