"""One run of an experiment in its folder: what every engine starts from and ends with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from fed_a2v.callbacks.progress import Output, progress_view
from fed_a2v.callbacks.tracking import Tracker
from fed_a2v.config.schema import Settings, cache_dir
from fed_a2v.core.projection import embedding_map
from fed_a2v.core.server_step import ServerStep
from fed_a2v.data.clips import unseen_classes
from fed_a2v.data.partition import check_disjoint, describe, partition
from fed_a2v.data.site import class_names, load_clips
from fed_a2v.encoders.text import TargetsError
from fed_a2v.federation.factory import prompt_set
from fed_a2v.federation.protocol import Scores
from fed_a2v.federation.protocol.prompt_check import check_same_prompts, fingerprint
from fed_a2v.federation.server.evaluation import Coverage, class_figures
from fed_a2v.federation.server.resources import state_bytes
from fed_a2v.federation.server.step_factory import make_step
from fed_a2v.federation.server.strategy import FedA2V, RoundListener
from fed_a2v.runs.checkpoint import (
    CheckpointError,
    check_same_experiment,
    load_generator_family,
    load_state,
    own_path,
    read_state,
    save_generator_family,
    save_state,
)
from fed_a2v.runs.embedding_map import save_map
from fed_a2v.runs.environment import environment
from fed_a2v.runs.folder import RunFolder, has_server_step
from fed_a2v.runs.lock import hold
from fed_a2v.runs.logs import LAST_LINES, on_console, setup_logging
from fed_a2v.runs.rounds import best_row, fully_evaluated, gains, remarks
from fed_a2v.runs.same_data import check_same_data
from fed_a2v.storage.files import append_jsonl, require_space, write_bytes, write_json
from fed_a2v.storage.untrusted import read_json

if TYPE_CHECKING:
    from fed_a2v.callbacks.images import TrainingPictures

log = logging.getLogger("fed_a2v")

# Figures of the last round that become the run's results.
FINAL_FIGURES = (
    *("accuracy", "accuracy_at_5", "accuracy_before", "cosine", "loss"),
    *("test_clips", "test_clips_total", "sites_evaluated", "sites_total"),
)
# With a T5 adapter, these as well.
T5_FIGURES = ("t5/accuracy", "t5/cosine", "t5/loss")


class Run(RoundListener, AbstractContextManager["Run"]):
    """Resumes or starts a run, records every round in the folder, and ends with `results.json`.

    Args:
        settings: of the experiment.
        folder: of the run.
        console: where people read; default standard error.
        output: what is shown meanwhile; "quiet" shows errors only.
        title: of the run, where there are several.
        announce: at the end the console is told, as `run.log` always is, where results and report are.

    Raises:
        CheckpointError: the folder holds a run with other settings.
        DataError: the data set cannot be used.
    """

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
        self.settings = settings
        self.folder = RunFolder(folder.absolute())
        self.results: dict[str, Any] = {}
        self._last = log if announce else logging.getLogger(LAST_LINES)
        self._exit = ExitStack()
        console = console or Console(stderr=True)
        level = logging.ERROR if output == "quiet" else logging.INFO
        if found := self._results_before():
            self.results, self.done = found, settings.rounds
            with on_console(console, level):
                self._show_results()
            return
        try:
            self._exit.enter_context(hold(self.folder.path))
            self._exit.enter_context(setup_logging(self.folder.path, console, level))
            state = self._earlier_state()
            self.done = 0 if state is None else int(state["round"])
            self.classes = class_names(settings.dataset)
            self.prompts = prompt_set(settings, self.classes)
            partition = self._partition()
            if state is not None:
                self._check_unchanged(partition)
                self._bring_rows()
            wandb_id = None if state is None else state["wandb_id"]
            self._tracker = self._exit.enter_context(
                Tracker(self.folder.path, settings, partition, self.done, wandb_id)
            )
            self.folder.write_targets(self.prompts)
            self._pictures = self._training_pictures()
            write_json(self.folder.environment, environment())
            self._view = self._exit.enter_context(progress_view(settings.rounds, console, self.done, output, title))
            self.strategy = FedA2V(
                settings,
                self.classes,
                self.prompts,
                self._make_step,
                self,
                None if state is None else state["strategy"],
            )
        except BaseException:
            self._exit.close()
            raise
        if settings.share.kind == "samples":
            log.warning("share=samples: every clip's own embedding leaves its site; ask the sites' owners first")
        if self.done:
            log.info("Going on behind round %d of %d", self.done, settings.rounds)
        if self.rounds_left == 0:
            self._finish()

    @property
    def rounds_left(self) -> int:
        """Rounds still to do."""
        return max(0, self.settings.rounds - self.done)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close what is open; a run that an exception ends has no results."""
        self._exit.__exit__(kind, error, traceback)

    # What the strategy reports

    def phase(self, round_number: int, name: str) -> None:
        """See `RoundListener`."""
        if name == "sites" and round_number == self.done + 1:
            self._check_space()
        self._view.phase(round_number, name)

    def generator_due(self, round_number: int, step: ServerStep) -> None:
        """Save the generator every `checkpoint_frequency` rounds, and after the last."""
        settings = self.settings.generator
        due = round_number % settings.checkpoint_frequency == 0 or round_number == self.settings.rounds
        if step.generator is None or not settings.save_checkpoint or not due or not step.trains_generator:
            return
        if not step.finetuned_rounds:  # there was nothing to train it on
            return
        path = own_path(settings.checkpoint_path, step.generator.kind)
        save_generator_family(path, round_number, step.generator.checkpoints(), folder=self.folder.path)

    def evaluated(self, round_number: int, scores: Mapping[str, Scores], step: ServerStep, coverage: Coverage) -> None:
        """Draw pictures where they are due; record, after the last round, what a report needs beside the rows."""
        if self._pictures is not None and self._pictures.due(round_number):
            self._view.phase(round_number, "pictures")
            try:
                self._tracker.log_pictures(round_number, self._pictures.draw(round_number, step))
            except (ValueError, RuntimeError, OSError) as error:  # e.g. a GPU's memory; a picture is not worth a run
                log.warning("No pictures of round %d: %s", round_number, error)
        if round_number < self.settings.rounds:
            return
        lost = self.strategy.lost_classes(round_number)
        write_json(self.folder.evaluation, class_figures(scores, step.bank, round_number, coverage, lost))
        try:
            found = embedding_map(step, round_number)
        except (ValueError, RuntimeError) as error:  # a picture is not worth a run
            log.warning("No map of the embeddings: %s", error)
            return
        if found is not None:
            save_map(self.folder.map, found)

    def round_done(self, row: dict[str, Any], state: dict[str, Any]) -> None:
        """Record the round, then save the state: a run killed in between repeats the round."""
        self._tracker.log_round(row)
        if self._is_saved(row):
            checkpoint = self.settings.checkpoint
            save_state(
                self.folder.path,
                {
                    "round": row["round"],
                    "config": self.settings.model_dump(mode="json", by_alias=True),
                    "wandb_id": self._tracker.wandb_id,
                    "strategy": state,
                },
                keep=checkpoint.keep,
                best=checkpoint.keep_best and self._is_best(row),
            )
        self._view.round_done(row)
        if row["round"] == self.settings.rounds:
            self._finish()

    def _check_space(self) -> None:
        """Refuse to start where the disk has no room for the saved states, and for the one that is being written."""
        if self.strategy.step is not None:
            checkpoint = self.settings.checkpoint
            states = checkpoint.keep + 1 + checkpoint.keep_best
            needed = states * state_bytes(self.strategy.step, self.settings.needs_outputs)
            require_space(self.folder.path, needed, f"saving {states} states")

    def _is_saved(self, row: dict[str, Any]) -> bool:
        number = int(row["round"])
        return number % self.settings.checkpoint.frequency == 0 or number == self.settings.rounds

    def _is_best(self, row: dict[str, Any]) -> bool:
        """Whether the round is better than every one saved before it; see `best_row`."""
        best = best_row(saved for saved in self.folder.rows() if self._is_saved(saved))
        return best is not None and best["round"] == row["round"]

    def _finish(self) -> None:
        rows = self.folder.rows()
        last, best = rows[-1], best_row(rows)
        figures = FINAL_FIGURES + (T5_FIGURES if self.prompts.t5 is not None else ())
        stepped = has_server_step(self.folder.read_config())
        self.results = {figure: last.get(figure) for figure in figures} | {
            **(gains(rows, self.folder.rows_without_step()) if stepped else {}),
            "best_round": best and best["round"],
            "best_accuracy": best and best["accuracy"],
            "best_fully_evaluated": best and fully_evaluated(best),
            "rounds": last["round"],
            "seed": self.settings.seed,
            "dataset": self.settings.dataset.name,
            "generator": self.settings.generator.name if self.settings.finetune.enabled else "no fine-tuning",
            "aggregation": self.settings.aggregation.mode,
            "sites": self.settings.partition.sites,
            "site_steps": sum(row.get("site/optimiser_steps", 0) for row in rows),
            "server_steps": sum(row.get("server/optimiser_steps", 0) for row in rows),
            "bytes_up": sum(row["bytes_up"] + row.get("bytes_introduction", 0) for row in rows),
            "bytes_down": sum(row["bytes_down"] for row in rows),
            "seconds": sum(row["seconds"] + row.get("seconds_introduction", 0.0) for row in rows),
            "rejected": sum(row["rejected"] for row in rows),
            "failures": sum(row["failures"] for row in rows),
        }
        lost = last.get("lost_classes", [])
        self.results |= {"classes_lost": len(lost), "lost_classes": lost}
        if set(lost) | set(unseen_classes(self.settings.dataset, self.classes)) == set(self.classes):
            self.results["generator"] = "no fine-tuning"  # for want of anything to learn from
        if self.settings.dataset.validates:
            self.results["accuracy_validation"] = last.get("accuracy_validation")
        self._tracker.finish(self.results)
        for remark in remarks(rows):
            log.warning("%s", remark)
        self._show_results(anew=True)
        self._exit.close()

    def _show_results(self, anew: bool = False) -> None:
        """Say where the results are; with a report of them, which is written `anew` or where there is none."""
        if self.settings.report and (anew or not self.folder.report.is_file()):
            self._write_report()
        self._last.info("Results: %s", self.folder.path)

    def _write_report(self) -> None:
        """Put a page to look at into the folder; for want of it no run fails."""
        try:
            from fed_a2v.report.page import write_report

            write_report([self.folder.path], self.folder.report)
        except Exception as error:
            log.warning("No report was written: %s: %s", type(error).__name__, error)
        else:
            self._last.info("Report: %s", self.folder.report)

    # Starting

    def _results_before(self) -> dict[str, Any]:
        """The results of this very run where it is finished, {} where it is not.

        Nothing of a finished run is written again, and its data need not be there any more.
        """
        folder, resume = self.folder, self.settings.resume
        here = resume == "auto" or (resume != "never" and Path(resume).expanduser().absolute() == folder.path)
        if not here or not folder.results.is_file():
            return {}
        config, settings = folder.read_config(), self.settings.model_dump(mode="json", by_alias=True)
        try:
            check_same_experiment(config, settings | {"rounds": config.get("rounds")})
        except CheckpointError:  # said, with the states, when it is to be resumed
            return {}
        return folder.read_results() if config.get("rounds") == settings["rounds"] else {}

    def _earlier_state(self) -> dict[str, Any] | None:
        """The state to go on from, or None. `_source` becomes the folder that it is in."""
        resume = self.settings.resume
        if resume == "never":
            return None
        path = self.folder.path if resume == "auto" else Path(resume).expanduser().absolute()
        self._source = source = RunFolder(path.parents[1] if path.is_file() else path)
        rows, trouble = source.whole_rows()
        state = read_state(path) if path.is_file() else load_state(path)
        if state is None:
            if resume != "auto":
                raise FileNotFoundError(f"resume={resume}: no saved state in {path / 'checkpoints'}")
            self._check_nothing_is_lost()
            if rows:
                log.warning("No saved state in %s: its %d rounds are done anew", path / "checkpoints", len(rows))
            return None
        if state["round"] > len(rows):
            earlier = None if path.is_file() else load_state(path, len(rows))
            if earlier is None:
                raise CheckpointError(
                    f"{trouble}, and the state to go on from is that of round {state['round']}: bring the file back, "
                    "or start anew with resume=never or in another folder"
                )
            log.warning("%s: going back behind round %d", trouble, earlier["round"])
            state = earlier
        settings = self.settings.model_dump(mode="json", by_alias=True)
        for difference in check_same_experiment(state["config"], settings):
            log.info("Going on with another %s", difference)
        # Elsewhere it is a run of its own at W&B, too, with all rounds.
        return state if source.path == self.folder.path else state | {"wandb_id": None}

    def _check_nothing_is_lost(self) -> None:
        """Without a saved state the run starts anew: not over the results of another."""
        if self.folder.results.is_file():
            raise CheckpointError(
                f"{self.folder.path} holds a finished run without a saved state to go on from: start anew in another "
                "folder, or over it with resume=never"
            )

    def _check_unchanged(self, partition: dict[str, Any] | None) -> None:
        """Refuse to go on with other clips or prompts, wherever they lie now."""
        source = self._source
        if partition is not None:
            check_same_data(read_json(source.partition), partition, self.settings.accept_new_data)
        if not source.targets.is_file():
            return
        had, now = source.read_targets(), self.prompts
        if had.names != now.names and not self.settings.accept_new_data:
            raise CheckpointError(
                f"the run to resume has the classes {', '.join(had.names)}, now they are {', '.join(now.names)}: bring "
                "the data back, or start anew with resume=never or in another folder"
            )
        if had.names == now.names:
            try:
                check_same_prompts(now, fingerprint(had))
            except TargetsError as error:
                raise CheckpointError(f"the prompts are not those of the run to resume: {error}") from error

    def _bring_rows(self) -> None:
        """Bring along the rows of a run in another folder, and what it says of its last round."""
        source = self._source
        if source.path == self.folder.path:
            return
        self.folder.metrics.unlink(missing_ok=True)
        for row in source.whole_rows()[0]:
            append_jsonl(self.folder.metrics, row)
        for old, new in ((source.evaluation, self.folder.evaluation), (source.map, self.folder.map)):
            if old.is_file():
                write_bytes(new, old.read_bytes())

    def _partition(self) -> dict[str, Any] | None:
        """Which site has which clips; unknown where every node brings its own."""
        settings = self.settings
        if settings.partition.kind == "own":
            return None
        clips = load_clips(settings.dataset, settings.encoder, settings.seed, cache_dir(settings))
        sites = partition(clips, settings.partition, settings.seed)
        check_disjoint(sites, clips)
        return describe(sites, clips)

    def _training_pictures(self) -> TrainingPictures | None:
        """What draws pictures while the run goes on; None where none are wanted."""
        settings = self.settings
        if not settings.generate_global_images_frequency and not settings.generate_nodes_images_frequency:
            return None
        from fed_a2v.callbacks.images import TrainingPictures

        return TrainingPictures(settings, self.folder.path)

    def _make_step(self, audio_shape: tuple[int, int]) -> ServerStep:
        step = make_step(self.settings, self.prompts, audio_shape)
        settings = self.settings.generator
        if step.generator is not None and settings.load_checkpoint and self.done == 0:
            step.generator.load_checkpoints(
                load_generator_family(
                    settings.checkpoint_path,
                    step.generator.kind,
                    step.generator.dimensions,
                    step.generator.keys,
                    folder=self.folder.path,
                    own=self.settings.resume == "never",
                )
            )
        return step
