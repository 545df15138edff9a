"""Images during a run, from the prompts of the global adapters and of each site's; used by the callback for images."""

from __future__ import annotations

import shutil
from functools import cached_property

import torch

from fed_a2v.config.sections.data import TargetSettings
from fed_a2v.config.sections.output import ImageSettings
from fed_a2v.core.adapters import AdapterOutput
from fed_a2v.core.server_step import ServerStep
from fed_a2v.images.gallery import Column, Subject, draw_gallery, safe_name
from fed_a2v.images.pipelines import ImageModel, check_available, load_image_model, warn_of_random_prompts
from fed_a2v.images.subjects import of_classes
from fed_a2v.runs.folder import RunFolder

GLOBAL = "global"


class TrainingPictures:
    """Generates images into a run's folder every so many rounds: `images/round_N/`.

    The input of the global adapters is the bank's mean embedding of each class. Images of a site are made from its
    mean adapter outputs, which it sends for this purpose.

    Args:
        settings: the image model.
        targets: settings of the class prompts, for a warning about random ones.
        every: rounds between two sets of images of the global adapters; 0: none.
        every_nodes: rounds between two sets of images of the sites' adapters; 0: none.
        run: folder of the run.

    Raises:
        ModelError: the image model is not available. Its weights are loaded on first use.
    """

    def __init__(
        self, settings: ImageSettings, targets: TargetSettings, every: int, every_nodes: int, run: RunFolder
    ) -> None:
        self.settings, self.every, self.every_nodes = settings, every, every_nodes
        self.run = run
        check_available(settings)
        warn_of_random_prompts(targets)

    @cached_property
    def model(self) -> ImageModel:
        """The image model."""
        return load_image_model(self.settings)

    def due(self, round_number: int) -> bool:
        """Whether a round generates images."""
        return _is_due(self.every, round_number) or _is_due(self.every_nodes, round_number)

    @torch.no_grad()
    def draw(self, round_number: int, step: ServerStep) -> None:
        """Generate the images of a round; see `pictures_in`.

        Raises:
            ModelError: the model does not accept the adapters' prompts.
            OSError: the folder cannot be written.
        """
        names = step.prompts.names
        columns: list[Column] = []
        if _is_due(self.every, round_number):
            known = of_classes(step, names)
            rows = [names.index(subject.name) for subject in known.subjects]
            if rows:
                columns.append(Column(GLOBAL, "Global adapters", rows, step.adapters(known.embeddings)))
        if _is_due(self.every_nodes, round_number):
            columns += _columns_of_sites(round_number, step)
        folder = self.run.pictures(round_number)
        for old in (folder, *folder.parent.glob(".*.tmp")):  # left by a round that was stopped and is repeated
            shutil.rmtree(old, ignore_errors=True)
        facts = {"run": self.run.path.name, "round": round_number, "classes": names}
        draw_gallery(folder, self.model, [Subject(name, name) for name in names], columns, facts)


def _columns_of_sites(round_number: int, step: ServerStep) -> list[Column]:
    """Columns of the mean adapter outputs that each site has sent in this round."""
    names = step.prompts.names
    columns = []
    for site, classes in sorted(step.bank.entries.items()):
        sent = [
            entry.statistics
            for entry in classes.values()
            if entry.last_heard == round_number and entry.statistics.clip is not None
        ]
        if sent:
            t5 = [prompt.t5.float() for prompt in sent if prompt.t5 is not None]
            clip = [prompt.clip.float() for prompt in sent if prompt.clip is not None]
            prompts = AdapterOutput(torch.stack(clip), torch.stack(t5) if t5 else None)
            columns.append(Column(safe_name(site), site, [names.index(prompt.name) for prompt in sent], prompts))
    return columns


def _is_due(frequency: int, round_number: int) -> bool:
    return frequency > 0 and round_number % frequency == 0
