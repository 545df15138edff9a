"""The interface of a callback, and the list of callbacks that a trainer calls.

A callback is a side effect of a run: a file, a tracker, images. It reads the run and does not change it, so a run
computes the same with or without it. The trainer makes the list from the section `callbacks` of the configuration; the
hooks follow those of pfl-research and of Lightning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from fed_a2v.core.adapters import ClassPrompts
from fed_a2v.core.server_step import ServerStep
from fed_a2v.errors import UserError
from fed_a2v.runs.folder import RunFolder
from fed_a2v.runs.output import Output

log = logging.getLogger("fed_a2v")


@dataclass(frozen=True)
class RunContext:
    """The parts of a run that a callback may use.

    Attributes:
        config: all settings as plain values, as in `config.yaml`; a callback reads its own section.
        folder: folder of the run.
        prompts: the class prompts.
        rounds_done: number of rounds of an earlier start, if the run is resumed, else 0.
        partition: the clips of each site; None if every site has its own data.
        state: returns the complete state of the run, which is saved.
        announce_phase: announces that a round enters a phase of the callback, such as "pictures".
        console: console for messages and progress.
        output: what the console shows during the run.
        title: title of the run, if there are several, else "".
        last_log: logger of the paths of results and report; not on the console if the command prints them itself.
    """

    config: Mapping[str, Any]
    folder: RunFolder
    prompts: ClassPrompts
    rounds_done: int
    partition: Mapping[str, Any] | None
    state: Callable[[], dict[str, Any]]
    announce_phase: Callable[[int, str], None]
    console: Console
    output: Output
    title: str
    last_log: logging.Logger


class Callback:
    """Callback interface; every hook is a no-op by default.

    An error in a hook is logged and disables the callback; it does not end the run unless the callback is `essential`.
    An error in `on_run_start` that a user can fix, such as a missing package, ends the run before its first round.

    Attributes:
        essential: whether an error of the callback ends the run; true if the run is useless without the callback.
        last: whether it is called after the callbacks that are not `last`, because it saves or shows what they do.
    """

    essential = False
    last = False

    def on_run_start(self, run: RunContext) -> None:
        """The run starts or is resumed. Rows of an earlier start are in the folder once `metrics_file` has started."""

    def on_phase(self, round_number: int, phase: str) -> None:
        """A phase of a round begins: "registration" (round 0), "sites", "server" or "evaluate"."""

    def on_server_step_end(self, round_number: int, step: ServerStep) -> None:
        """The generator and the global adapters of a round are trained."""

    def on_evaluate_end(self, round_number: int, step: ServerStep, evaluation: Mapping[str, Any]) -> None:
        """The round is evaluated; `evaluation` has the figures by class, see `class_figures`.

        In a round that is not due (`federation.evaluate_frequency`) these are None. With
        `federation.evaluate_with_training` the next round's phase "sites" has begun before.
        """

    def on_round_end(self, metrics: Mapping[str, Any]) -> None:
        """A round is over; `metrics` become its row of `metrics.jsonl`."""

    def on_run_end(self, results: Mapping[str, Any] | None) -> None:
        """The run ends. `results` is None if an error or an interrupt ends it."""

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs: plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the result of `state_dict`; called before `on_run_start` of a resumed run."""


class CallbackList:
    """Calls callbacks in their order, those that are `last` after the others; their errors do not end the run.

    Args:
        callbacks: callbacks by name, as in the configuration.
    """

    def __init__(self, callbacks: Mapping[str, Callback]) -> None:
        self.callbacks = dict(sorted(callbacks.items(), key=lambda item: item[1].last))
        self._started: list[str] = []
        self._failed: set[str] = set()

    def start(self, run: RunContext) -> None:
        """Call `on_run_start` of each. If one raises an error that the user can fix, the started ones are ended."""
        try:
            for name in self.callbacks:
                self._started.append(name)
                self._call(name, "on_run_start", run)
        except BaseException:
            self.end(None)
            raise

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of each callback that has not failed."""
        for name in self._started:
            if name not in self._failed:
                self._call(name, hook, *arguments)

    def end(self, results: Mapping[str, Any] | None) -> None:
        """Call `on_run_end` once for each started callback, including those that have failed."""
        while self._started:
            self._call(self._started.pop(0), "on_run_end", results)

    def _call(self, name: str, hook: str, *arguments: Any) -> None:
        callback = self.callbacks[name]
        try:
            getattr(callback, hook)(*arguments)
        except Exception as error:  # a user's class may raise anything
            if callback.essential or (hook == "on_run_start" and isinstance(error, UserError)):
                raise
            if name not in self._failed:
                log.warning(
                    "callbacks.%s failed in %s (%s: %s); the run continues without this callback",
                    name,
                    hook,
                    type(error).__name__,
                    error,
                )
            self._failed.add(name)

    def state_dict(self) -> dict[str, Any]:
        """The states of the callbacks that have one, by name."""
        states = {name: callback.state_dict() for name, callback in self.callbacks.items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Load the state of each callback; states of callbacks that are no longer configured are ignored."""
        for name, state in states.items():
            if name in self.callbacks:
                self.callbacks[name].load_state_dict(state)
