"""Dividing a data set's clips among the sites: one disjoint, seeded partition for each `partition` of the settings.

`fed_a2v.data.site` calls `partition` for the clips of a site; the server stores `describe` in the run folder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fed_a2v.config.sections.data import PartitionSettings
from fed_a2v.core.seeding import numpy_generator
from fed_a2v.data.clips import SPLITS, EmbeddedClips, IntArray, Split
from fed_a2v.data.errors import PartitionError
from fed_a2v.data.flwr_partition import pathological, shards

logger = logging.getLogger("fed_a2v")

# The site of every clip of the data set, (N,) int64; -1: no site.
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
    """The name of site number `site`, which starts at 0."""
    return f"site-{site:03d}"


def partition(clips: EmbeddedClips, settings: PartitionSettings, seed: int) -> list[SiteClips]:
    """Divide the clips among the sites.

    Kinds of partition:
        classes: the classes, in random order, are assigned to the sites, `classes_per_site` to each; a class of
            several sites is divided among them.
        dirichlet: each class is divided in proportions from Dirichlet(alpha) over the sites (Hsu et al., 2019,
            arXiv:1909.06335).
        pathological: `classes_per_site` random classes for every site (Li et al., 2021, arXiv:2102.02079).
        shards: the clips, sorted by class, are cut into blocks, `shards_per_site` for each site (McMahan et al., 2017,
            arXiv:1602.05629).
        iid: the clips of every class are divided evenly.
        own: one site has all clips.

    In every kind, the validation and test clips of a site are of classes that it trains on, if there are enough
    clips. With `by_set`, the sites are divided evenly among the data sets of a mix, and each data set is divided
    among its own sites.

    The partition depends on labels only, not on embeddings. `pathological` and `shards` are flwr-datasets'
    partitioners. `dirichlet` is not, because flwr-datasets repeats the whole draw until every site has its minimum of
    clips, and fails after ten draws, which happens with a small alpha and many sites; here such a site gets clips of
    the largest site. Also, the draw of a class does not depend on the other classes here, and validation and test
    clips follow the training clips. `iid` is not, because flwr-datasets' ignores the classes; here every site has an
    equal share of each.

    Raises:
        PartitionError: there are not enough clips or classes for the sites, or a package is missing.
    """
    if settings.by_set and clips.sets is not None and settings.kind != "own":
        return _partition_by_set(clips, clips.sets, settings, seed)
    divide: dict[str, Callable[[EmbeddedClips, IntArray, PartitionSettings, int], SiteOfClip]] = {
        "classes": _by_classes,
        "dirichlet": _dirichlet,
        "pathological": _pathological,
        "shards": _shards,
        "iid": _iid,
        "own": lambda clips, labels, settings, seed: np.zeros(len(clips), dtype=np.int64),  # noqa: ARG005
    }
    count = 1 if settings.kind == "own" else settings.sites
    site_of_clip = divide[settings.kind](clips, clips.labels.numpy(), settings, seed)
    sites = [
        SiteClips(
            site_name(site),
            *(rows[site_of_clip[rows] == site] for rows in (clips.rows(split) for split in SPLITS)),
        )
        for site in range(count)
    ]
    if small := [site.name for site in sites if len(site.train) < settings.min_clips]:
        least = "no training clip" if settings.min_clips == 1 else f"fewer than {settings.min_clips} training clips"
        raise PartitionError(
            f"{len(small)} of {count} sites get {least} ({', '.join(small[:5])}); the data has "
            f"{len(clips.rows('train'))} in {len(clips.classes)} classes: lower partition.sites={count}"
        )
    check_disjoint(sites, clips)
    return sites


def _partition_by_set(clips: EmbeddedClips, sets: IntArray, settings: PartitionSettings, seed: int) -> list[SiteClips]:
    """Divide each data set of a mix among its own sites."""
    present = np.unique(sets)
    if settings.sites < len(present):
        raise PartitionError(
            f"partition.by_set=true: {len(present)} data sets need at least as many sites, "
            f"partition.sites={settings.sites}"
        )
    sites: list[SiteClips] = []
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
            name = site_name(len(sites))
            sites.append(SiteClips(name, *(rows[site.rows(split)].astype(np.int64) for split in SPLITS)))
    check_disjoint(sites, clips)
    return sites


def check_disjoint(sites: Sequence[SiteClips], clips: EmbeddedClips) -> None:
    """Check that no clip is at two sites or in two splits, and that each is in its own split.

    Raises:
        PartitionError: the message names the clip, its sites and splits.
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
    """Check that partition=classes can assign `count` classes to the sites; other kinds divide clips.

    Raises:
        PartitionError: there are more sites than classes and classes_per_site is null, or it is more than `count`.
    """
    sites, each = settings.sites, settings.classes_per_site
    if settings.kind != "classes":
        return
    if each is None and sites > count:
        raise PartitionError(
            f"partition.sites={sites}, but the data has {count} classes to train on: lower it to {count}, share "
            "classes (partition.classes_per_site=1), or choose partition=iid"
        )
    if each is not None and each > count:
        raise PartitionError(
            f"partition.classes_per_site={each}, but there are {count} classes; set it to at most {count}, or to null"
        )


def describe(sites: Sequence[SiteClips], clips: EmbeddedClips) -> dict[str, Any]:
    """The partition for JSON: for each site its classes with their counts, and the clips' keys and contents, by split.

    `unassigned` lists the classes that no site trains on.
    """
    labels = clips.labels.numpy()
    described: dict[str, Any] = {}
    for site in sites:
        present = sorted({int(label) for split in SPLITS for label in labels[site.rows(split)]})
        described[site.name] = {
            "classes": {
                clips.classes[label]: {split: int((labels[site.rows(split)] == label).sum()) for split in SPLITS}
                for label in present
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
    labels_of_site = [[seen[place] for place in places] for places in _assign_classes(len(seen), settings, seed)]
    site_of_clip = np.full(len(clips), -1, dtype=np.int64)
    for label in range(len(clips.classes)):
        sharing = [site for site, assigned in enumerate(labels_of_site) if label in assigned]
        if label not in seen:
            sharing = list(range(len(labels_of_site)))  # an unseen class has test clips only: every site gets a part
        if not sharing:
            continue
        for split in SPLITS:
            rows = _shuffled(clips, labels, split, label, seed)
            site_of_clip[rows] = np.array(sharing)[np.arange(len(rows)) % len(sharing)]
    _warn_of_unassigned(
        clips, seen, [label for label in seen if not any(label in assigned for assigned in labels_of_site)]
    )
    return site_of_clip


def _warn_of_unassigned(clips: EmbeddedClips, labels: Sequence[int], unassigned: Sequence[int]) -> None:
    if unassigned:
        names = ", ".join(clips.classes[label] for label in unassigned)
        logger.warning("No site has %d of %d classes: %s", len(unassigned), len(labels), names)


def _assign_classes(count: int, settings: PartitionSettings, seed: int) -> list[list[int]]:
    """The classes of each site: consecutive ones in a random order, which is repeated as often as needed."""
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
    counts = np.stack([_apportion(len(rows), shares[label]) for label, rows in train.items()])
    _enforce_min_samples(counts, settings.min_clips)
    site_of_clip = np.full(len(clips), -1, dtype=np.int64)
    for label, rows in train.items():
        site_of_clip[rows] = np.repeat(np.arange(sites), counts[label])
    _follow_training(site_of_clip, clips, labels, counts, shares, seed)
    return site_of_clip


def _pathological(clips: EmbeddedClips, labels: IntArray, settings: PartitionSettings, seed: int) -> SiteOfClip:
    assert settings.classes_per_site is not None  # checked by the settings
    train = clips.rows("train")
    site_of_training = pathological(labels[train], settings.sites, settings.classes_per_site, seed)
    return _from_training(clips, labels, site_of_training, settings, seed)


def _shards(clips: EmbeddedClips, labels: IntArray, settings: PartitionSettings, seed: int) -> SiteOfClip:
    train = clips.rows("train")
    site_of_training = shards(labels[train], settings.sites, settings.shards_per_site, seed)
    return _from_training(clips, labels, site_of_training, settings, seed)


def _from_training(
    clips: EmbeddedClips, labels: IntArray, site_of_training: SiteOfClip, settings: PartitionSettings, seed: int
) -> SiteOfClip:
    """The sites of all clips, given those of the training clips."""
    train = clips.rows("train")
    site_of_clip = np.full(len(clips), -1, dtype=np.int64)
    site_of_clip[train] = site_of_training
    assigned = site_of_training >= 0
    counts = np.zeros((len(clips.classes), settings.sites), dtype=np.int64)
    np.add.at(counts, (labels[train[assigned]], site_of_training[assigned]), 1)
    trained = np.unique(labels[train]).tolist()
    unassigned = [label for label in trained if not counts[label].any()]
    _warn_of_unassigned(clips, trained, unassigned)
    # Classes without training clips (unseen ones) are divided evenly; unassigned classes belong to no site.
    even = np.full(counts.shape, 1 / settings.sites)
    even[unassigned] = 0
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
    """Divide the validation and test clips like the training clips: a site is tested on classes that it trains on.

    Args:
        site_of_clip: (N,) the site of each clip; updated in place.
        clips: the N clips of the data set.
        labels: (N,) labels of the clips.
        counts: (classes, sites) numbers of training clips.
        otherwise: (classes, sites) shares of the classes without training clips; if all are 0, no site has the class.
        seed: seed of the draw.
    """
    for label in range(len(clips.classes)):
        shares = counts[label] / counts[label].sum() if counts[label].any() else otherwise[label]
        for split in SPLITS[1:]:
            rows = _shuffled(clips, labels, split, label, seed)
            if shares.any():
                site_of_clip[rows] = np.repeat(np.arange(len(shares)), _apportion(len(rows), shares))


def _proportions(alpha: float, sites: int, seed: int, label: int) -> NDArray[np.float64]:
    sample = numpy_generator(seed, "partition", "dirichlet", label).dirichlet(np.full(sites, alpha))
    # For alpha above about 1e300 the sample overflows to zeros; its limit is the even share.
    return sample if sample.sum() > 0.5 else np.full(sites, 1 / sites)


def _apportion(total: int, shares: NDArray[np.float64]) -> IntArray:
    """Integers in proportion to `shares` that sum to `total`; a share of 0 gets 0."""
    edges = np.round(np.cumsum(shares) / shares.sum() * total).astype(np.int64)
    counts: IntArray = np.diff(edges, prepend=0)
    return counts


def _enforce_min_samples(counts: IntArray, least: int) -> None:
    """Move clips, in place, until each site has at least `least`: from the largest class of the site with most clips.

    Args:
        counts: (classes, sites) numbers of training clips.
        least: minimum of clips of a site.

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


def _iid(clips: EmbeddedClips, labels: IntArray, settings: PartitionSettings, seed: int) -> SiteOfClip:
    site_of_clip = np.full(len(clips), -1, dtype=np.int64)
    for split in SPLITS:
        rows = np.concatenate([_shuffled(clips, labels, split, label, seed) for label in range(len(clips.classes))])
        # Continuing from class to class, so that the sites' totals differ by at most one clip.
        site_of_clip[rows] = np.arange(len(rows)) % settings.sites
    return site_of_clip


def _shuffled(clips: EmbeddedClips, labels: IntArray, split: Split, label: int, seed: int) -> IntArray:
    """The clips of one class and split in random order; the order does not depend on other classes."""
    rows = clips.rows(split)
    rows = rows[labels[rows] == label]
    return numpy_generator(seed, "partition", split, clips.classes[label]).permutation(rows)
