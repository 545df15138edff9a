"""What the sites say about each class, and the bank in which the server keeps it.

Shapes: S audio tokens of width Da; K prototypes; Tc x Dc CLIP and T x Dt T5 prompt tokens.
Classes are keyed by name and sites by name, never by index: two sites may number their classes differently.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fed_a2v.core.weight_cap import cap_client_weights

# Sites that a median needs, so that a single one cannot be it.
ENOUGH_SITES = 3
# A site's mean of a class is contradicted where another class's median is so many times nearer to it.
NEARER = 2.0
# A site is contradicted as a whole where so many of its classes should be nearest to their own median, by what is usual
# of sites, and hardly any is: at most one of so many.
EXPECTED_RIGHT = 8


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
class ClassStatistics:
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

    def as_prompts(self, name: str) -> ClassStatistics:
        """The same as one prototype of a class of that name."""
        mean = self.mean[None]
        audio = AudioPrototypes(
            mean, torch.tensor([self.count]), torch.full_like(mean, self.variance, dtype=torch.float32)
        )
        return ClassStatistics(name, self.count, audio)


@dataclass(frozen=True)
class PrototypeBatch:
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

    def take(self, index: Tensor) -> PrototypeBatch:
        """The rows that `index` (integers or a mask) selects; `names` and labels stay as they are."""
        return PrototypeBatch(
            self.embeddings[index], self.labels[index], self.counts[index], self.variances[index], self.names
        )

    def to(self, device: torch.device) -> PrototypeBatch:
        """The same rows on another device."""
        return PrototypeBatch(
            self.embeddings.to(device),
            self.labels.to(device),
            self.counts.to(device),
            self.variances.to(device),
            self.names,
        )

    def joined(self, other: PrototypeBatch) -> PrototypeBatch:
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
        return PrototypeBatch(embeddings, labels[order].to(embeddings.device), counts, variances, names)

    def split(self, share: float) -> tuple[PrototypeBatch, PrototypeBatch]:
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

    prompts: ClassStatistics
    last_heard: int
    held_out: list[bool] | None = None


class _Prototypes(NamedTuple):
    """A site's prototypes of a class, with the (K,) float32 clips behind each and the (K,) mask of those held out."""

    name: str
    audio: AudioPrototypes
    counts: Tensor
    held_out: Tensor


@dataclass
class PrototypeBank:
    """All that the sites have said, by site and class. It outlives the round.

    A site that is silent for a while still counts; `expire` drops it after a maximum age.

    Attributes:
        max_site_share: of the clips, in all and of a class, that one site may count for; see `clips`.
        half_precision: keep tensors as float16, in half the memory, where all their values fit. What came in float16
            over the wire loses nothing.
        contradicted: sites and classes that are left out of all that is made of the bank; see `contradict`.
    """

    entries: dict[str, dict[str, _Entry]] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    half_precision: bool = False
    max_site_share: float = 1.0
    contradicted: frozenset[tuple[str, str]] = frozenset()

    def update(self, site: str, prompts: Iterable[ClassStatistics], fingerprint: str, round_number: int) -> None:
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
            said = ClassStatistics(prompt.name, prompt.count, audio, clip, t5)
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
        entries = [
            (site, name, self.entries[site][name]) for site in sorted(self.entries) for name in self.entries[site]
        ]
        rows, held = Counter[str](), Counter[str]()
        for _, name, entry in entries:
            if entry.held_out is not None:
                rows[name] += len(entry.held_out)
                held[name] += sum(entry.held_out)
        for site, name, entry in entries:
            if entry.held_out is None and entry.prompts.audio is not None and (site, name) not in self.contradicted:
                own = len(entry.prompts.audio.counts)
                rows[name] += own
                wanted = held_out_number(rows[name], share)
                missing = min(own, max(0, (min(wanted, most) if most else wanted) - held[name]))
                places = _spaced(own, missing)
                entry.held_out = [place in places for place in range(own)]
                held[name] += missing
        for _, name, entry in entries:
            if held[name] == rows[name] and entry.held_out and entry.prompts.audio is not None:
                held[name] -= sum(entry.held_out)
                entry.held_out = [False] * len(entry.held_out)

    def contradict(self) -> None:
        """Find the sites whose prototypes of a class are rather those of another class, by what the other sites say.

        Of each class that three sites have, the coordinate-wise median of the sites' means stands for it: one site
        cannot move it far (Yin et al. 2018). Left out is a site's class whose mean has another class's median at less
        than half the distance of its own; and a whole site that has hardly any class nearest to its own median, where
        the median site has most. Honest sites of real sounds have hardly any such class, and none is left out whole.
        """
        places, means = self._class_means()
        of_class: dict[str, list[int]] = {}
        for place, (_, name) in enumerate(places):
            of_class.setdefault(name, []).append(place)
        of_class = {name: rows for name, rows in of_class.items() if len(rows) >= ENOUGH_SITES}
        self.contradicted = frozenset()
        if len(of_class) < 2:
            return
        medians = torch.stack([means[rows].median(dim=0).values for rows in of_class.values()])
        judged = torch.tensor([row for rows in of_class.values() for row in rows])
        own = torch.arange(len(of_class)).repeat_interleave(torch.tensor([len(rows) for rows in of_class.values()]))
        # Not by a matrix product, whose rounding would decide between medians that are near each other.
        distances = torch.cdist(means[judged], medians, compute_mode="donot_use_mm_for_euclid_dist")
        to_own = distances.gather(1, own[:, None]).flatten()
        to_others = distances.scatter(1, own[:, None], torch.inf).min(dim=1).values
        found = {places[int(row)] for row in judged[NEARER * to_others < to_own]}
        right: dict[str, list[bool]] = {}
        for row, is_right in zip(judged.tolist(), (to_own <= to_others).tolist(), strict=True):
            right.setdefault(places[row][0], []).append(is_right)
        usual = float(torch.tensor([sum(each) / len(each) for each in right.values()]).median())
        wrong = {
            site
            for site, each in right.items()
            if usual * len(each) >= EXPECTED_RIGHT and EXPECTED_RIGHT * sum(each) <= usual * len(each)
        }
        self.contradicted = frozenset(found | {place for place in places if place[0] in wrong})

    def _class_means(self) -> tuple[list[tuple[str, str]], Tensor]:
        """(P, Da) mean of each site's clips of a class over their tokens, and whose and of what they are."""
        said = [(site, prompt.name, prompt.audio) for site, prompt in self if prompt.audio is not None]
        means = [(audio.counts / audio.counts.sum()) @ audio.means.float().mean(dim=1) for *_, audio in said]
        return [(site, name) for site, name, _ in said], torch.stack(means) if means else torch.empty(0, 0)

    def forget_prototypes(self) -> None:
        """Drop all prototypes. Names, counts, mean outputs and fingerprints stay, so sites do not send them again."""
        for classes in self.entries.values():
            for entry in classes.values():
                entry.prompts = replace(entry.prompts, audio=None)

    def __iter__(self) -> Iterator[tuple[str, ClassStatistics]]:
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
        whatever a site claims, it cannot own the result. What is contradicted is not among them.
        """
        said = [(site, prompt) for site, prompt in self if (site, prompt.name) not in self.contradicted]
        total: dict[str, int] = {}
        for site, prompt in said:
            total[site] = total.get(site, 0) + prompt.count
        belief = dict(zip(total, cap_client_weights(list(total.values()), self.max_site_share), strict=True))
        of_class: dict[str, dict[str, float]] = {}
        for site, prompt in said:
            of_class.setdefault(prompt.name, {})[site] = prompt.count * belief[site] / total[site]
        return {
            (site, name): count
            for name, sites in of_class.items()
            for site, count in zip(sites, cap_client_weights(list(sites.values()), self.max_site_share), strict=True)
        }

    def capped(self) -> dict[str, list[str]]:
        """By site the classes of which the bank believes in fewer clips than the site says; see `clips`."""
        believed = self.clips()
        cut: dict[str, list[str]] = {}
        for site, prompt in self:
            if believed.get((site, prompt.name), math.inf) < prompt.count * (1 - 1e-9):  # more than rounding
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
            if entry.prompts.audio is not None and (site, name) not in self.contradicted
        ]
        prototypes = []
        for name, site, entry in sorted(found, key=lambda item: item[:2]):
            audio = entry.prompts.audio
            assert audio is not None
            counts = audio.counts.float() * (clips[site, name] / entry.prompts.count)
            held = entry.held_out or [False] * len(counts)
            prototypes.append(_Prototypes(name, audio, counts, torch.tensor(held)))
        return prototypes

    def rows(self) -> PrototypeBatch | None:
        """All prototypes as rows, ordered by class, then site; None while the bank is empty."""
        return self._rows(lambda held_out: [torch.arange(len(mask)) for mask in held_out])

    def training_rows(self, per_class: int = 0, random: torch.Generator | None = None) -> PrototypeBatch | None:
        """`rows` without those that `hold_out` keeps out of training; `names` has every class of either.

        Where three sites have a class, none has more than `max_site_share` of its rows, however many it sends: those of
        the others come several times, with a part of their clips each time.

        Args:
            per_class: rows of a class at most, drawn by `random` where there are more; 0: all. Rows that come several
                times to keep to the share are at most as many again.
            random: source of the draws.
        """

        def drawn(held_out: Sequence[Tensor]) -> list[Tensor]:
            kept = [torch.nonzero(~mask).flatten() for mask in held_out]
            numbers = [len(places) for places in kept if len(places)]
            shares = cap_client_weights(numbers, self.max_site_share) if len(numbers) >= ENOUGH_SITES else numbers
            if shares == numbers:
                return _some(kept, per_class, random)
            wanted = [min(len(each), max(shares)) for each in kept]
            if 0 < per_class < sum(numbers):
                part = per_class / sum(shares)
                kept = [
                    _some([each], math.ceil(part * number), random)[0]
                    for each, number in zip(kept, wanted, strict=True)
                ]
            unit = max(map(len, kept)) / max(shares)  # what stands for one row, where nobody's are left out
            return [
                each.repeat(math.ceil(unit * number / max(1, len(each))))
                for each, number in zip(kept, wanted, strict=True)
            ]

        return self._rows(drawn)

    def held_out_rows(self) -> PrototypeBatch | None:
        """The rows that `hold_out` keeps out of training; `names` has every class of `training_rows`."""
        return self._rows(lambda held_out: [torch.nonzero(mask).flatten() for mask in held_out])

    def _rows(self, which: Callable[[Sequence[Tensor]], list[Tensor]]) -> PrototypeBatch | None:
        """The rows whose places `which` names, site by site, by the masks of a class's held out ones.

        What it names several times shares the clips behind it.
        """
        found = self._prototypes()
        if not found:
            return None
        by_class = [list(of_class) for _, of_class in groupby(found, key=lambda each: each.name)]
        names = tuple(of_class[0].name for of_class in by_class)
        kept = [places for of_class in by_class for places in which([each.held_out for each in of_class])]
        times = [places.bincount(minlength=1)[places] for places in kept]
        labels = torch.arange(len(names)).repeat_interleave(torch.tensor([len(of_class) for of_class in by_class]))
        return PrototypeBatch(
            embeddings=torch.cat([each.audio.means[rows] for each, rows in zip(found, kept, strict=True)]).float(),
            labels=labels.repeat_interleave(torch.tensor([len(rows) for rows in kept])),
            counts=torch.cat(
                [each.counts[rows] / number for each, rows, number in zip(found, kept, times, strict=True)]
            ),
            variances=torch.cat([each.audio.variances[rows] for each, rows in zip(found, kept, strict=True)]).float(),
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
            if output is not None and (site, prompt.name) not in self.contradicted:
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
        contradicted = [list(place) for place in sorted(self.contradicted)]
        return {"sites": sites, "fingerprints": dict(self.fingerprints), "contradicted": contradicted}

    @classmethod
    def from_state_dict(
        cls, state: dict[str, Any], half_precision: bool = False, max_site_share: float = 1.0
    ) -> PrototypeBank:
        """The bank that `state_dict` described."""
        contradicted = frozenset((site, name) for site, name in state.get("contradicted", []))
        bank = cls({}, dict(state["fingerprints"]), half_precision, max_site_share, contradicted)
        for site, classes in state["sites"].items():
            bank.entries[site] = {
                name: _Entry(
                    ClassStatistics(
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


def _some(places: Sequence[Tensor], most: int, random: torch.Generator | None) -> list[Tensor]:
    """Of the places in all parts together `most`, drawn by `random`; 0: all."""
    sizes = [len(part) for part in places]
    if not 0 < most < sum(sizes):
        return list(places)
    kept = torch.ones(sum(sizes), dtype=torch.bool)
    kept[torch.randperm(len(kept), generator=random)[most:]] = False
    return [part[mask] for part, mask in zip(places, kept.split(sizes), strict=True)]


def _halved(tensor: Tensor) -> Tensor:
    """The tensor as float16, unless a value would overflow there, or a positive one vanish."""
    half = tensor.half()
    kept = half.isfinite() & ((half != 0) | (tensor == 0))
    return half if kept.all() else tensor
