"""The work of a site on its clips: register, train the adapters, evaluate them. The message handler calls it.

Each message may be handled in a new process, so that no state is kept between calls except caches that can be rebuilt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fed_a2v.config.schema import Settings, cache_dir
from fed_a2v.core.adapters import Adapters
from fed_a2v.core.class_sums import ClassSums
from fed_a2v.core.losses import AdapterLoss
from fed_a2v.core.metrics import cosines, ranked, retrieval
from fed_a2v.core.prototypes import clip_groups, fingerprint, pooled_moments, share_groups
from fed_a2v.core.public_space import PublicSpace
from fed_a2v.core.seeding import torch_generator
from fed_a2v.core.statistics import ClassStatistics, PooledMoments
from fed_a2v.core.training import TrainingTask, mean_outputs, train_epochs
from fed_a2v.core.zero_shot import hits
from fed_a2v.data.site import LabelledClips, SiteData, labelled_rows, site_clips
from fed_a2v.federation.client.privacy_policy import PolicyViolationError, of_enough_clips
from fed_a2v.federation.client.private_releases import PrivateReleases
from fed_a2v.federation.factory import (
    adapter_loss,
    more_steps,
    prompt_set,
    site_optimiser,
    unloaded_adapters,
    unseen_mask,
)
from fed_a2v.federation.protocol import Changes, ClassScores, MaskedTask, Scores, SideScores, Task, TrainReply
from fed_a2v.federation.protocol.masked import entry_scales, scaled, sums_vector

# Rows in one pass through the adapters in an evaluation, and numbers in their outputs: limits its memory.
EVALUATION_ROWS = 256
LARGEST_OUTPUT = 1 << 22
# The counts of `ClassScores` that are sums over clips.
COUNTS_OF_CLIPS = ("right_at_1", "right_at_5", "right_among", "right_calibrated")
# Fingerprint of a reply that shares nothing of single classes.
NOTHING_SENT = "nothing"


class Evaluated(NamedTuple):
    """A scored model.

    Attributes:
        scores: its scores.
        right: (N,) bool: whether the nearest prompt of each clip is the right one.
    """

    scores: Scores
    right: Tensor


class Site:
    """One site during one message.

    Args:
        settings: settings of the experiment, as this node uses them.
        classes: names of all classes, in the server's order.
        number: number of the site in the experiment's partition; ignored if every node has its own folder.
        data_dir: folder of the site's data, if it differs from that of the settings.
        name: name of the site, if it differs from that of the partition.
        min_clips: smallest number of clips of a class; classes with fewer are not used.
        releases: adds noise to the site's sums; None without `privacy=dp`.
    """

    def __init__(
        self,
        settings: Settings,
        classes: Sequence[str],
        number: int = 0,
        data_dir: str | None = None,
        name: str | None = None,
        min_clips: int = 0,
        releases: Callable[[str], PrivateReleases] | None = None,
    ) -> None:
        self.settings = settings
        self.classes = tuple(classes)
        self.device = torch.device(settings.device)
        data = site_clips(settings, number, data_dir, cache_dir(settings.cache_dir), self.classes)
        self.data: SiteData = of_enough_clips(data, min_clips) if min_clips else data
        self.name = name or self.data.name
        self.releases = releases(self.name) if releases else None
        self.prompts = prompt_set(settings, self.classes)
        self.unseen = unseen_mask(settings.dataset, self.prompts)

    def register(self, round_number: int) -> TrainReply:
        """Report the site's classes and their prototypes.

        A site with too few clips of every class reports the moments of all its clips together, so that the server can
        still standardise embeddings with them.
        """
        start = time.perf_counter()
        statistics = self._prototypes()
        moments = None if statistics else pooled_moments(self.data.train.embeddings, self.settings.share.min_clips)
        return self._reply("register", round_number, [], statistics, fingerprint(statistics), {}, start, moments)

    def centre(self, space: PublicSpace) -> TrainReply:
        """The mean of the clips in the public space, which says nothing of single classes.

        It is over the clips of the class sums, so that nothing depends on the classes with too few clips.
        """
        start = time.perf_counter()
        kept, min_clips = self._kept, self.settings.share.min_clips
        if self.releases is None:
            moments = pooled_moments(space.rows(kept.embeddings).unsqueeze(1), min_clips)
        elif len(kept) < min_clips:
            moments = None
        else:
            mean = self.releases.centre(kept, space) / len(kept)
            moments = PooledMoments(mean[None].float(), 0.0, len(kept))
        return self._reply("centre", 0, [], [], NOTHING_SENT, {}, start, moments, space=space)

    def send_sums(
        self, task: Task, space: PublicSpace, round_number: int = 0, stored_fingerprint: str = ""
    ) -> TrainReply:
        """The class sums of the training clips in the public space around its centre.

        Args:
            task: "sums" in the registration, or "train" in a round in which the site trains no adapters.
            space: the public space.
            round_number: number of the round; 0 in the registration.
            stored_fingerprint: see `train`.
        """
        start, counts = time.perf_counter(), self._counts()
        if self.settings.has_secure_sums:  # they are in the total already
            return self._reply(task, round_number, [], counts, NOTHING_SENT, {}, start, space=space)
        sums = self._sums(space)
        sent = sums if sums.counts.any() and sums.fingerprint != stored_fingerprint else None
        return self._reply(task, round_number, [], counts, sums.fingerprint, {}, start, sums=sent, space=space)

    def counts(self) -> TrainReply:
        """The numbers of clips alone, from which the server chooses the scales of secure aggregation."""
        return self._reply("counts", 0, [], self._counts(), NOTHING_SENT, {}, time.perf_counter())

    def masked(self, task: MaskedTask, space: PublicSpace, scales: Tensor) -> tuple[TrainReply, NDArray[np.float64]]:
        """The vector of a masked task, for the client mod to mask, and a reply without sums.

        Args:
            task: `masked_centre` for the sum of the rows in the uncentred space, or `masked_sums`.
            space: the public space.
            scales: (1,) or (C + 1,) scales of the entries; see `masked.py`.

        Raises:
            InvalidReplyError: a scale is too small.
        """
        start = time.perf_counter()
        vector = self._centre_sum(space) if task == "masked_centre" else sums_vector(self._sums(space))
        of_entries = entry_scales(task, scales, space.columns, self.settings.sends_scatter)
        entries = scaled(vector, of_entries, clip=self.releases is not None)
        return self._reply(task, 0, [], self._counts(), NOTHING_SENT, {}, start, space=space), entries

    def _centre_sum(self, space: PublicSpace) -> Tensor:
        """(R,) float64 sum of the rows of the clips in the class sums."""
        if self.releases is not None:
            return self.releases.centre(self._kept, space)
        return space.rows(self._kept.embeddings).double().sum(dim=0)

    def _sums(self, space: PublicSpace) -> ClassSums:
        """The sums of the classes with enough clips."""
        if self.releases is not None:
            return self.releases.sums(self._kept, space, len(self.classes))
        return ClassSums.of(space.rows(self._kept.embeddings), self._kept.labels, len(self.classes))

    @cached_property
    def _kept(self) -> LabelledClips:
        """The training clips of the classes with enough clips."""
        labels = self.data.train.labels
        kept = torch.isin(labels, labels.new_tensor([label for label, groups in self._groups.items() if groups]))
        return labelled_rows(self.data.train, kept.nonzero().flatten())

    def _counts(self) -> list[ClassStatistics]:
        """The classes with enough clips and their numbers of clips, without prototypes."""
        clips = {label: sum(map(len, groups)) for label, groups in self._groups.items()}
        return [ClassStatistics(self.classes[label], count) for label, count in clips.items() if count]

    def train(self, round_number: int, adapters: Adapters, stored_fingerprint: str) -> TrainReply:
        """Train the adapters on the site's clips.

        Args:
            round_number: number of the round, from 1.
            adapters: the global adapters; changed in place.
            stored_fingerprint: fingerprint of the site's prototypes that the server has stored; unchanged prototypes
                are not sent again.
        """
        start = time.perf_counter()
        task, settings = self.training_task(round_number, adapters), self.settings
        losses: dict[str, float] = {}
        if settings.site_trains:
            losses = train_epochs(
                adapters,
                task.audio,
                task.labels,
                self.training_loss(),
                task.epochs,
                site_optimiser(settings.site),
                task.random,
                settings.site.proximal,
                task.more_steps,
            )
        return self.trained(round_number, task, losses, stored_fingerprint, start)

    def training_task(self, round_number: int, adapters: Adapters) -> TrainingTask:
        """What the site trains on in a round, from these global adapters."""
        settings = self.settings
        return TrainingTask(
            adapters,
            adapters.mapped(self.data.train.embeddings.to(self.device)),
            self.data.train.labels.to(self.device),
            settings.site.epochs,
            torch_generator(settings.seed, "site", self.name, round_number),
            more_steps(settings.site, settings.finetune, round_number),
        )

    def training_loss(self) -> AdapterLoss:
        """The loss that the site trains its adapters with."""
        return adapter_loss(self.settings.loss, self.prompts, self.unseen)

    def trained(
        self, round_number: int, task: TrainingTask, losses: dict[str, float], stored_fingerprint: str, start: float
    ) -> TrainReply:
        """The reply after the training.

        Args:
            round_number: number of the round.
            task: what the site has trained on, with its trained adapters.
            losses: losses of the training, see `train_epochs`.
            stored_fingerprint: see `train`.
            start: time at which the work began, by `time.perf_counter`.
        """
        settings, adapters = self.settings, task.adapters
        # Sums that are in a total of secure aggregation are never sent again, even if the clips have changed.
        sums = self._sums(adapters.space) if adapters.space is not None and not settings.has_secure_sums else None
        # Without prototypes or sums: the server only needs them once, in the registration, to standardise.
        statistics = self._prototypes() if settings.needs_prototypes and not settings.shares_sums else self._counts()
        prototype_fingerprint = fingerprint(statistics) if sums is None else sums.fingerprint
        is_stored = prototype_fingerprint == stored_fingerprint
        outputs = mean_outputs(adapters, task.audio, task.labels) if settings.needs_outputs else {}
        sent = []
        for each in statistics:
            clip, t5 = outputs.get(self.classes.index(each.name), (None, None))
            sent.append(ClassStatistics(each.name, each.count, None if is_stored else each.audio, clip, t5))
        weights = adapters.weights() if settings.needs_weights else []
        space = adapters.space
        if is_stored or not sent:
            sums = None
        return self._reply(
            "train", round_number, weights, sent, prototype_fingerprint, losses, start, sums=sums, space=space
        )

    @torch.no_grad()
    def evaluate(
        self,
        adapters: Adapters,
        calibration: float = 0.0,
        confusion: bool = False,
        clips: LabelledClips | None = None,
        t5: bool = True,
        before: Tensor | None = None,
    ) -> Evaluated:
        """Retrieval of the right class prompt among all prompts, and the loss, on clips of the site.

        Args:
            adapters: the adapters to score.
            calibration: value subtracted from the scores of recorded classes; no effect if there are no unseen classes.
            confusion: also report the predicted classes.
            clips: the clips to score; None: the test clips.
            t5: also score the T5 side, if there is one; False if the T5 side of `adapters` belongs to another model.
            before: `right` of another model on the same clips; the scores then have the clips that differ.
        """
        clips = self.data.test if clips is None else clips
        loss = adapter_loss(self.settings.loss, self.prompts)
        numbers = sum(side[0].numel() for side in (self.prompts.clip, self.prompts.t5) if side is not None)
        chunks = torch.arange(len(clips)).split(max(1, min(EVALUATION_ROWS, LARGEST_OUTPUT // numbers)))
        audio, labels = clips.embeddings, clips.labels
        parts = [self._score(adapters, loss, audio[rows], labels[rows], calibration, t5) for rows in chunks]
        if not parts:
            return Evaluated(Scores({}), torch.zeros(0, dtype=torch.bool))
        of_clips = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        predicted, right = of_clips.pop("predicted"), of_clips["right_at_1"].bool()
        if before is not None:
            of_clips |= {"better": right & ~before, "worse": ~right & before}
        sums = {name: labels.bincount(each.double(), len(self.classes)).tolist() for name, each in of_clips.items()}
        scores = {}
        for label in labels.unique().tolist():
            real = {name: each[label] for name, each in sums.items()}
            number = {name: int(value) for name, value in real.items()}
            score = ClassScores(
                clips=int((labels == label).sum()),
                **{name: number[name] for name in COUNTS_OF_CLIPS if name in number},
                cosine=real["cosine"],
                loss=real["loss"],
                predicted=self._count_by_class(predicted[labels == label]) if confusion else {},
                t5=SideScores(right_at_1=number["t5_right"], cosine=real["t5_cosine"], loss=real["t5_loss"])
                if "t5_right" in real
                else None,
                changes=None if before is None else Changes(better=number["better"], worse=number["worse"]),
            )
            scores[self.classes[label]] = score if self.releases is None else score.counts_only()
        return Evaluated(Scores(scores), right)

    def _score(
        self, adapters: Adapters, loss: AdapterLoss, audio: Tensor, labels: Tensor, calibration: float, t5: bool
    ) -> dict[str, Tensor]:
        """What the scores add up, as (B,) tensors on the CPU, and the `predicted` labels, of clips.

        Args:
            adapters: the adapters to score.
            loss: their loss.
            audio: (B, S, Da) embeddings.
            labels: (B,).
            calibration: see `evaluate`.
            t5: see `evaluate`.
        """
        labels = labels.to(self.device)
        outputs = adapters(adapters.mapped(audio.to(self.device)))
        losses = loss.sides(outputs, labels)
        near = cosines(outputs.clip, self.prompts.clip)
        clip = ranked(near, labels)
        found = {
            "right_at_1": clip.hits(1),
            "right_at_5": clip.hits(5),
            "cosine": clip.similarity,
            "loss": torch.stack(list(losses.values())).mean(dim=0),
            "predicted": near.argmax(dim=1),
        }
        if t5 and self.prompts.t5 is not None:
            side = retrieval(outputs.t5, labels, self.prompts.t5)
            found |= {"t5_right": side.hits(1), "t5_cosine": side.similarity, "t5_loss": losses["t5"]}
        if self.unseen.any():
            among, calibrated = hits(near, labels, self.unseen, calibration)
            found |= {"right_among": among, "right_calibrated": calibrated}
        return {name: values.cpu() for name, values in found.items()}

    def _count_by_class(self, labels: Tensor) -> dict[str, int]:
        """Number of occurrences of each class in `labels`, without classes that do not occur."""
        counts = labels.bincount(minlength=len(self.classes)).tolist()
        return {name: count for name, count in zip(self.classes, counts, strict=True) if count}

    def new_adapters(self) -> Adapters:
        """Adapters with the shapes of the experiment, without values; the caller sets weights and public space."""
        width = self.data.train.embeddings.shape[-1]
        if self.settings.shares_sums:
            check_columns(self.settings.projection.columns, width)  # before memory is used
        return unloaded_adapters(self.settings, self.prompts, width)

    def _prototypes(self) -> list[ClassStatistics]:
        """The prototypes of every class with enough clips."""
        train, variance = self.data.train, self.settings.share.variance
        return [
            share_groups(self.classes[label], train.embeddings[train.labels == label], groups, variance)
            for label, groups in self._groups.items()
            if groups
        ]

    @cached_property
    def _groups(self) -> dict[int, list[Tensor]]:
        """For each label, the groups of the class's training clips (row numbers) whose embeddings are averaged."""
        share, train = self.settings.share, self.data.train
        kind = share.kind if self.settings.needs_prototypes and share.kind != "statistics" else "mean"
        return {
            label: clip_groups(train.embeddings[train.labels == label], kind, share.prototypes, share.min_clips)
            for label in train.labels.unique().tolist()
        }

    def averaged(self, task: Task | Literal["evaluate"]) -> Iterator[frozenset[str]]:
        """The sets of clips, by key, that the averages and sums in the reply to a task are taken over."""
        if task == "counts":
            return
        if task == "evaluate":
            for clips in (self.data.test, self.data.validation):
                yield from (_keys(clips, _rows(clips, label)) for label in clips.labels.unique().tolist())
            return
        train = self.data.train
        if self.settings.shares_sums:
            kept = self._kept
            if len(kept):  # the centre and the scatter
                yield frozenset(kept.keys)
            if task not in ("centre", "masked_centre"):
                yield from (_keys(kept, _rows(kept, label)) for label in kept.labels.unique().tolist())
            return
        for label, groups in self._groups.items():
            rows = _rows(train, label)
            yield _keys(train, rows)
            yield from (_keys(train, rows[group]) for group in groups)
        if not any(self._groups.values()):  # the site sends moments of all clips together
            yield frozenset(train.keys)

    def _reply(
        self,
        task: Task,
        round_number: int,
        weights: list[Tensor],
        statistics: list[ClassStatistics],
        prototype_fingerprint: str,
        losses: dict[str, float],
        start: float,
        moments: PooledMoments | None = None,
        sums: ClassSums | None = None,
        space: PublicSpace | None = None,
    ) -> TrainReply:
        return TrainReply(
            site=self.name,
            round_number=round_number,
            task=task,
            num_examples=len(self.data.train.labels),
            weights=weights,
            statistics=statistics,
            fingerprint=prototype_fingerprint,
            square_root=self.data.square_root,
            losses=losses,
            # With noise nothing else may depend on the clips, not even a time.
            seconds=time.perf_counter() - start if self.releases is None else 0.0,
            test_clips=self._count_by_class(self.data.test.labels),
            moments=moments,
            sums=sums,
            space=None if space is None else space.digest,
        )


def check_columns(columns: int, width: int) -> None:
    """Check that a public space of embeddings of this width can have so many columns.

    Raises:
        PolicyViolationError: it cannot.
    """
    if columns > width:
        raise PolicyViolationError(
            f"projection.columns={columns}, and the embeddings of this site have {width}; set at most {width}"
        )


def _rows(clips: LabelledClips, label: int) -> Tensor:
    """(n,) row numbers of the clips of one class."""
    return (clips.labels == label).nonzero().flatten()


def _keys(clips: LabelledClips, rows: Tensor) -> frozenset[str]:
    return frozenset(clips.keys[row] for row in rows.tolist())
