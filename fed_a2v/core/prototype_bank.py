"""The bank in which the server stores the sites' statistics of each class between rounds.

The server step fills it and trains on its prototypes.

Shapes: S audio tokens of width Da; K prototypes. Classes are keyed by name and sites by name, never by index: two sites
may number their classes differently.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fed_a2v.core.contradiction import ENOUGH_SITES, contradicted_classes
from fed_a2v.core.statistics import AudioPrototypes, ClassStatistics, PrototypeBatch, held_out_number, spaced
from fed_a2v.core.weight_cap import cap_client_weights


@dataclass(slots=True)  # there may be hundreds of thousands
class _Entry:
    """A site's statistics of a class.

    Attributes:
        statistics: the statistics.
        last_heard: round of the reply.
        held_out: which of the prototypes are held out of training; None: not decided yet.
    """

    statistics: ClassStatistics
    last_heard: int
    held_out: list[bool] | None = None


class _Prototypes(NamedTuple):
    """A site's prototypes of a class, with the (K,) float32 clips of each and the (K,) mask of those held out."""

    name: str
    audio: AudioPrototypes
    counts: Tensor
    held_out: Tensor


@dataclass
class PrototypeBank:
    """The statistics of all sites, by site and class, over all rounds.

    A site that sends nothing for some rounds still counts; `expire` drops it after a maximum age.

    Attributes:
        entries: by site, then class name.
        fingerprints: by site, of the prototypes that it sent last.
        half_precision: store tensors as float16, in half the memory, if all their values fit. Tensors that are sent
            in float16 lose nothing.
        max_site_share: largest share of the clips, of all and of a class, that one site counts for; see `clips`.
        contradicted: (site, class) pairs that everything computed from the bank ignores; see `contradict`.
    """

    entries: dict[str, dict[str, _Entry]] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    half_precision: bool = False
    max_site_share: float = 1.0
    contradicted: frozenset[tuple[str, str]] = frozenset()

    def update(self, site: str, classes: Iterable[ClassStatistics], fingerprint: str, round_number: int) -> None:
        """Store one site's reply, which replaces the site's earlier ones.

        A class without prototypes keeps its stored ones if the fingerprint is the same. There may be none, for settings
        that do not use prototypes.
        """
        before = self.entries.get(site, {})
        known = before if self.fingerprints.get(site) == fingerprint else {}
        entries: dict[str, _Entry] = {}
        sent_classes = list(classes)
        for sent, audio in zip(sent_classes, self._stored([each.audio for each in sent_classes]), strict=True):
            statistics, name = sent, sent.name
            held_out: list[bool] | None = None
            if audio is not None:
                held_out = _previous_hold_out(before.get(name), audio, name in known)
            elif name in known:
                audio, held_out = known[name].statistics.audio, known[name].held_out
            clip, t5 = (
                _halved(output) if output is not None and self.half_precision else output
                for output in (statistics.clip, statistics.t5)
            )
            if audio is not statistics.audio or clip is not statistics.clip or t5 is not statistics.t5:
                statistics = replace(statistics, audio=audio, clip=clip, t5=t5)
            entries[name] = _Entry(statistics, round_number, held_out)
        self.entries[site] = entries
        self.fingerprints[site] = fingerprint

    def _stored(self, sent: Sequence[AudioPrototypes | None]) -> list[AudioPrototypes | None]:
        """Prototypes of a site as they are stored, see `_in_blocks`."""
        tensors = _parts(sent)
        if self.half_precision:
            tensors = [_halved(tensor) if tensor.is_floating_point() else tensor for tensor in tensors]
        stored = _out_of_blocks(_in_blocks(tensors), map(_layout, tensors))
        return _assembled(stored, [audio is not None for audio in sent])

    def expire(self, round_number: int, max_age: int) -> list[str]:
        """Drop the sites without a reply for more than `max_age` rounds (0: keep all); return their names."""
        if max_age == 0:
            return []
        stale = [
            site
            for site, classes in self.entries.items()
            if classes and all(round_number - entry.last_heard > max_age for entry in classes.values())
        ]
        for site in stale:
            del self.entries[site], self.fingerprints[site]
        return stale

    def hold_out(self, share: float, most: int = 0) -> None:
        """Decide which of the prototypes that arrived since the last call are held out of training.

        A decision is valid as long as the site's prototypes of the class do not change: a prototype that was trained on
        is never held out later, nor the reverse. The exception is a class of which all prototypes are held out because
        other sites have left: then they are used for training. The decision depends on the sites' names and on earlier
        rounds, not on the order of the replies of a round.

        Args:
            share: see `held_out_number`; rows are counted over all sites, including forgotten prototypes.
            most: held-out prototypes of a class at most; 0: no limit.
        """
        entries = [
            (site, name, self.entries[site][name]) for site in sorted(self.entries) for name in self.entries[site]
        ]
        rows, held = Counter[str](), Counter[str]()
        for _, name, entry in entries:
            if entry.held_out is not None:
                rows[name] += len(entry.held_out)
                held[name] += sum(entry.held_out)
        for site, name, entry in entries:
            if entry.held_out is None and entry.statistics.audio is not None and (site, name) not in self.contradicted:
                own = len(entry.statistics.audio.counts)
                rows[name] += own
                target = held_out_number(rows[name], share)
                missing = min(own, max(0, (min(target, most) if most else target) - held[name]))
                places = spaced(own, missing)
                entry.held_out = [place in places for place in range(own)]
                held[name] += missing
        # A class must not be without training rows.
        for _, name, entry in entries:
            if held[name] == rows[name] and entry.held_out and entry.statistics.audio is not None:
                held[name] -= sum(entry.held_out)
                entry.held_out = [False] * len(entry.held_out)

    def contradict(self) -> None:
        """Find the pairs to ignore, see `contradicted_classes`."""
        self.contradicted = contradicted_classes(self)

    def forget_prototypes(self) -> None:
        """Drop all prototypes, but keep the fingerprints and all else, so that sites do not send them again."""
        for classes in self.entries.values():
            for entry in classes.values():
                entry.statistics = replace(entry.statistics, audio=None)

    def __iter__(self) -> Iterator[tuple[str, ClassStatistics]]:
        """Every (site, statistics of a class) pair, sites and classes in sorted order."""
        for site in sorted(self.entries):
            for name in sorted(self.entries[site]):
                yield site, self.entries[site][name].statistics

    def counts(self) -> dict[str, int]:
        """Clips per class over all sites, by name in sorted order."""
        totals: dict[str, int] = {}
        for _, statistics in self:
            totals[statistics.name] = totals.get(statistics.name, 0) + statistics.count
        return dict(sorted(totals.items()))

    def clips(self) -> dict[tuple[str, str], float]:
        """Clips by site and class after the cap on sites, which are the weights of the class statistics.

        No site counts for more than `max_site_share` of all clips, nor of a class's clips if several sites have the
        class, so that a site cannot dominate the result with a false count. Contradicted pairs are not included.
        """
        trusted = [(site, each) for site, each in self if (site, each.name) not in self.contradicted]
        total: dict[str, int] = {}
        for site, each in trusted:
            total[site] = total.get(site, 0) + each.count
        capped = dict(zip(total, cap_client_weights(list(total.values()), self.max_site_share), strict=True))
        of_class: dict[str, dict[str, float]] = {}
        for site, each in trusted:
            of_class.setdefault(each.name, {})[site] = each.count * capped[site] / total[site]
        return {
            (site, name): count
            for name, sites in of_class.items()
            for site, count in zip(sites, cap_client_weights(list(sites.values()), self.max_site_share), strict=True)
        }

    def capped(self) -> dict[str, list[str]]:
        """By site, the classes that count for fewer clips than the site reports; see `clips`."""
        clips = self.clips()
        capped: dict[str, list[str]] = {}
        for site, each in self:
            if clips.get((site, each.name), math.inf) < each.count * (1 - 1e-9):  # more than rounding
                capped.setdefault(site, []).append(each.name)
        return capped

    def moments(self) -> tuple[Tensor, Tensor] | None:
        """Mean and variance (Da,) of the clips of all prototypes, in double precision; None without prototypes.

        By the law of total variance, they follow from the prototypes' means, counts and variances. All tokens have the
        same weight. Held-out prototypes are included, as the result has no information on single classes. The sum is
        over sites and classes one by one, so that only one's prototypes are in double precision at a time.
        """
        parts = [(each.audio, each.counts.double()) for each in self._prototypes()]
        if not parts:
            return None
        clips = sum(float(counts.sum()) for _, counts in parts)
        mean = variance = torch.zeros((), dtype=torch.float64)
        for audio, counts in parts:
            mean = mean + counts @ audio.means.double().mean(dim=1) / clips
        for audio, counts in parts:
            spread = audio.variances.double() + (audio.means.double() - mean).square()
            variance = variance + counts @ spread.mean(dim=1) / clips
        return mean, variance

    def _prototypes(self) -> list[_Prototypes]:
        """All prototypes, ordered by class, then site."""
        clips = self.clips()
        entries = [
            (name, site, entry)
            for site, classes in self.entries.items()
            for name, entry in classes.items()
            if entry.statistics.audio is not None and (site, name) not in self.contradicted
        ]
        prototypes = []
        for name, site, entry in sorted(entries, key=lambda item: item[:2]):
            audio = entry.statistics.audio
            assert audio is not None
            counts = audio.counts.float() * (clips[site, name] / entry.statistics.count)
            held = entry.held_out or [False] * len(counts)
            prototypes.append(_Prototypes(name, audio, counts, torch.tensor(held)))
        return prototypes

    def rows(self) -> PrototypeBatch | None:
        """All prototypes as rows, ordered by class, then site; None if there are none."""
        return self._rows(lambda held_out: [torch.arange(len(mask)) for mask in held_out])

    def training_rows(self, per_class: int = 0, random: torch.Generator | None = None) -> PrototypeBatch | None:
        """`rows` without the held-out ones; `names` are the classes of all rows.

        If at least three sites have a class, none has more than `max_site_share` of its rows: the rows of the others
        are repeated, each time with a part of their clips.

        Args:
            per_class: rows of a class at most, sampled with `random` if there are more; 0: all. Repetitions for
                `max_site_share` at most double it.
            random: source of the sampling.
        """

        def select(held_out: Sequence[Tensor]) -> list[Tensor]:
            kept = [torch.nonzero(~mask).flatten() for mask in held_out]
            numbers = [len(places) for places in kept if len(places)]
            shares = cap_client_weights(numbers, self.max_site_share) if len(numbers) >= ENOUGH_SITES else numbers
            if shares == numbers:
                return _subsample(kept, per_class, random)
            # Rows that each site may have after the cap.
            allowed = [min(len(each), max(shares)) for each in kept]
            if 0 < per_class < sum(numbers):
                part = per_class / sum(shares)
                kept = [
                    _subsample([each], math.ceil(part * number), random)[0]
                    for each, number in zip(kept, allowed, strict=True)
                ]
            # Repeat the others' rows instead of dropping the capped site's, so that no row is lost.
            unit = max(map(len, kept)) / max(shares)
            return [
                each.repeat(math.ceil(unit * number / max(1, len(each))))
                for each, number in zip(kept, allowed, strict=True)
            ]

        return self._rows(select)

    def held_out_rows(self) -> PrototypeBatch | None:
        """The rows that `hold_out` holds out of training; `names` are those of `training_rows`."""
        return self._rows(lambda held_out: [torch.nonzero(mask).flatten() for mask in held_out])

    def _rows(self, select: Callable[[Sequence[Tensor]], list[Tensor]]) -> PrototypeBatch | None:
        """The prototypes that `select` returns for each class.

        Args:
            select: from the held-out masks of the sites that have a class to the indices of their rows. An index may be
                repeated; its clips are divided among the repetitions.
        """
        prototypes = self._prototypes()
        if not prototypes:
            return None
        by_class = [list(of_class) for _, of_class in groupby(prototypes, key=lambda each: each.name)]
        names = tuple(of_class[0].name for of_class in by_class)
        kept = [places for of_class in by_class for places in select([each.held_out for each in of_class])]
        times = [places.bincount(minlength=1)[places] for places in kept]
        labels = torch.arange(len(names)).repeat_interleave(torch.tensor([len(of_class) for of_class in by_class]))
        return PrototypeBatch(
            embeddings=torch.cat([each.audio.means[rows] for each, rows in zip(prototypes, kept, strict=True)]).float(),
            labels=labels.repeat_interleave(torch.tensor([len(rows) for rows in kept])),
            counts=torch.cat(
                [each.counts[rows] / number for each, rows, number in zip(prototypes, kept, times, strict=True)]
            ),
            variances=torch.cat(
                [each.audio.variances[rows] for each, rows in zip(prototypes, kept, strict=True)]
            ).float(),
            names=names,
        )

    def mean_outputs(self, kind: str, names: Sequence[str]) -> list[Tensor | None]:
        """The sites' mean adapter outputs of each class, averaged by `clips`.

        Args:
            kind: "clip" or "t5".
            names: names of classes.

        Returns:
            A (tokens, width) tensor for each name, or None if no site has sent one.
        """
        clips = self.clips()
        sums: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        for site, each in self:
            output = getattr(each, kind)
            if output is not None and (site, each.name) not in self.contradicted:
                count = clips[site, each.name]
                sums[each.name] = sums.get(each.name, 0) + output.float() * count
                weights[each.name] = weights.get(each.name, 0) + count
        return [sums[name] / weights[name] if name in sums else None for name in names]

    def state_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and tensors, for `torch.save` with safe loading; prototypes as in `_in_blocks`."""
        sites = {}
        for site, entries in self.entries.items():
            audios = [entry.statistics.audio for entry in entries.values()]
            classes = {
                name: {
                    "count": entry.statistics.count,
                    "audio": None if audio is None else list(map(_layout, _parts([audio]))),
                    "clip": entry.statistics.clip,
                    "t5": entry.statistics.t5,
                    "last_heard": entry.last_heard,
                    "held_out": entry.held_out,
                }
                for (name, entry), audio in zip(entries.items(), audios, strict=True)
            }
            sites[site] = {"blocks": _in_blocks(_parts(audios)), "classes": classes}
        contradicted = [list(place) for place in sorted(self.contradicted)]
        return {"sites": sites, "fingerprints": dict(self.fingerprints), "contradicted": contradicted}

    @classmethod
    def from_state_dict(
        cls, state: dict[str, Any], half_precision: bool = False, max_site_share: float = 1.0
    ) -> PrototypeBank:
        """Create a bank from the result of `state_dict`."""
        contradicted = frozenset((site, name) for site, name in state.get("contradicted", []))
        bank = cls({}, dict(state["fingerprints"]), half_precision, max_site_share, contradicted)
        for site, stored in state["sites"].items():
            classes = stored["classes"]
            layouts = [layout for entry in classes.values() for layout in entry["audio"] or ()]
            tensors = _out_of_blocks(stored["blocks"], layouts)
            audios = _assembled(tensors, [entry["audio"] is not None for entry in classes.values()])
            bank.entries[site] = {
                name: _Entry(
                    ClassStatistics(name, entry["count"], audio, entry["clip"], entry["t5"]),
                    entry["last_heard"],
                    entry["held_out"],
                )
                for (name, entry), audio in zip(classes.items(), audios, strict=True)
            }
        return bank


# Thousands of sites have hundreds of thousands of small tensors. Each takes a kilobyte besides its values, and an entry
# of its own in a saved state, so a site's are in one block of memory for each type.


def _parts(audios: Iterable[AudioPrototypes | None]) -> list[Tensor]:
    """The tensors of prototypes: means, counts and variances of each."""
    return [tensor for audio in audios if audio is not None for tensor in vars(audio).values()]


def _assembled(parts: Iterable[Tensor], present: Iterable[bool]) -> list[AudioPrototypes | None]:
    """The prototypes with these `_parts`, and None where none are present."""
    left = iter(parts)
    return [AudioPrototypes(next(left), next(left), next(left)) if there else None for there in present]


def _in_blocks(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """All values of the tensors, in order, in one tensor for each type, by its name."""
    by_type: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(str(tensor.dtype), []).append(tensor.flatten())
    return {name: torch.cat(parts) for name, parts in by_type.items()}


def _layout(tensor: Tensor) -> str:
    """Type and shape of a tensor, such as "torch.float16 8 1 512"."""
    return " ".join(map(str, (tensor.dtype, *tensor.shape)))


def _out_of_blocks(blocks: Mapping[str, Tensor], layouts: Iterable[str]) -> list[Tensor]:
    """The tensors of these types and shapes that `_in_blocks` put together, as views of the blocks."""
    places = dict.fromkeys(blocks, 0)
    tensors = []
    for layout in layouts:
        name, *sizes = layout.split()
        start, shape = places[name], [int(size) for size in sizes]
        places[name] = end = start + math.prod(shape)
        tensors.append(blocks[name][start:end].view(shape))
    return tensors


def _previous_hold_out(entry: _Entry | None, audio: AudioPrototypes, same: bool) -> list[bool] | None:
    """The earlier decision of `hold_out` on a class's prototypes; None if they changed or there is none.

    Values are compared if the fingerprint differs: a site sends all prototypes again when those of one class change.

    Args:
        entry: the site's earlier entry of the class.
        audio: the new prototypes.
        same: whether the fingerprint is the same.
    """
    if entry is None or entry.held_out is None or len(entry.held_out) != len(audio.counts):
        return None
    before = entry.statistics.audio
    same = same or (before is not None and torch.equal(before.means.float(), audio.means.float()))
    return entry.held_out if same else None


def _subsample(places: Sequence[Tensor], most: int, random: torch.Generator | None) -> list[Tensor]:
    """At most `most` indices of all parts together, sampled with `random`; 0: all."""
    sizes = [len(part) for part in places]
    if not 0 < most < sum(sizes):
        return list(places)
    kept = torch.ones(sum(sizes), dtype=torch.bool)
    kept[torch.randperm(len(kept), generator=random)[most:]] = False
    return [part[mask] for part, mask in zip(places, kept.split(sizes), strict=True)]


def _halved(tensor: Tensor) -> Tensor:
    """The tensor as float16, unless a value would overflow or underflow to 0."""
    half = tensor.half()
    kept = half.isfinite() & ((half != 0) | (tensor == 0))
    return half if kept.all() else tensor
