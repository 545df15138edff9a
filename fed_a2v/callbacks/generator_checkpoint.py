"""Saves the generator alone, for use in another run or program."""

from __future__ import annotations

from fed_a2v.callbacks.base import Callback, RunContext
from fed_a2v.config.sections.training import GeneratorSettings
from fed_a2v.core.server_step import ServerStep
from fed_a2v.runs.generator_files import own_path, save_generator_family


class GeneratorCheckpoint(Callback):
    """Saves the generator every `generator.checkpoint_frequency` rounds and after the last: a file per class or group.

    Nothing is saved with `generator.save_checkpoint=false`, or before the generator is first trained.
    """

    essential = True

    def on_run_start(self, run: RunContext) -> None:
        """Read the section `generator`."""
        self.run, self.settings = run, GeneratorSettings(**run.config["generator"])

    def on_server_step_end(self, round_number: int, step: ServerStep) -> None:
        """Save the generator if it is due."""
        due = round_number % self.settings.checkpoint_frequency == 0 or round_number == self.run.config["rounds"]
        if not (due and self.settings.save_checkpoint and step.trains_generator and step.finetuned_rounds):
            return
        assert step.generator is not None
        path = own_path(self.settings.checkpoint_path, step.generator.kind)
        save_generator_family(path, round_number, step.generator.checkpoints(), folder=self.run.folder.path)
