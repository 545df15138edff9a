"""Many small VAEs, one per class or per group of classes, trained together.

The server builds it for `generator.granularity=per_class` and `per_group`, which only the plain VAE supports. Each VAE
is a `ConditionedVAEGenerator` with its own rows, standardisation, priors, calibration, weights and optimiser state.
Only the training is shared (`stacked.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fed_a2v.core.generators.base import SAME_CLASS_COSINE, EpochLosses, Generator, as_rows
from fed_a2v.core.generators.parts.epoch_record import EpochRecord
from fed_a2v.core.generators.parts.moments import ROWS_PER_CLASS, ClassMoments
from fed_a2v.core.generators.stacked import GroupTask, train_together
from fed_a2v.core.generators.vae import ConditionedVAEGenerator
from fed_a2v.core.names import listed
from fed_a2v.core.seeding import seed_for, torch_generator
from fed_a2v.core.statistics import PrototypeBatch

log = logging.getLogger("fed_a2v")

# Users name the groups: an error lists most of them.
_listed = partial(listed, most=20)


def groups_for(
    granularity: Literal["unified", "per_class", "per_group"],
    classes: Sequence[str],
    groups: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, tuple[str, ...]] | None:
    """The classes of each generator by its key; None if one generator serves all.

    Args:
        granularity: `unified`: one generator; `per_class`: one for every class, with the class's name as key;
            `per_group`: one for every group.
        classes: all classes that may appear.
        groups: the classes of each group, by the group's name; only for `per_group`.

    Raises:
        ValueError: unknown granularity; groups missing, empty or not allowed; a class in no group or in two.
    """
    if granularity not in ("unified", "per_class", "per_group"):
        raise ValueError(f"granularity={granularity!r}: choose unified, per_class or per_group")
    if granularity != "per_group":
        if groups:
            raise ValueError(f"groups are given, but granularity={granularity}; set granularity=per_group")
        return None if granularity == "unified" else {name: (name,) for name in classes}
    if not groups:
        raise ValueError("granularity=per_group needs groups: {NAME: [CLASS, ...], ...}")
    _group_of_each(groups)
    grouped = {name for members in groups.values() for name in members}
    if missing := [name for name in classes if name not in grouped]:
        raise ValueError(f"in no group: {_listed(missing)}; put each class into one of {_listed(groups)}")
    return {key: tuple(members) for key, members in groups.items()}


class GroupedVAEGenerator(Generator):
    """One independent VAE for each group of classes; each is trained on the rows of its own group alone.

    A group gets its generator when the first of its classes appears; a `fit` without rows of a group leaves it
    unchanged. The other groups have no influence on the training of a group.

    Args:
        make: builds one generator; all must have the same shapes and settings, and share no weights. A
            custom loss is called through `torch.func.vmap`: it cannot branch on the values of tensors.
        groups: the classes of each generator, by its key; see `groups_for`.

    Raises:
        ValueError: a group is empty, a class is in two groups, or `make` builds another type than a plain VAE.
    """

    kind: ClassVar[str] = "vae"
    _on_device: Tensor

    def __init__(self, make: Callable[[], ConditionedVAEGenerator], groups: Mapping[str, Sequence[str]]) -> None:
        pattern = make()
        if not isinstance(pattern, ConditionedVAEGenerator) or pattern.kind != self.kind:
            raise ValueError(
                "granularity=per_class and granularity=per_group are for the plain VAE alone (generator=vae, "
                f"vae_closed_form or vae_per_class), not for {pattern.kind}; set granularity=unified"
            )
        super().__init__(pattern.input_dim, pattern.visual_dim, pattern.sequence_length)
        self._group_of = _group_of_each(groups)
        self._make = make
        self._dimensions = pattern.dimensions
        self._batch_size = pattern.batch_size
        self._members = nn.ModuleList()
        # For each key the position of its generator in `_members`, and the known classes of that generator.
        self._place: dict[str, int] = {}
        self._classes: dict[str, tuple[str, ...]] = {}
        self.register_buffer("_on_device", torch.empty(0), persistent=False)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all possible generators."""
        return tuple(sorted(set(self._group_of.values())))

    @property
    def dimensions(self) -> dict[str, int]:
        """The dimensions of every single generator."""
        return self._dimensions

    def member(self, key: str) -> ConditionedVAEGenerator:
        """The generator of the group `key`.

        Raises:
            KeyError: it does not exist; names the existing ones.
        """
        if key not in self._place:
            raise KeyError(f"no generator {key!r}; there are {_listed(sorted(self._place))}")
        member = self._members[self._place[key]]
        assert isinstance(member, ConditionedVAEGenerator)
        return member

    def fit(
        self, rows: PrototypeBatch, conditions: Tensor, epochs: int, noise: float, random: torch.Generator
    ) -> list[EpochLosses]:
        """See `Generator.fit`.

        Raises:
            ValueError: a class is in no group.
        """
        seed = int(torch.randint(2**62, (1,), generator=random, device=random.device))
        tasks = [
            self._training_rows(
                key, labels, rows, conditions, torch_generator(seed, "group", key, device=random.device)
            )
            for key, labels in self._labels_by_key(rows.names).items()
        ]
        records = [EpochRecord(rows.names, rows.embeddings.device) for _ in range(epochs)]
        for _, stage in groupby(sorted(tasks, key=lambda task: task.stage), lambda task: task.stage):
            train_together(list(stage), noise, records)
        for task in tasks:
            task.member.finish_fit(task.x, task.labels, task.random)
        return [record.losses() for record in records]

    def steps_per_epoch(self, rows: PrototypeBatch) -> float:
        """See `Generator.steps_per_epoch`: the minimum over the generators."""
        groups = self._labels_by_key(rows.names).values()
        labels = (torch.tensor(group, device=rows.labels.device) for group in groups)
        return min(ClassMoments.batches(_only(rows, group), self._batch_size) for group in labels)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        visual_condition: Tensor,
        device: torch.device | str | None = None,
        random: torch.Generator | None = None,
    ) -> Tensor:
        """See `Generator.sample`.

        Raises:
            ValueError: the condition is not that of a known class; names the nearest and all known classes.
            RuntimeError: no class is known yet.
        """
        random = random or torch.default_generator
        conditions, places = self._find(as_rows(visual_condition.to(self._on_device), num_samples, self.visual_dim))
        rows = conditions.new_empty(num_samples, self.sequence_length, self.input_dim)
        for key, place in sorted(self._place.items()):
            own = places == place
            if own.any():
                rows[own] = self.member(key).sample(int(own.sum()), conditions[own], None, random)
        return rows.to(device or rows.device)

    def posterior(self, x: Tensor, visual_condition: Tensor) -> tuple[Tensor, Tensor]:
        """See `Generator.posterior`: each embedding's latent is that of its own class's generator."""
        conditions = as_rows(visual_condition, len(x), self.visual_dim)
        latents = self._of_each(lambda member, own, rows: torch.cat(member.posterior(rows, own), dim=1), conditions, x)
        mu, logvar = latents.chunk(2, dim=1)
        return mu, logvar

    def log_likelihood(self, x: Tensor, conditions: Tensor, noise: Tensor, random: torch.Generator) -> Tensor:
        """See `Generator.log_likelihood`."""
        return self._of_each(lambda member, own, rows: member.log_likelihood(rows, own, noise, random), conditions, x)

    def reconstruct(self, x: Tensor, conditions: Tensor) -> Tensor:
        """See `Generator.reconstruct`."""
        return self._of_each(lambda member, own, rows: member.reconstruct(rows, own), conditions, x)

    def sample_raw(self, conditions: Tensor, random: torch.Generator) -> Tensor:
        """See `Generator.sample_raw`."""
        return self._of_each(lambda member, own: member.sample_raw(own, random), conditions)

    def _of_each(self, call: Callable[..., Tensor], conditions: Tensor, *parts: Tensor) -> Tensor:
        """The results of `call` with each row's own generator, its known (B, V) conditions and its rows of `parts`."""
        conditions, places = self._find(conditions)
        results = None
        for key, place in sorted(self._place.items()):
            own = places == place
            if own.any():
                result = call(self.member(key), conditions[own], *(part[own] for part in parts))
                results = result.new_empty(len(conditions), *result.shape[1:]) if results is None else results
                results[own] = result
        assert results is not None
        return results

    def move_to(self, device: torch.device) -> None:
        """See `Generator.move_to`."""
        for key in self._place:
            self.member(key).move_to(device)
        self.to(device)

    def checkpoint(self) -> dict[str, Any]:
        """See `Generator.checkpoint`: the checkpoints of all generators."""
        return {"generator_type": self.kind, "dimensions": self.dimensions, "members": self.checkpoints()}

    def load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `Generator.load_checkpoint`."""
        self.load_checkpoints(checkpoint["members"])

    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """The checkpoints of the single VAEs by key, with the `key`, its `classes`, and all keys of the `family`."""
        family = sorted(self._place)
        return {
            key: self.member(key).checkpoint() | {"key": key, "classes": list(self._classes[key]), "family": family}
            for key in family
        }

    def load_checkpoints(self, checkpoints: Mapping[str, dict[str, Any]]) -> None:
        """Load the result of `checkpoints`; all present generators are dropped.

        Raises:
            ValueError: a key is not that of a group, or a class is not in the group.
        """
        for key, checkpoint in checkpoints.items():
            if key not in self.keys:
                raise ValueError(f"the checkpoint of {key!r} belongs to no group; the groups are {_listed(self.keys)}")
            for name in checkpoint["classes"]:
                if self._group_of.get(name) != key:
                    raise ValueError(f"the checkpoint of {key!r} has class {name!r}, which is not in that group")
        self._members, self._place, self._classes = nn.ModuleList(), {}, {}
        for key, checkpoint in sorted(checkpoints.items()):
            self._allocate(key, seed=0).load_checkpoint(checkpoint)
            self._classes[key] = tuple(checkpoint["classes"])

    def _labels_by_key(self, names: Sequence[str]) -> dict[str, list[int]]:
        """The labels of each group's classes, by key in sorted order."""
        labels: dict[str, list[int]] = {}
        for label, name in enumerate(names):
            if name not in self._group_of:
                raise ValueError(f"class {name!r} is in no group; the groups are {_listed(self.keys)}")
            labels.setdefault(self._group_of[name], []).append(label)
        return dict(sorted(labels.items()))

    def _allocate(self, key: str, seed: int) -> ConditionedVAEGenerator:
        """A new generator under `key`, with weights that depend on the seed and the key."""
        with torch.random.fork_rng():
            torch.manual_seed(seed_for(seed, "weights", key))
            made = self._make().to(self._on_device.device)
        self._place[key] = len(self._members)
        self._members.append(made)
        return made

    def _training_rows(
        self, key: str, labels: list[int], rows: PrototypeBatch, conditions: Tensor, random: torch.Generator
    ) -> GroupTask:
        if key not in self._place:
            self._allocate(key, random.initial_seed())
        member = self.member(key)
        self._classes[key] = tuple(rows.names[label] for label in labels)
        numbers = torch.tensor(labels, device=rows.labels.device)
        x, local = member.training_rows(_only(rows, numbers), conditions[numbers], random)
        if not member.moments.std.any():
            log.warning("The spread of %s is unknown: its generator repeats the mean; share more prototypes", key)
        # Filled up to a multiple: groups of different size then have few different numbers of rows, and train together.
        extra = torch.arange(-len(x) % ROWS_PER_CLASS, device=x.device) % len(labels)
        sampled = member.moments.mean[extra] + member.moments.residuals(extra, 1.0, random)
        x, local = torch.cat([x, member.standardise(sampled)]), torch.cat([local, extra])
        return GroupTask(member, x, local, numbers[local], random)

    def _find(self, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """The known condition that each of (B, V) stands for, (B, V), and the (B,) positions of their generators."""
        if not self._place:
            raise RuntimeError("the generator has no class yet: call fit, or load a checkpoint")
        keys = sorted(self._place)
        names = [name for key in keys for name in self._classes[key]]
        known = torch.cat([self.member(key).conditions for key in keys])
        owner = torch.tensor([self._place[key] for key in keys for _ in self._classes[key]], device=known.device)
        distinct, inverse = conditions.unique(dim=0, return_inverse=True)
        # Text vectors are close to each other: directions are relative to their mean.
        centre = known.mean(dim=0) if len(known) > 1 else torch.zeros_like(known[0])
        cosines = F.normalize(distinct - centre, dim=-1) @ F.normalize(known - centre, dim=-1).T
        cosine, nearest = cosines.max(dim=1)
        if (cosine < SAME_CLASS_COSINE).any():
            worst = int(cosine.argmin())
            raise ValueError(
                f"visual_condition is not that of a known class (nearest: {names[int(nearest[worst])]!r}, cosine "
                f"{cosine[worst]:.2f}; at least {SAME_CLASS_COSINE} is needed); known: {_listed(names)}"
            )
        return known[nearest[inverse]], owner[nearest[inverse]]


def _group_of_each(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The group of each class, by the class's name."""
    group_of: dict[str, str] = {}
    for key, names in groups.items():
        if not names:
            raise ValueError(f"group {key!r} is empty; name its classes")
        for name in names:
            if name in group_of:
                raise ValueError(f"class {name!r} is in group {group_of[name]!r} and again in group {key!r}")
            group_of[name] = key
    return group_of


def _only(rows: PrototypeBatch, labels: Tensor) -> PrototypeBatch:
    """The rows of some classes, as a batch of these classes alone."""
    local = torch.full((len(rows.names),), -1, device=labels.device)
    local[labels] = torch.arange(len(labels), device=labels.device)
    kept = rows.index_select(local[rows.labels] >= 0)
    names = tuple(rows.names[label] for label in labels.tolist())
    return PrototypeBatch(kept.embeddings, local[kept.labels], kept.counts, kept.variances, names)
