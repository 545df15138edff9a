"""Many small VAEs, one per class or per group of classes, trained together.

Each is a `ConditionedVAEGenerator` with its own rows, standardisation, priors, calibration, weights and optimiser
state. Only the training is shared: the weights are stacked, and one batched product per layer takes the place
of one product per generator (`torch.func`). AdamW works element by element, so one optimiser over the stack
equals one for each generator.

Shapes: G generators, N rows of each, D = S x Da.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from fed_a2v.core.generators.base import SAME_CLASS_COSINE, EpochLosses, Generator, as_rows
from fed_a2v.core.generators.parts.moments import ROWS_PER_CLASS, ClassMoments
from fed_a2v.core.generators.vae import ConditionedVAEGenerator, EpochRecord, TrainingRows
from fed_a2v.core.losses import VAELossParts, loss_value
from fed_a2v.core.names import listed
from fed_a2v.core.optimisers import AdamW
from fed_a2v.core.prototype_bank import PrototypeBatch
from fed_a2v.core.seeding import seed_for, torch_generator

log = logging.getLogger("fed_a2v")

# Where a VAE keeps the running average of a weight, and what AdamW keeps of each.
AVERAGE = "averaged.networks."
ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")

# The groups are the user's own: an error names most of them.
_listed = partial(listed, most=20)


def groups_for(
    granularity: Literal["unified", "per_class", "per_group"],
    classes: Sequence[str],
    groups: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, tuple[str, ...]] | None:
    """The classes of each generator by its key; None where one generator serves all.

    Args:
        granularity: `unified`: one generator; `per_class`: one for every class, under the class's name;
            `per_group`: one for every group.
        classes: all classes that may come.
        groups: the classes of each group, by the group's name; only for `per_group`.

    Raises:
        ValueError: unknown granularity; groups missing, empty or out of place; a class in no group or in two.
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
    """One independent VAE for each group of classes; each sees the rows of its own group alone.

    A group gets its generator when the first of its classes appears. Groups that are absent from a later `fit`
    keep theirs as it is. What a group learns does not depend on which other groups there are.

    Args:
        make: builds one generator; all must have the same shapes and settings, and share no weights. A loss of
            the user's own is called through `torch.func.vmap`: it cannot branch on the values of tensors.
        groups: the classes of each generator, by its key; see `groups_for`.

    Raises:
        ValueError: a group is empty, or a class is in two groups.
    """

    kind: ClassVar[str] = "vae"
    _on_device: Tensor

    def __init__(self, make: Callable[[], ConditionedVAEGenerator], groups: Mapping[str, Sequence[str]]) -> None:
        pattern = make()
        if not isinstance(pattern, ConditionedVAEGenerator) or pattern.kind != self.kind:
            raise ValueError(f"generators of a class or a group are plain VAEs; a {pattern.kind} can only be unified")
        super().__init__(pattern.input_dim, pattern.visual_dim, pattern.sequence_length)
        self._group_of = _group_of_each(groups)
        self._make = make
        self._dimensions = pattern.dimensions
        self._batch_size = pattern.batch_size
        self._members = nn.ModuleList()
        # The place of each key's generator in `_members`, and the classes that it knows.
        self._place: dict[str, int] = {}
        self._classes: dict[str, tuple[str, ...]] = {}
        self.register_buffer("_on_device", torch.empty(0), persistent=False)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all generators that there may be."""
        return tuple(sorted(set(self._group_of.values())))

    @property
    def dimensions(self) -> dict[str, int]:
        """Those of every single generator."""
        return self._dimensions

    def member(self, key: str) -> ConditionedVAEGenerator:
        """The generator of the group `key`.

        Raises:
            KeyError: there is none; names those that there are.
        """
        if key not in self._place:
            raise KeyError(f"no generator {key!r}; there are {_listed(sorted(self._place))}")
        found = self._members[self._place[key]]
        assert isinstance(found, ConditionedVAEGenerator)
        return found

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
        for _, together in groupby(sorted(tasks, key=lambda task: task.stage), lambda task: task.stage):
            _train_together(list(together), noise, records)
        for task in tasks:
            task.member.fit_prior(task.x, task.labels, task.random)
        return [record.losses() for record in records]

    def steps_per_epoch(self, rows: PrototypeBatch) -> float:
        """See `Generator.steps_per_epoch`: of the generator that takes the fewest."""
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
            ValueError: the condition is no known class's; names the nearest and what is known.
            RuntimeError: nothing is known yet.
        """
        random = random or torch.default_generator
        conditions, site_of_clip = self._find(
            as_rows(visual_condition.to(self._on_device), num_samples, self.visual_dim)
        )
        rows = conditions.new_empty(num_samples, self.sequence_length, self.input_dim)
        for key, place in sorted(self._place.items()):
            wanted = site_of_clip == place
            if wanted.any():
                rows[wanted] = self.member(key).sample(int(wanted.sum()), conditions[wanted], None, random)
        return rows.to(device or rows.device)

    def posterior(self, x: Tensor, visual_condition: Tensor) -> tuple[Tensor, Tensor]:
        """See `Generator.posterior`: each embedding's latent is that of its own class's generator."""
        conditions = as_rows(visual_condition, len(x), self.visual_dim)
        both = self._of_each(lambda member, own, rows: torch.cat(member.posterior(rows, own), dim=1), conditions, x)
        mu, logvar = both.chunk(2, dim=1)
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
        """What each row's own generator says of (B, V) conditions that are known, and of the same rows of `parts`."""
        conditions, site_of_clip = self._find(conditions)
        found = None
        for key, place in sorted(self._place.items()):
            of = site_of_clip == place
            if of.any():
                said = call(self.member(key), conditions[of], *(part[of] for part in parts))
                found = said.new_empty(len(conditions), *said.shape[1:]) if found is None else found
                found[of] = said
        assert found is not None
        return found

    def move_to(self, device: torch.device) -> None:
        """See `Generator.move_to`."""
        for key in self._place:
            self.member(key).move_to(device)
        self.to(device)

    def checkpoint(self) -> dict[str, Any]:
        """See `Generator.checkpoint`: those of all generators."""
        return {"generator_type": self.kind, "dimensions": self.dimensions, "members": self.checkpoints()}

    def load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `Generator.load_checkpoint`."""
        self.load_checkpoints(checkpoint["members"])

    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """Those of single VAEs by key, with the `key`, its `classes`, and all keys of the `family`."""
        family = sorted(self._place)
        return {
            key: self.member(key).checkpoint() | {"key": key, "classes": list(self._classes[key]), "family": family}
            for key in family
        }

    def load_checkpoints(self, checkpoints: Mapping[str, dict[str, Any]]) -> None:
        """Take over what `checkpoints` returned; the generators that there were are dropped.

        Raises:
            ValueError: a key is no group's, or its classes are not those of the group.
        """
        for key, checkpoint in checkpoints.items():
            if key not in self.keys:
                raise ValueError(f"the checkpoint of {key!r} belongs to no group; the groups are {_listed(self.keys)}")
            for name in checkpoint["classes"]:
                if self._group_of.get(name) != key:
                    raise ValueError(f"the checkpoint of {key!r} holds class {name!r}, which is not in that group")
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
    ) -> _Task:
        if key not in self._place:
            self._allocate(key, random.initial_seed())
        member = self.member(key)
        self._classes[key] = tuple(rows.names[label] for label in labels)
        numbers = torch.tensor(labels, device=rows.labels.device)
        x, local = member.training_rows(_only(rows, numbers), conditions[numbers], random)
        if not member.moments.std.any():
            log.warning("Nothing tells the spread of %s: its generator repeats the mean; share more prototypes", key)
        # Filled up to a multiple, so that generators of groups of different size come in few sizes.
        extra = torch.arange(-len(x) % ROWS_PER_CLASS, device=x.device) % len(labels)
        drawn = member.moments.mean[extra] + member.moments.residuals(extra, 1.0, random)
        x, local = torch.cat([x, member.standardise(drawn)]), torch.cat([local, extra])
        return _Task(member, x, local, numbers[local], random)

    def _find(self, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """For (B, V) conditions the (B, V) known ones that they stand for, and the (B,) places of their generators."""
        if not self._place:
            raise RuntimeError("the generator has seen no class yet: call fit, or load a checkpoint")
        keys = sorted(self._place)
        names = [name for key in keys for name in self._classes[key]]
        known = torch.cat([self.member(key).conditions for key in keys])
        owner = torch.tensor([self._place[key] for key in keys for _ in self._classes[key]], device=known.device)
        distinct, inverse = conditions.unique(dim=0, return_inverse=True)
        # Text vectors crowd together: directions count from their centre.
        centre = known.mean(dim=0) if len(known) > 1 else torch.zeros_like(known[0])
        cosines = F.normalize(distinct - centre, dim=-1) @ F.normalize(known - centre, dim=-1).T
        cosine, nearest = cosines.max(dim=1)
        if (cosine < SAME_CLASS_COSINE).any():
            worst = int(cosine.argmin())
            raise ValueError(
                f"visual_condition is that of no known class (nearest: {names[int(nearest[worst])]!r}, cosine "
                f"{cosine[worst]:.2f}; {SAME_CLASS_COSINE} is needed); known: {_listed(names)}"
            )
        return known[nearest[inverse]], owner[nearest[inverse]]


@dataclass(frozen=True)
class _Task:
    """What one generator learns from: (N, D) rows, their (N,) labels in the group and among all, its random numbers."""

    member: ConditionedVAEGenerator
    x: Tensor
    labels: Tensor
    all_labels: Tensor
    random: torch.Generator

    @property
    def stage(self) -> tuple[int, int, float]:
        """Generators can train together where all of this is equal: rows, epochs behind them, and steps."""
        steps = next((float(state["step"]) for state in self.member.get_optimiser().state.values()), 0.0)
        return len(self.x), self.member.epoch, steps


class _BatchLoss(nn.Module):
    """The loss of a generator's batch as a module, into which `functional_call` puts any weights."""

    def __init__(self, generator: ConditionedVAEGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, *parts: Tensor) -> Tensor | VAELossParts:
        *rows, latent_noise = parts
        return self.generator.batch_loss(TrainingRows(*rows), latent_noise)


class _Stack:
    """The weights, the linear part and the optimiser of G generators, as one tensor (G, ...) each.

    Matrices lie transposed in memory: batched products and their gradients then need no copies.
    """

    def __init__(self, members: Sequence[ConditionedVAEGenerator]) -> None:
        self.members = members
        first = members[0]
        all_names = dict(first.named_parameters())
        trained = [name for name, parameter in all_names.items() if parameter.requires_grad]
        self.weights = {name: self._gather(name).requires_grad_() for name in trained}
        fixed = [
            name for name, _ in first.named_buffers() if name in ("linear.loadings", "linear.rest", "linear.loudness")
        ]
        self.fixed = {name: torch.stack([member.get_buffer(name) for member in members]) for name in fixed}
        self.averages = {name: self._gather(AVERAGE + name) for name in trained if AVERAGE + name in all_names}
        self.optimiser = AdamW(
            self.weights.values(), lr=first.learning_rate, weight_decay=first.weight_decay, fused=True
        )
        for name, weight in self.weights.items():
            states = [member.get_optimiser().state[member.get_parameter(name)] for member in members]
            if states[0]:
                moments = {part: _stacked(state[part] for state in states) for part in ADAM_MOMENTS}
                self.optimiser.state[weight] = {"step": states[0]["step"].clone(), **moments}

    def losses(self, loss: _BatchLoss, *batch: Tensor) -> Tensor | VAELossParts:
        """The loss of each generator on its own part of `batch`, (G, ...) each."""

        def own_loss(weights: dict[str, Tensor], fixed: dict[str, Tensor], *part: Tensor) -> Tensor | VAELossParts:
            own = {f"generator.{name}": _turned(weight) for name, weight in weights.items()}
            own |= {f"generator.{name}": buffer for name, buffer in fixed.items()}
            result: Tensor | VAELossParts = functional_call(loss, own, part)
            return result

        together: Tensor | VAELossParts = vmap(own_loss)(self.weights, self.fixed, *batch)
        return together

    def step(self, loss: Tensor | VAELossParts) -> None:
        """One optimiser step of every generator, on its own loss."""
        self.optimiser.zero_grad(set_to_none=True)
        loss_value(loss).sum().backward()
        self.optimiser.step()
        averaged = self.members[0].averaged
        if averaged is not None:
            with torch.no_grad():
                for name, average in self.averages.items():
                    average.lerp_(self.weights[name], 1 - averaged.decay)

    @torch.no_grad()
    def hand_back(self) -> None:
        """Give every generator its weights and its optimiser's state."""
        for number, member in enumerate(self.members):
            optimiser = member.get_optimiser()
            for name, weight in self.weights.items():
                parameter = member.get_parameter(name)
                parameter.copy_(_turned(weight[number]))
                if state := self.optimiser.state[weight]:
                    moments = {part: torch.empty_like(parameter) for part in ADAM_MOMENTS}
                    for part, moment in moments.items():
                        moment.copy_(_turned(state[part][number]))
                    optimiser.state[parameter] = {"step": state["step"].clone(), **moments}
            for name, average in self.averages.items():
                member.get_parameter(AVERAGE + name).copy_(_turned(average[number]))

    def _gather(self, name: str) -> Tensor:
        return _stacked(member.get_parameter(name) for member in self.members)


def _train_together(tasks: Sequence[_Task], noise: float, records: Sequence[EpochRecord]) -> None:
    """Train the tasks' generators, all at the same stage, for an epoch for each of `records`."""
    members = [task.member for task in tasks]
    randoms = [task.random for task in tasks]
    parts = [task.member.prepare(task.x, task.labels) for task in tasks]
    together = TrainingRows(*(torch.stack(part) for part in zip(*parts, strict=True)))
    labels = torch.stack([task.all_labels for task in tasks])
    each = torch.arange(len(tasks), device=labels.device).unsqueeze(1)
    first = members[0]
    if first.condition_map is None:
        together = together._replace(directions=together.directions[..., :0])  # not looked at
    for member in members:
        member.train()
    stack, batch_loss = _Stack(members), _BatchLoss(first)
    for record in records:
        orders = [torch.randperm(labels.shape[1], generator=random, device=random.device) for random in randoms]
        for batch in torch.stack(orders).to(labels.device).split(first.batch_size, dim=1):
            rows = TrainingRows(*(part[each, batch] for part in together))
            if noise > 0:
                rows = rows._replace(seen=rows.seen + noise * _normal(rows.seen.shape[1:], rows.seen, randoms))
            latent_noise = _normal((batch.shape[1], first.latent_dim), rows.clean, randoms)
            loss = stack.losses(batch_loss, *rows, latent_noise)
            stack.step(loss)
            record.add(loss, labels[each, batch])
        for member in members:
            member.epoch += 1
    stack.hand_back()
    for member in members:
        member.eval()


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
    """The rows of some classes, as if there were no others."""
    local = torch.full((len(rows.names),), -1, device=labels.device)
    local[labels] = torch.arange(len(labels), device=labels.device)
    kept = rows.index_select(local[rows.labels] >= 0)
    names = tuple(rows.names[label] for label in labels.tolist())
    return PrototypeBatch(kept.embeddings, local[kept.labels], kept.counts, kept.variances, names)


def _stacked(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([_turned(tensor.detach()) for tensor in tensors])


def _turned(tensor: Tensor) -> Tensor:
    """A matrix transposed, anything else as it is."""
    return tensor.T if tensor.dim() == 2 else tensor


def _normal(shape: tuple[int, ...], like: Tensor, randoms: Sequence[torch.Generator]) -> Tensor:
    """(G, ...) normal numbers, each part drawn from its own generator's source."""
    out = torch.empty(len(randoms), *shape, dtype=like.dtype, device=randoms[0].device)
    for part, random in zip(out, randoms, strict=True):
        part.normal_(generator=random)
    return out.to(like.device)
