"""Generates images during a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fed_a2v.callbacks.base import Callback, RunContext
from fed_a2v.config.sections.data import TargetSettings
from fed_a2v.config.sections.output import ImageSettings
from fed_a2v.core.server_step import ServerStep

if TYPE_CHECKING:
    from fed_a2v.images.training import TrainingPictures

log = logging.getLogger("fed_a2v")


class TrainingImages(Callback):
    """Fills `images/round_N/` every `generate_global_images_frequency` and `generate_nodes_images_frequency` rounds."""

    def on_run_start(self, run: RunContext) -> None:
        """Check that the image model is available; its weights are loaded on first use.

        Raises:
            ModelError: it is not available.
        """
        self.run = run
        self.pictures: TrainingPictures | None = None
        config = run.config
        every, every_nodes = config["generate_global_images_frequency"], config["generate_nodes_images_frequency"]
        if every or every_nodes:
            from fed_a2v.images.training import TrainingPictures  # other runs do not need it

            images, targets = ImageSettings(**config["images"]), TargetSettings(**config["targets"])
            self.pictures = TrainingPictures(images, targets, every, every_nodes, run.folder)

    def on_evaluate_end(self, round_number: int, step: ServerStep, evaluation: Mapping[str, Any]) -> None:
        """Generate the images that are due; a failure, such as too little memory, is only logged."""
        if self.pictures is None or not self.pictures.due(round_number):
            return
        self.run.announce_phase(round_number, "pictures")
        try:
            self.pictures.draw(round_number, step)
        except (ValueError, RuntimeError, OSError) as error:
            log.warning("The images of round %d were not generated: %s", round_number, error)
