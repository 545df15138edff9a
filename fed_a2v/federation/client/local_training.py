"""What a site does with its clips: register, train the adapters, evaluate them.

A message may reach a site in a new process each time, so nothing is remembered here between calls except
caches that can be rebuilt.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from fed_a2v.config.schema import Settings, cache_dir
from fed_a2v.core.adapters import AdapterOutput, Adapters
from fed_a2v.core.losses import AdapterLoss
from fed_a2v.core.metrics import cosines, retrieval
from fed_a2v.core.prototype_bank import ClassStatistics, PooledMoments
from fed_a2v.core.prototypes import clip_groups, fingerprint, pooled_moments, share_groups
from fed_a2v.core.seeding import torch_generator
from fed_a2v.core.training import mean_outputs, train_epochs
from fed_a2v.core.zero_shot import hits
from fed_a2v.data.site import LabelledClips, SiteData, site_clips
from fed_a2v.federation.client.privacy_policy import of_enough_clips
from fed_a2v.federation.factory import (
    adapter_loss,
    more_steps,
    new_adapters,
    prompt_set,
    site_optimiser,
    training_loss,
    unseen_mask,
)
from fed_a2v.federation.protocol import ClassScores, Scores, SideScores, Task, TrainReply

# Rows that go through the adapters at once in an evaluation: bounds the memory of wide outputs.
EVALUATION_ROWS = 256


class Site:
    """One site in one call.

    Args:
        settings: of the experiment, as the server sent them.
        classes: names of all classes, in the server's order.
        number: of the site in the experiment's partition; ignored where every node has its own folder.
        data_dir: folder of the site's own data, where it differs from the settings'.
        name: of the site, where it is not the partition's.
        least: clips of a class, by its owner's word; of classes with fewer nothing is used.
    """

    def __init__(
        self,
        settings: Settings,
        classes: Sequence[str],
        number: int = 0,
        data_dir: str | None = None,
        name: str | None = None,
        least: int = 0,
    ) -> None:
        self.settings = settings
        self.classes = tuple(classes)
        self.device = torch.device(settings.device)
        folder = cache_dir(settings)
        data = site_clips(settings, number, data_dir, folder, self.classes)
        self.data: SiteData = of_enough_clips(data, least) if least else data
        self.name = name or self.data.name
        self.prompts = prompt_set(settings, self.classes, folder)
        self.unseen = unseen_mask(settings, self.classes)

    def register(self, round_number: int) -> TrainReply:
        """Say which classes the site has, and what their embeddings are like on average.

        A site with too few clips of every class says what all its clips are like, so that it can be averaged over.
        """
        start = time.perf_counter()
        prompts = self._prototypes()
        moments = None if prompts else pooled_moments(self.data.train.embeddings, self.settings.share.min_clips)
        return self._reply("register", round_number, [], prompts, fingerprint(prompts), {}, start, moments)

    def train(self, round_number: int, adapters: Adapters, held: str) -> TrainReply:
        """Train the adapters on the site's clips.

        Args:
            round_number: from 1.
            adapters: the global ones; changed in place.
            held: fingerprint of the prototypes that the server holds of this site; the same are not sent again.
        """
        start = time.perf_counter()
        settings = self.settings
        audio, labels = self.data.train.embeddings.to(self.device), self.data.train.labels.to(self.device)
        losses: dict[str, float] = {}
        if not adapters.closed_form:  # else the server solves for them
            losses = train_epochs(
                adapters,
                audio,
                labels,
                training_loss(settings, self.prompts),
                settings.site.epochs,
                site_optimiser(settings),
                torch_generator(settings.seed, "site", self.name, round_number),
                settings.site.proximal,
                more_steps(settings, round_number),
            )
        prompts = self._prototypes()
        if not settings.needs_prototypes:  # the server has standardised with them, and forgets them now
            prompts = [ClassStatistics(prompt.name, prompt.count) for prompt in prompts]
        mark = fingerprint(prompts)
        outputs = mean_outputs(adapters, audio, labels) if settings.needs_outputs else {}
        prompts = [self._with_outputs(prompt, outputs, send_audio=mark != held) for prompt in prompts]
        weights = adapters.weights() if settings.needs_weights else []
        return self._reply("train", round_number, weights, prompts, mark, losses, start)

    @torch.no_grad()
    def evaluate(
        self,
        adapters: Adapters,
        calibration: float = 0.0,
        confusion: bool = False,
        clips: LabelledClips | None = None,
        t5: bool = True,
    ) -> Scores:
        """Retrieval of the right class prompt among all, and the loss, on some of the site's clips.

        Args:
            adapters: to be scored.
            calibration: taken off the scores of recorded classes; has no effect where none is unseen.
            confusion: also say which classes the clips of each class were taken for.
            clips: on which; None: those for the test.
            t5: also score the T5 side, where there is one; False where the adapters' is not that of this model.
        """
        loss = adapter_loss(self.settings, self.prompts)
        test = self.data.test if clips is None else clips
        scores = {}
        for label in test.labels.unique().tolist():
            audio = test.embeddings[test.labels == label].to(self.device)
            parts = [self._score(adapters, loss, rows, label, calibration, t5) for rows in audio.split(EVALUATION_ROWS)]
            (score,) = Scores.merge(parts).classes.values()
            predicted = self._predicted(adapters, audio) if confusion else {}
            scores[self.classes[label]] = score.model_copy(update={"predicted": predicted})
        return Scores(scores)

    def _score(
        self, adapters: Adapters, loss: AdapterLoss, audio: Tensor, label: int, calibration: float, t5: bool
    ) -> Scores:
        """The scores of clips of one class."""
        labels = torch.full((len(audio),), label, device=audio.device)
        outputs = adapters(audio)
        losses = {kind: float(value) * len(audio) for kind, value in loss.sides(outputs, labels).items()}
        found = retrieval(outputs.clip, labels, self.prompts.clip)
        sums: dict[str, Any] = {
            "right_at_1": int(found.hits(1).sum()),
            "right_at_5": int(found.hits(5).sum()),
            "cosine": float(found.similarity.sum()),
            "loss": sum(losses.values()) / len(losses),
        }
        if t5 and self.prompts.t5 is not None:
            near = retrieval(outputs.t5, labels, self.prompts.t5)
            sums["t5"] = SideScores(
                right_at_1=int(near.hits(1).sum()), cosine=float(near.similarity.sum()), loss=losses["t5"]
            )
        if self.unseen.any():
            among, calibrated = hits(cosines(outputs.clip, self.prompts.clip), labels, self.unseen, calibration)
            sums |= {"right_among": int(among.sum()), "right_calibrated": int(calibrated.sum())}
        return Scores({self.classes[label]: ClassScores(clips=len(audio), **sums)})

    def _predicted(self, adapters: Adapters, audio: Tensor) -> dict[str, int]:
        """Clips by the class of their nearest prompt."""
        nearest = [cosines(adapters(rows).clip, self.prompts.clip).argmax(1) for rows in audio.split(EVALUATION_ROWS)]
        return self._counts(torch.cat(nearest))

    def _counts(self, labels: Tensor) -> dict[str, int]:
        """How often each class occurs among `labels`, of those that do."""
        counts = labels.bincount(minlength=len(self.classes)).tolist()
        return {name: count for name, count in zip(self.classes, counts, strict=True) if count}

    def new_adapters(self) -> Adapters:
        """Adapters of the right shapes; their weights are to be loaded."""
        return new_adapters(self.settings, self.prompts, self.data.train.embeddings.shape[-1])

    def _prototypes(self) -> list[ClassStatistics]:
        train, variance = self.data.train, self.settings.share.variance
        return [
            share_groups(self.classes[label], train.embeddings[train.labels == label], groups, variance)
            for label, groups in self._groups.items()
            if groups
        ]

    @cached_property
    def _groups(self) -> dict[int, list[Tensor]]:
        """By label, the rows of the class's training clips that are averaged together."""
        share, train = self.settings.share, self.data.train
        kind = share.kind if self.settings.needs_prototypes else "mean"
        return {
            label: clip_groups(train.embeddings[train.labels == label], kind, share.prototypes, share.min_clips)
            for label in train.labels.unique().tolist()
        }

    def averaged(self, task: Task | Literal["evaluate"]) -> Iterator[frozenset[str]]:
        """The keys of the clips behind each average, and each sum, that the answer to a task is made of."""
        if task == "evaluate":
            for clips in (self.data.test, self.data.validation):
                yield from (_keys(clips, _rows(clips, label)) for label in clips.labels.unique().tolist())
            return
        train = self.data.train
        for label, groups in self._groups.items():
            rows = _rows(train, label)
            yield _keys(train, rows)
            yield from (_keys(train, rows[group]) for group in groups)
        if not any(self._groups.values()):  # then all its clips are averaged over
            yield frozenset(train.keys)

    def _with_outputs(
        self, prompt: ClassStatistics, outputs: dict[int, AdapterOutput], send_audio: bool
    ) -> ClassStatistics:
        clip, t5 = outputs.get(self.classes.index(prompt.name), (None, None))
        return ClassStatistics(prompt.name, prompt.count, prompt.audio if send_audio else None, clip, t5)

    def _reply(
        self,
        task: Task,
        round_number: int,
        weights: list[Tensor],
        prompts: list[ClassStatistics],
        mark: str,
        losses: dict[str, float],
        start: float,
        moments: PooledMoments | None = None,
    ) -> TrainReply:
        return TrainReply(
            site=self.name,
            round_number=round_number,
            task=task,
            num_examples=len(self.data.train.labels),
            weights=weights,
            prompts=prompts,
            fingerprint=mark,
            square_root=self.data.square_root,
            losses=losses,
            seconds=time.perf_counter() - start,
            test_clips=self._counts(self.data.test.labels),
            moments=moments,
        )


def _rows(clips: LabelledClips, label: int) -> Tensor:
    """The rows of the clips of one class."""
    return (clips.labels == label).nonzero().flatten()


def _keys(clips: LabelledClips, rows: Tensor) -> frozenset[str]:
    return frozenset(clips.keys[row] for row in rows.tolist())
