"""One run of an experiment: its rounds and its state, for every engine.

The trainer resumes or starts the run, builds the strategy that Flower calls, and calls the callbacks. They
write, show and send everything that a run produces; see `fed_a2v/callbacks/`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console

from fed_a2v.callbacks.base import Callback, CallbackList, RunContext
from fed_a2v.callbacks.report import write_run_report
from fed_a2v.config.plugins import make_components
from fed_a2v.config.schema import Settings, cache_dir
from fed_a2v.core.public_space import PublicSpace
from fed_a2v.core.server_step import ServerStep
from fed_a2v.data.partition import check_disjoint, describe, partition
from fed_a2v.data.site import class_names, load_clips
from fed_a2v.errors import ConfigError
from fed_a2v.federation.factory import prompt_set
from fed_a2v.federation.server.machine_figures import MachineFigures
from fed_a2v.federation.server.resources import state_bytes
from fed_a2v.federation.server.resume import check_unchanged, find_saved_run, finished_results, take_over
from fed_a2v.federation.server.step_factory import load_generator, make_prior, make_space, make_step
from fed_a2v.federation.server.strategy import FedA2V, RoundListener
from fed_a2v.runs.folder import RunFolder
from fed_a2v.runs.lock import hold
from fed_a2v.runs.logs import LAST_LINES, on_console, setup_logging, standard_console
from fed_a2v.runs.output import Output
from fed_a2v.runs.results import final_results
from fed_a2v.runs.rounds import remarks
from fed_a2v.runs.speed import speed_line
from fed_a2v.storage.files import require_space

log = logging.getLogger("fed_a2v")


class Trainer(RoundListener, AbstractContextManager["Trainer"]):
    """Resumes or starts a run in its folder, follows its rounds, and ends with `results`.

    Args:
        settings: settings of the experiment.
        folder: folder of the run.
        console: console for messages and progress; default: `standard_console`.
        output: what the console shows during the run; "quiet" shows errors only.
        title: title of the run, if there are several.
        announce: print the paths of results and report at the end; `run.log` always has them.

    Attributes:
        round: the last finished round; 0 before the first.
        strategy: the strategy for Flower's server; not set if the run was already finished.
        results: content of `results.json`; {} until the run is finished.

    Raises:
        CheckpointError: the folder contains a run with other settings.
        DataError: the data set cannot be used.
    """

    strategy: FedA2V

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        console: Console | None = None,
        output: Output = "full",
        title: str = "",
        announce: bool = True,
    ) -> None:
        torch.set_num_threads(settings.threads)
        self.settings, self.config, self.folder = settings, settings.as_dict(), RunFolder(folder.absolute())
        self._last_log = log if announce else logging.getLogger(LAST_LINES)
        console = console or standard_console()
        level = logging.ERROR if output == "quiet" else logging.INFO
        self._exit = ExitStack()
        self.results = finished_results(settings.resume, self.config, self.folder)
        if self.results:
            self.round = settings.rounds
            with on_console(console, level):
                if settings.report and not self.folder.report.is_file():
                    write_run_report(self.folder, self._last_log)
                self._last_log.info("Results: %s", self.folder.path)
            return
        try:
            self._exit.enter_context(hold(self.folder.path))
            self._exit.enter_context(setup_logging(self.folder.path, console, level))
            self._start(console, output, title)
        except BaseException as error:
            self._exit.__exit__(type(error), error, error.__traceback__)
            raise

    def _start(self, console: Console, output: Output, title: str) -> None:
        settings = self.settings
        saved = find_saved_run(settings.resume, self.config, self.folder)
        state = None if saved is None else saved.state
        self.round = 0 if state is None else int(state["round"])
        self.prompts = prompt_set(settings, class_names(settings.dataset))
        sites = self._partition()
        if saved is not None:
            check_unchanged(saved, self.prompts, sites, settings.accept_new_data)
            take_over(saved, self.folder)
        self.callbacks = CallbackList(make_components("callbacks", settings.callbacks, Callback))
        if state is not None:
            self.callbacks.load_state_dict(state["components"]["callbacks"])
        self.callbacks.start(
            RunContext(
                config=self.config,
                folder=self.folder,
                prompts=self.prompts,
                rounds_done=self.round,
                partition=sites,
                state=self.state_dict,
                announce_phase=self.phase,
                console=console,
                output=output,
                title=title,
                last_log=self._last_log,
            )
        )
        # Called before the log file and the lock are closed; after a finished run it does nothing.
        self._exit.callback(self.callbacks.end, None)
        # A resumed run has it in its state.
        has_prior = state is None and settings.prior.name == "labels"
        self._class_weights = make_prior(settings, self.prompts) if has_prior else None
        self._machine = MachineFigures(settings.device, settings.site, settings.finetune)
        self.strategy = FedA2V(settings, self.prompts, self._make_step, lambda: make_space(settings), self)
        if state is not None:
            self.strategy.load_state_dict(state["components"])
            self.strategy.start_round = self.round
            log.info("Resuming after round %d of %d", self.round, settings.rounds)
        if settings.share.kind == "samples":
            log.warning("share=samples: the embeddings of single clips leave their sites; ask the sites' owners first")
        if self.rounds_left == 0:
            self._finish()

    @property
    def rounds_left(self) -> int:
        """Number of rounds that remain."""
        return max(0, self.settings.rounds - self.round)

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs: the last finished round, the settings, and each component's state."""
        return {
            "round": self.round,
            "config": self.config,
            "components": {**self.strategy.state_dict(), "callbacks": self.callbacks.state_dict()},
        }

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close all files; a run that ends with an exception has no results."""
        self._exit.__exit__(kind, error, traceback)

    # Events of the strategy

    def phase(self, round_number: int, name: str) -> None:
        """A phase of a round begins."""
        if name == "sites" and round_number == self.strategy.start_round + 1:
            self._check_space()
        self.callbacks.call("on_phase", round_number, name)

    def server_step_done(self, round_number: int, step: ServerStep) -> None:
        """The generator and the global adapters of a round are trained."""
        self.callbacks.call("on_server_step_end", round_number, step)

    def evaluated(self, round_number: int, step: ServerStep, evaluation: Mapping[str, Any]) -> None:
        """A round is evaluated, or not due."""
        self.callbacks.call("on_evaluate_end", round_number, step, evaluation)

    def round_done(self, row: Mapping[str, Any]) -> None:
        """A round is over; after the last one the run is finished."""
        self.round = int(row["round"])
        step, shape, space = self.strategy.step, self.strategy.audio_shape, self.strategy.space
        if step is not None and shape is not None:
            tokens = shape[0] if space is None else 1
            row = {**row, **self._machine.of_round(row, self.strategy.training_clips, step, tokens)}
        self.callbacks.call("on_round_end", row)
        if self.rounds_left == 0:
            self._finish()

    def _finish(self) -> None:
        self.results = final_results(self.folder, self.config, self.settings.dataset, self.prompts)
        rows = self.folder.rows()
        for remark in remarks(rows):
            log.warning("%s", remark)
        if line := speed_line(rows):
            self._last_log.info("%s", line, extra={"stays": True})
        self.callbacks.end(self.results)
        self._last_log.info("Results: %s", self.folder.path)
        self._exit.close()

    # Starting

    def _check_space(self) -> None:
        """Check that the disk has space for all saved states and one that is being written."""
        if self.strategy.step is not None:
            checkpoint = self.settings.checkpoint
            states = checkpoint.keep + 1 + checkpoint.keep_best
            needed = states * state_bytes(self.strategy.step, self.settings.needs_outputs)
            require_space(self.folder.path, needed, f"saving {states} states")

    def _partition(self) -> dict[str, Any] | None:
        """The clips of each site; None if every site has its own data."""
        settings = self.settings
        if settings.partition.kind == "own":
            return None
        clips = load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings.cache_dir))
        sites = partition(clips, settings.partition, settings.seed)
        check_disjoint(sites, clips)
        return describe(sites, clips)

    def _make_step(self, audio_shape: tuple[int, int], space: PublicSpace | None) -> ServerStep:
        step = make_step(self.settings, self.prompts, audio_shape, space)
        if self.round == 0:
            own = self.settings.resume == "never"
            load_generator(step.generator, self.settings.generator, self.folder.path, own)
        if self._class_weights is not None and space is not None and step.sums is not None:
            if self._class_weights.shape[1] != len(space.matrix):
                raise ConfigError(
                    f"prior=labels: the head is for embeddings of width {self._class_weights.shape[1]}, those of the "
                    f"sites have width {len(space.matrix)}; set prior.path to the head of the same encoder"
                )
            step.sums.prior = self._class_weights @ space.matrix.cpu()
        return step
