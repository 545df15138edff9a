"""Dividing a data set's clips among sites: disjoint, seeded, and written down."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fed_a2v.config.schema import PartitionSettings
from fed_a2v.core.seeding import numpy_generator
from fed_a2v.data.clips import SPLITS, EmbeddedClips, IntArray, Split
from fed_a2v.data.errors import PartitionError
from fed_a2v.data.flwr_partition import pathological, shards

logger = logging.getLogger("fed_a2v")

# For each split, the site of every clip of the data set; -1: of no site.
SiteOfClip = IntArray


@dataclass(frozen=True)
class SiteClips:
    """The clips of one site, as sorted positions in the data set.

    Attributes:
        name: "site-000", "site-001", ...
        train: positions of the training clips; never empty.
        validation: positions of the validation clips.
        test: positions of the test clips.
    """

    name: str
    train: IntArray
    validation: IntArray
    test: IntArray

    def rows(self, split: Split) -> IntArray:
        """The positions of one split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]


def site_name(site: int) -> str:
    """The name of site number `site`, counted from 0."""
    return f"site-{site:03d}"


def partition(clips: EmbeddedClips, settings: PartitionSettings, seed: int) -> list[SiteClips]:
    """Divide the clips among the sites.

    `classes`: the classes, in a drawn order, are dealt to the sites, `classes_per_site` to each; a class dealt to
    several sites is divided among them. `dirichlet`: each class is divided in drawn proportions, Dirichlet(alpha)
    over the sites (Hsu et al., 2019, arXiv:1909.06335). `pathological`: every site draws `classes_per_site` classes
    (Li et al., 2021, arXiv:2102.02079). `shards`: the clips, sorted by class, are cut into blocks, and each site
    gets `shards_per_site` of them (McMahan et al., 2017, arXiv:1602.05629). `iid`: every class is dealt clip by
    clip. `own`: one site has all. In every kind a site is tested on classes that it trains on, as far as there are
    clips enough. With `by_set` each data set of a mix has an even share of the sites to itself, and is divided among
    them.

    Only labels are looked at, never the embeddings. `pathological` and `shards` are flwr-datasets' own. `dirichlet`
    and `iid` are not: flwr-datasets' Dirichlet draws the whole division anew until every site has its least number
    of clips, and gives up after ten times, which a small alpha and many sites soon come to; here a poor site takes
    from the richest. What one class draws does not depend on the other classes, and validation and test clips follow
    those of training, of which a partitioner of one list knows nothing. IID there ignores the classes; here every
    site has a like share of each.

    Raises:
        PartitionError: there are not enough clips or classes for the sites, or a package is missing.
    """
    if settings.by_set and clips.sets is not None and settings.kind != "own":
        return _partition_by_set(clips, clips.sets, settings, seed)
    labels = clips.labels.numpy()
    divide: dict[str, Callable[[], SiteOfClip]] = {
        "classes": lambda: _by_classes(clips, labels, settings, seed),
        "dirichlet": lambda: _dirichlet(clips, labels, settings, seed),
        "pathological": lambda: _pathological(clips, labels, settings, seed),
        "shards": lambda: _shards(clips, labels, settings, seed),
        "iid": lambda: _iid(clips, labels, settings.sites, seed),
        "own": lambda: np.zeros(len(clips), dtype=np.int64),
    }
    count = 1 if settings.kind == "own" else settings.sites
    site_of_clip = divide[settings.kind]()
    sites = [
        SiteClips(
            site_name(site),
            *(rows[site_of_clip[rows] == site] for rows in (clips.rows(split) for split in SPLITS)),
        )
        for site in range(count)
    ]
    if poor := [site.name for site in sites if len(site.train) < settings.min_clips]:
        least = "no training clip" if settings.min_clips == 1 else f"less than {settings.min_clips} training clips"
        raise PartitionError(
            f"{len(poor)} of {count} sites get {least} ({', '.join(poor[:5])}); there are "
            f"{len(clips.rows('train'))} in {len(clips.classes)} classes: lower partition.sites={count}"
        )
    check_disjoint(sites, clips)
    return sites


def _partition_by_set(clips: EmbeddedClips, sets: IntArray, settings: PartitionSettings, seed: int) -> list[SiteClips]:
    """Divide each data set of a mix among sites of its own."""
    present = np.unique(sets)
    if settings.sites < len(present):
        raise PartitionError(
            f"partition.by_set=true: {len(present)} data sets need as many sites, partition.sites={settings.sites}"
        )
    made: list[SiteClips] = []
    for number, numbers in zip(present, np.array_split(np.arange(settings.sites), len(present)), strict=True):
        rows = np.flatnonzero(sets == number)
        own = replace(
            clips,
            embeddings=clips.embeddings[:0],
            labels=clips.labels[torch.from_numpy(rows)],
            splits=tuple(clips.splits[row] for row in rows),
            keys=tuple(clips.keys[row] for row in rows),
            sets=None,
        )
        for site in partition(own, settings.model_copy(update={"sites": len(numbers)}), seed):
            made.append(SiteClips(site_name(len(made)), *(rows[site.rows(split)].astype(np.int64) for split in SPLITS)))
    check_disjoint(made, clips)
    return made


def check_disjoint(sites: Sequence[SiteClips], clips: EmbeddedClips) -> None:
    """Check that no clip is at two sites or in two splits, and that each is in its own split.

    Raises:
        PartitionError: names the clip and where it is.
    """
    place: dict[str, str] = {}
    for site in sites:
        for split in SPLITS:
            for row in site.rows(split).tolist():
                here, key = f"{split} clips of {site.name}", clips.keys[row]
                if key in place:
                    raise PartitionError(f"the clip {key} is among the {place[key]} and the {here}")
                if clips.splits[row] != split:
                    raise PartitionError(f"the {clips.splits[row]} clip {key} is among the {here}")
                place[key] = here


def check_classes(count: int, settings: PartitionSettings) -> None:
    """Check that partition=classes can deal `count` classes to the sites; other kinds deal clips.

    Raises:
        PartitionError: there are more sites than classes and nothing says that they may share, or a site is to have
            more classes than there are.
    """
    sites, each = settings.sites, settings.classes_per_site
    if settings.kind != "classes":
        return
    if each is None and sites > count:
        raise PartitionError(
            f"partition.sites={sites}, but there are {count} classes to train on: lower it to {count}, let sites share "
            "classes (partition.classes_per_site=1), or choose partition=iid"
        )
    if each is not None and each > count:
        raise PartitionError(
            f"partition.classes_per_site={each}, but there are {count} classes; set it to {count} at most, or to null"
        )


def describe(sites: Sequence[SiteClips], clips: EmbeddedClips) -> dict[str, Any]:
    """Who has what, for JSON: per site its classes with their counts, and the clips' keys and contents, by split.

    `unassigned` names the classes that no site trains on.
    """
    labels = clips.labels.numpy()
    described: dict[str, Any] = {}
    for site in sites:
        here = sorted({int(label) for split in SPLITS for label in labels[site.rows(split)]})
        described[site.name] = {
            "classes": {
                clips.classes[label]: {split: int((labels[site.rows(split)] == label).sum()) for split in SPLITS}
                for label in here
            },
            "clips": {split: [clips.keys[row] for row in site.rows(split)] for split in SPLITS},
            "contents": {
                split: [clips.contents[row] for row in site.rows(split) if clips.contents] for split in SPLITS
            },
        }
    trained = {int(label) for site in sites for label in labels[site.train]}
    unassigned = [name for label, name in enumerate(clips.classes) if label not in trained]
    return {"sites": described, "unassigned": unassigned}


def _by_classes(clips: EmbeddedClips, labels: IntArray, settings: PartitionSettings, seed: int) -> SiteOfClip:
    seen = [label for label, name in enumerate(clips.classes) if name not in clips.unseen]
    dealt = [[seen[place] for place in places] for places in _deal_classes(len(seen), settings, seed)]
    site_of_clip = np.full(len(clips), -1, dtype=np.int64)
    for label in range(len(clips.classes)):
        sharing = [site for site, classes in enumerate(dealt) if label in classes]
        if label not in seen:
            sharing = list(range(len(dealt)))  # test clips alone, a part for each site
        if not sharing:
            continue
        for split in SPLITS:
            rows = _shuffled(clips, labels, split, label, seed)
            site_of_clip[rows] = np.array(sharing)[np.arange(len(rows)) % len(sharing)]
    if idle := [clips.classes[label] for label in seen if not any(label in site for site in dealt)]:
        logger.warning("No site records %d of %d classes: %s", len(idle), len(seen), ", ".join(idle))
    return site_of_clip


def _deal_classes(count: int, settings: PartitionSettings, seed: int) -> list[list[int]]:
    """The classes of each site: neighbours in a drawn order, which starts again when it is used up."""
    order = numpy_generator(seed, "partition", "classes").permutation(count).tolist()
    check_classes(count, settings)
    each = settings.classes_per_site
    if each is None:
        return [part.tolist() for part in np.array_split(order, settings.sites)]
    return [[order[(site * each + position) % count] for position in range(each)] for site in range(settings.sites)]


def _dirichlet(clips: EmbeddedClips, labels: IntArray, settings: PartitionSettings, seed: int) -> SiteOfClip:
    sites = settings.sites
    shares = np.stack([_proportions(settings.alpha, sites, seed, label) for label in range(len(clips.classes))])
    train = {label: _shuffled(clips, labels, "train", label, seed) for label in range(len(clips.classes))}
    counts = np.stack([_cut(len(rows), shares[label]) for label, rows in train.items()])
    _enforce_min_samples(counts, settings.min_clips)
    site_of_clip = np.full(len(clips), -1, dtype=np.int64)
    for label, rows in train.items():
        site_of_clip[rows] = np.repeat(np.arange(sites), counts[label])
    _follow_training(site_of_clip, clips, labels, counts, shares, seed)
    return site_of_clip


def _pathological(clips: EmbeddedClips, labels: IntArray, settings: PartitionSettings, seed: int) -> SiteOfClip:
    assert settings.classes_per_site is not None  # checked by the settings
    train = clips.rows("train")
    return _from_training(
        clips, labels, pathological(labels[train], settings.sites, settings.classes_per_site, seed), settings, seed
    )


def _shards(clips: EmbeddedClips, labels: IntArray, settings: PartitionSettings, seed: int) -> SiteOfClip:
    train = clips.rows("train")
    return _from_training(
        clips, labels, shards(labels[train], settings.sites, settings.shards_per_site, seed), settings, seed
    )


def _from_training(
    clips: EmbeddedClips, labels: IntArray, dealt: SiteOfClip, settings: PartitionSettings, seed: int
) -> SiteOfClip:
    """The sites of all clips, where those of the training clips, `dealt`, are known."""
    train = clips.rows("train")
    site_of_clip = np.full(len(clips), -1, dtype=np.int64)
    site_of_clip[train] = dealt
    counts = np.zeros((len(clips.classes), settings.sites), dtype=np.int64)
    np.add.at(counts, (labels[train[dealt >= 0]], dealt[dealt >= 0]), 1)
    taught = np.unique(labels[train])
    if idle := [clips.classes[label] for label in taught if not counts[label].any()]:
        logger.warning("No site records %d of %d classes: %s", len(idle), len(taught), ", ".join(idle))
    even = np.full(counts.shape, 1 / settings.sites)
    even[[label for label in taught if not counts[label].any()]] = 0
    _follow_training(site_of_clip, clips, labels, counts, even, seed)
    return site_of_clip


def _follow_training(
    site_of_clip: SiteOfClip,
    clips: EmbeddedClips,
    labels: IntArray,
    counts: IntArray,
    otherwise: NDArray[np.float64],
    seed: int,
) -> None:
    """Deal the clips for validation and test, in place, as those of training: nobody is tested on the unheard.

    Args:
        owners: of all clips.
        clips: of the data set.
        labels: of the clips.
        counts: (classes, sites) training clips.
        otherwise: (classes, sites) shares of the classes without training clips; where all are 0, no site has them.
        seed: of the drawing.
    """
    for label in range(len(clips.classes)):
        shares = counts[label] / counts[label].sum() if counts[label].any() else otherwise[label]
        for split in SPLITS[1:]:
            rows = _shuffled(clips, labels, split, label, seed)
            if shares.any():
                site_of_clip[rows] = np.repeat(np.arange(len(shares)), _cut(len(rows), shares))


def _proportions(alpha: float, sites: int, seed: int, label: int) -> NDArray[np.float64]:
    drawn = numpy_generator(seed, "partition", "dirichlet", label).dirichlet(np.full(sites, alpha))
    # Beyond about 1e300 the draw overflows to zeros; its limit is the even share.
    return drawn if drawn.sum() > 0.5 else np.full(sites, 1 / sites)


def _cut(total: int, shares: NDArray[np.float64]) -> IntArray:
    """Whole numbers in proportion to `shares` that add up to `total`; a share of 0 gets none."""
    edges = np.round(np.cumsum(shares) / shares.sum() * total).astype(np.int64)
    counts: IntArray = np.diff(edges, prepend=0)
    return counts


def _enforce_min_samples(counts: IntArray, least: int) -> None:
    """Give each site with fewer than `least` clips some of the site that has most, from its largest class, in place.

    Raises:
        PartitionError: there are not enough clips.
    """
    total, sites = counts.sum(), counts.shape[1]
    if total < sites * least:
        each = "" if least == 1 else f", at least {least} for each (partition.min_clips)"
        raise PartitionError(
            f"{total} training clips for {sites} sites{each}; lower partition.sites to {total // least}"
        )
    for site in range(sites):
        while counts[:, site].sum() < least:
            donor = int(counts.sum(axis=0).argmax())
            label = int(counts[:, donor].argmax())
            counts[label, donor] -= 1
            counts[label, site] += 1


def _iid(clips: EmbeddedClips, labels: IntArray, sites: int, seed: int) -> SiteOfClip:
    site_of_clip = np.full(len(clips), -1, dtype=np.int64)
    for split in SPLITS:
        rows = np.concatenate([_shuffled(clips, labels, split, label, seed) for label in range(len(clips.classes))])
        site_of_clip[rows] = np.arange(len(rows)) % sites
    return site_of_clip


def _shuffled(clips: EmbeddedClips, labels: IntArray, split: Split, label: int, seed: int) -> IntArray:
    """The clips of one class and split in a drawn order."""
    rows = clips.rows(split)
    rows = rows[labels[rows] == label]
    return numpy_generator(seed, "partition", split, clips.classes[label]).permutation(rows)
