"""What the sites say about each class, and the bank in which the server keeps it.

Shapes: S audio tokens of width Da; K prototypes; Tc x Dc CLIP and T x Dt T5 prompt tokens.
Classes are keyed by name and sites by name, never by index: two sites may number their classes differently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fed_a2v.core.shares import capped


@dataclass(frozen=True)
class AudioPrototypes:
    """Averaged audio embeddings of one class at one site.

    Attributes:
        means: (K, S, Da), each the mean over a group of clips.
        counts: (K,) int64, clips behind each mean.
        variances: (K, S, Da), population variance within each group; zeros where a site does not send it.
    """

    means: Tensor
    counts: Tensor
    variances: Tensor


@dataclass(frozen=True)
class ClassPrompts:
    """What one site says about one class.

    Attributes:
        name: the class's name.
        count: clips of the class that the site trains on.
        audio: averaged audio embeddings, or None where the server holds them already or needs none.
        clip: (Tc, Dc) mean CLIP adapter output over the class's clips, or None where it is not asked for.
        t5: (T, Dt) mean T5 adapter output, or None.
    """

    name: str
    count: int
    audio: AudioPrototypes | None = None
    clip: Tensor | None = None
    t5: Tensor | None = None


@dataclass(frozen=True)
class PooledMoments:
    """All training clips of a site, of whatever class, in two averages: what a site says that shares no class.

    Attributes:
        mean: (S, Da), over the clips.
        variance: population variance over the clips, averaged over all S * Da entries.
        count: clips behind both.
    """

    mean: Tensor
    variance: float
    count: int

    def as_prompts(self, name: str) -> ClassPrompts:
        """The same as one prototype of a class of that name."""
        mean = self.mean[None]
        audio = AudioPrototypes(
            mean, torch.tensor([self.count]), torch.full_like(mean, self.variance, dtype=torch.float32)
        )
        return ClassPrompts(name, self.count, audio)


@dataclass(frozen=True)
class PrototypeRows:
    """The bank's prototypes as rows, in a fixed order, for training over all classes at once.

    Attributes:
        embeddings: (N, S, Da).
        labels: (N,) int64, index into `names`.
        counts: (N,) float32, clips behind each row.
        variances: (N, S, Da), variance within each row's group.
        names: the C classes that have rows, sorted.
    """

    embeddings: Tensor
    labels: Tensor
    counts: Tensor
    variances: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> PrototypeRows:
        """The rows that `index` (integers or a mask) selects; `names` and labels stay as they are."""
        return PrototypeRows(
            self.embeddings[index], self.labels[index], self.counts[index], self.variances[index], self.names
        )

    def to(self, device: torch.device) -> PrototypeRows:
        """The same rows on another device."""
        return PrototypeRows(
            self.embeddings.to(device),
            self.labels.to(device),
            self.counts.to(device),
            self.variances.to(device),
            self.names,
        )

    def joined(self, other: PrototypeRows) -> PrototypeRows:
        """These rows and another's, numbered anew and ordered by class."""
        names = tuple(sorted({*self.names, *other.names}))
        place = {name: label for label, name in enumerate(names)}
        labels = torch.cat(
            [torch.tensor([place[name] for name in each.names])[each.labels.cpu()] for each in (self, other)]
        )
        order = labels.argsort(stable=True)
        both = (
            torch.cat([one, two.to(one)])[order.to(one.device)]
            for one, two in (
                (self.embeddings, other.embeddings),
                (self.counts, other.counts),
                (self.variances, other.variances),
            )
        )
        embeddings, counts, variances = both
        return PrototypeRows(embeddings, labels[order].to(embeddings.device), counts, variances, names)

    def split(self, share: float) -> tuple[PrototypeRows, PrototypeRows]:
        """Split off `held_out_number` of each class's rows, evenly spaced, as (kept, held out)."""
        held = torch.zeros(len(self), dtype=torch.bool)
        for label in range(len(self.names)):
            rows = torch.nonzero(self.labels == label).flatten()
            held[rows[_spaced(len(rows), held_out_number(len(rows), share))]] = True
        return self.take(~held), self.take(held)


def held_out_number(rows: int, share: float) -> int:
    """How many of a class's rows stay out of training: `share` of them, one at least from three rows up, never all.

    Two rows are both needed to tell how a class varies. 0 for a share of 0.
    """
    if share == 0:
        return 0
    return min(max(round(share * rows), 1 if rows >= 3 else 0), max(0, rows - 1))


def _spaced(rows: int, number: int) -> list[int]:
    """`number` of `rows` places, evenly spaced; one: the middle.

    Sites send similar groups next to each other, so the first and the last are the least typical.
    """
    return [(2 * place + 1) * rows // (2 * number) for place in range(number)]


@dataclass
class _Entry:
    """What a site said of a class. `held_out`: which of its prototypes stay out of training; None: not decided yet."""

    prompts: ClassPrompts
    last_heard: int
    held_out: list[bool] | None = None


class _Prototypes(NamedTuple):
    """A site's prototypes of a class, with the (K,) float32 clips behind each and the (K,) mask of those held out."""

    name: str
    audio: AudioPrototypes
    counts: Tensor
    held_out: Tensor


@dataclass
class PromptBank:
    """All that the sites have said, by site and class. It outlives the round.

    A site that is silent for a while still counts; `expire` drops it after a maximum age.

    Attributes:
        max_site_share: of the clips, in all and of a class, that one site may count for; see `clips`.
        half_precision: keep tensors as float16, in half the memory, where all their values fit. What came in float16
            over the wire loses nothing.
    """

    entries: dict[str, dict[str, _Entry]] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    half_precision: bool = False
    max_site_share: float = 1.0

    def update(self, site: str, prompts: Iterable[ClassPrompts], fingerprint: str, round_number: int) -> None:
        """Put in one site's reply. It replaces all the site said before, save prototypes it need not resend.

        A class may come without prototypes of which the bank holds none: where nothing is done with them.
        """
        before = self.entries.get(site, {})
        known = before if self.fingerprints.get(site) == fingerprint else {}
        entries: dict[str, _Entry] = {}
        for prompt in prompts:
            audio = prompt.audio
            held_out: list[bool] | None = None
            if audio is not None:
                if self.half_precision:
                    audio = AudioPrototypes(_halved(audio.means), audio.counts, _halved(audio.variances))
                held_out = _decided(before.get(prompt.name), audio, prompt.name in known)
            elif prompt.name in known:
                audio, held_out = known[prompt.name].prompts.audio, known[prompt.name].held_out
            clip, t5 = (self._kept(output) for output in (prompt.clip, prompt.t5))
            said = ClassPrompts(prompt.name, prompt.count, audio, clip, t5)
            entries[prompt.name] = _Entry(said, round_number, held_out)
        self.entries[site] = entries
        self.fingerprints[site] = fingerprint

    def _kept(self, tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or not self.half_precision else _halved(tensor)

    def expire(self, round_number: int, max_age: int) -> list[str]:
        """Drop the sites not heard from for more than `max_age` rounds (0: keep all); return their names."""
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
        """Decide which of the prototypes that have come since the last call stay out of training.

        What is decided holds as long as the site says the same of the class: a prototype that has been trained on is
        never held out later, nor the reverse. Only where other sites have left, and all that remains of a class is held
        out, a site's prototypes of it go over to training. The decision depends on the sites' names and on what came
        before, not on the order of the replies of a round.

        Args:
            share: see `held_out_number`; rows are counted over all sites so far, those forgotten since among them.
            most: prototypes of a class that are held out at most; 0: no limit.
        """
        entries = [(name, self.entries[site][name]) for site in sorted(self.entries) for name in self.entries[site]]
        rows, held = Counter[str](), Counter[str]()
        for name, entry in entries:
            if entry.held_out is not None:
                rows[name] += len(entry.held_out)
                held[name] += sum(entry.held_out)
        for name, entry in entries:
            if entry.held_out is None and entry.prompts.audio is not None:
                own = len(entry.prompts.audio.counts)
                rows[name] += own
                wanted = held_out_number(rows[name], share)
                missing = min(own, max(0, (min(wanted, most) if most else wanted) - held[name]))
                places = _spaced(own, missing)
                entry.held_out = [place in places for place in range(own)]
                held[name] += missing
        for name, entry in entries:
            if held[name] == rows[name] and entry.held_out and entry.prompts.audio is not None:
                held[name] -= sum(entry.held_out)
                entry.held_out = [False] * len(entry.held_out)

    def forget_prototypes(self) -> None:
        """Drop all prototypes. Names, counts, mean outputs and fingerprints stay, so sites do not send them again."""
        for classes in self.entries.values():
            for entry in classes.values():
                entry.prompts = replace(entry.prompts, audio=None)

    def __iter__(self) -> Iterator[tuple[str, ClassPrompts]]:
        """Every (site, prompts) pair, sites and classes in sorted order."""
        for site in sorted(self.entries):
            for name in sorted(self.entries[site]):
                yield site, self.entries[site][name].prompts

    def counts(self) -> dict[str, int]:
        """Clips per class over all sites, by name in sorted order."""
        totals: dict[str, int] = {}
        for _, prompt in self:
            totals[prompt.name] = totals.get(prompt.name, 0) + prompt.count
        return dict(sorted(totals.items()))

    def clips(self) -> dict[tuple[str, str], float]:
        """Clips by site and class, as far as the bank believes in them.

        No site counts for more than `max_site_share` of all clips, nor of those of a class that others have, too:
        whatever a site claims, it cannot own the result.
        """
        total = {site: sum(entry.prompts.count for entry in classes.values()) for site, classes in self.entries.items()}
        total = {site: clips for site, clips in sorted(total.items()) if clips}
        belief = dict(zip(total, capped(list(total.values()), self.max_site_share), strict=True))
        of_class: dict[str, dict[str, float]] = {}
        for site, prompt in self:
            of_class.setdefault(prompt.name, {})[site] = prompt.count * belief[site] / total[site]
        return {
            (site, name): count
            for name, sites in of_class.items()
            for site, count in zip(sites, capped(list(sites.values()), self.max_site_share), strict=True)
        }

    def capped(self) -> dict[str, list[str]]:
        """By site the classes of which the bank believes in fewer clips than the site says; see `clips`."""
        believed = self.clips()
        cut: dict[str, list[str]] = {}
        for site, prompt in self:
            if believed[site, prompt.name] < prompt.count * (1 - 1e-9):  # more than rounding
                cut.setdefault(site, []).append(prompt.name)
        return cut

    def moments(self) -> tuple[Tensor, Tensor] | None:
        """Mean and variance (Da,) of the clips behind all prototypes, in double precision; None without prototypes.

        By the law of total variance the prototypes' means, counts and variances give the clips' own; tokens count
        alike, and so do held out prototypes, for nothing of any class is in the result. Site by site, so that no more
        than one site's prototypes are in double precision at a time.
        """
        parts = [(found.audio, found.counts.double()) for found in self._prototypes()]
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
        found = [
            (name, site, entry)
            for site, classes in self.entries.items()
            for name, entry in classes.items()
            if entry.prompts.audio is not None
        ]
        prototypes = []
        for name, site, entry in sorted(found, key=lambda item: item[:2]):
            audio = entry.prompts.audio
            assert audio is not None
            counts = audio.counts.float() * (clips[site, name] / entry.prompts.count)
            held = entry.held_out or [False] * len(counts)
            prototypes.append(_Prototypes(name, audio, counts, torch.tensor(held)))
        return prototypes

    def rows(self) -> PrototypeRows | None:
        """All prototypes as rows, ordered by class, then site; None while the bank is empty."""
        return self._rows(torch.ones_like)

    def training_rows(self, per_class: int = 0, random: torch.Generator | None = None) -> PrototypeRows | None:
        """`rows` without those that `hold_out` keeps out of training; `names` has every class of either.

        Args:
            per_class: rows of a class at most, drawn by `random` where there are more; 0: all.
            random: source of the draws.
        """

        def drawn(held_out: Tensor) -> Tensor:
            kept = ~held_out
            places = torch.nonzero(kept).flatten()
            if 0 < per_class < len(places):
                kept[places[torch.randperm(len(places), generator=random)[per_class:]]] = False
            return kept

        return self._rows(drawn)

    def held_out_rows(self) -> PrototypeRows | None:
        """The rows that `hold_out` keeps out of training; `names` has every class of `training_rows`."""
        return self._rows(torch.clone)

    def _rows(self, which: Callable[[Tensor], Tensor]) -> PrototypeRows | None:
        """The rows that `which` selects by the mask of a class's held out ones."""
        found = self._prototypes()
        if not found:
            return None
        by_class = [list(of_class) for _, of_class in groupby(found, key=lambda each: each.name)]
        names = tuple(of_class[0].name for of_class in by_class)
        kept: list[Tensor] = []
        for of_class in by_class:
            mask = which(torch.cat([each.held_out for each in of_class]))
            kept += mask.split([len(each.held_out) for each in of_class])
        labels = torch.arange(len(names)).repeat_interleave(torch.tensor([len(of_class) for of_class in by_class]))
        return PrototypeRows(
            embeddings=torch.cat([each.audio.means[mask] for each, mask in zip(found, kept, strict=True)]).float(),
            labels=labels.repeat_interleave(torch.tensor([int(mask.sum()) for mask in kept])),
            counts=torch.cat([each.counts[mask] for each, mask in zip(found, kept, strict=True)]),
            variances=torch.cat([each.audio.variances[mask] for each, mask in zip(found, kept, strict=True)]).float(),
            names=names,
        )

    def mean_outputs(self, kind: str, names: Sequence[str]) -> list[Tensor | None]:
        """The sites' mean adapter outputs of each class, averaged by `clips`.

        Args:
            kind: "clip" or "t5".
            names: classes, in the order wanted.

        Returns:
            A (tokens, width) tensor for each name, or None where no site has sent one.
        """
        clips = self.clips()
        sums: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        for site, prompt in self:
            output = getattr(prompt, kind)
            if output is not None:
                count = clips[site, prompt.name]
                sums[prompt.name] = sums.get(prompt.name, 0) + output.float() * count
                weights[prompt.name] = weights.get(prompt.name, 0) + count
        return [sums[name] / weights[name] if name in sums else None for name in names]

    def state_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and tensors, for `torch.save` with safe loading."""
        sites = {
            site: {
                name: {
                    "count": entry.prompts.count,
                    "audio": None if entry.prompts.audio is None else vars(entry.prompts.audio),
                    "clip": entry.prompts.clip,
                    "t5": entry.prompts.t5,
                    "last_heard": entry.last_heard,
                    "held_out": entry.held_out,
                }
                for name, entry in classes.items()
            }
            for site, classes in self.entries.items()
        }
        return {"sites": sites, "fingerprints": dict(self.fingerprints)}

    @classmethod
    def from_state_dict(
        cls, state: dict[str, Any], half_precision: bool = False, max_site_share: float = 1.0
    ) -> PromptBank:
        """The bank that `state_dict` described."""
        bank = cls({}, dict(state["fingerprints"]), half_precision, max_site_share)
        for site, classes in state["sites"].items():
            bank.entries[site] = {
                name: _Entry(
                    ClassPrompts(
                        name,
                        entry["count"],
                        None if entry["audio"] is None else AudioPrototypes(**entry["audio"]),
                        entry["clip"],
                        entry["t5"],
                    ),
                    entry["last_heard"],
                    entry["held_out"],
                )
                for name, entry in classes.items()
            }
        return bank


def _decided(entry: _Entry | None, audio: AudioPrototypes, same: bool) -> list[bool] | None:
    """Which of a class's prototypes were held out before, if they are the `same`, as a fingerprint or their values say.

    A site of whose data one class has changed sends all anew.
    """
    if entry is None or entry.held_out is None or len(entry.held_out) != len(audio.counts):
        return None
    before = entry.prompts.audio
    same = same or (before is not None and torch.equal(before.means.float(), audio.means.float()))
    return entry.held_out if same else None


def _halved(tensor: Tensor) -> Tensor:
    """The tensor as float16, unless a value would overflow there, or a positive one vanish."""
    half = tensor.half()
    kept = half.isfinite() & ((half != 0) | (tensor == 0))
    return half if kept.all() else tensor
