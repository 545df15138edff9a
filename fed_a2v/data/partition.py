"""Dividing a data set's clips among sites: disjoint, seeded, and written down."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fed_a2v.core.seeding import numpy_generator
from fed_a2v.data.clips import SPLITS, EmbeddedClips, IntArray, Split
from fed_a2v.data.errors import PartitionError
from fed_a2v.settings import PartitionSettings

logger = logging.getLogger("fed_a2v")

# For each split, the site of every clip of the data set; -1: of no site.
Owners = IntArray


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
    over the sites (Hsu et al., 2019, arXiv:1909.06335). `iid`: every class is dealt clip by clip. `own`: one site
    has all. In every kind a site is tested on classes that it trains on, as far as there are clips enough.

    Raises:
        PartitionError: there are not enough clips or classes for the sites.
    """
    labels = clips.labels.numpy()
    divide: dict[str, Callable[[], Owners]] = {
        "classes": lambda: _by_classes(clips, labels, settings, seed),
        "dirichlet": lambda: _dirichlet(clips, labels, settings, seed),
        "iid": lambda: _iid(clips, labels, settings.sites, seed),
        "own": lambda: np.zeros(len(clips), dtype=np.int64),
    }
    count = 1 if settings.kind == "own" else settings.sites
    owners = divide[settings.kind]()
    sites = [
        SiteClips(
            site_name(site),
            *(rows[owners[rows] == site] for rows in (clips.rows(split) for split in SPLITS)),
        )
        for site in range(count)
    ]
    if empty := [site.name for site in sites if len(site.train) == 0]:
        raise PartitionError(
            f"{len(empty)} of {count} sites get no training clip ({', '.join(empty[:5])}); there are "
            f"{len(clips.rows('train'))} in {len(clips.classes)} classes: lower partition.sites={count}"
        )
    check_disjoint(sites, clips)
    return sites


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


def describe(sites: Sequence[SiteClips], clips: EmbeddedClips) -> dict[str, Any]:
    """Who has what, for JSON: per site its classes with their counts, and the clips' keys, by split.

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
        }
    trained = {int(label) for site in sites for label in labels[site.train]}
    unassigned = [name for label, name in enumerate(clips.classes) if label not in trained]
    return {"sites": described, "unassigned": unassigned}


def _by_classes(clips: EmbeddedClips, labels: IntArray, settings: PartitionSettings, seed: int) -> Owners:
    seen = [label for label, name in enumerate(clips.classes) if name not in clips.unseen]
    dealt = [[seen[place] for place in places] for places in _deal_classes(len(seen), settings, seed)]
    owners = np.full(len(clips), -1, dtype=np.int64)
    for label in range(len(clips.classes)):
        sharing = [site for site, classes in enumerate(dealt) if label in classes]
        if label not in seen:
            sharing = list(range(len(dealt)))  # test clips alone, a part for each site
        if not sharing:
            continue
        for split in SPLITS:
            rows = _shuffled(clips, labels, split, label, seed)
            owners[rows] = np.array(sharing)[np.arange(len(rows)) % len(sharing)]
    if idle := [clips.classes[label] for label in seen if not any(label in site for site in dealt)]:
        logger.warning("No site records %d of %d classes: %s", len(idle), len(seen), ", ".join(idle))
    return owners


def _deal_classes(count: int, settings: PartitionSettings, seed: int) -> list[list[int]]:
    """The classes of each site: neighbours in a drawn order, which starts again when it is used up."""
    order = numpy_generator(seed, "partition", "classes").permutation(count).tolist()
    each = settings.classes_per_site
    if each is None and settings.sites <= count:
        return [part.tolist() for part in np.array_split(order, settings.sites)]
    each = each or 1
    if each > count:
        raise PartitionError(
            f"partition.classes_per_site={each}, but there are {count} classes; set it to {count} at most, or to null"
        )
    return [[order[(site * each + position) % count] for position in range(each)] for site in range(settings.sites)]


def _dirichlet(clips: EmbeddedClips, labels: IntArray, settings: PartitionSettings, seed: int) -> Owners:
    sites = settings.sites
    shares = np.stack([_proportions(settings.alpha, sites, seed, label) for label in range(len(clips.classes))])
    train = {label: _shuffled(clips, labels, "train", label, seed) for label in range(len(clips.classes))}
    counts = np.stack([_cut(len(rows), shares[label]) for label, rows in train.items()])
    _feed_the_empty(counts)
    owners = np.full(len(clips), -1, dtype=np.int64)
    for label in range(len(clips.classes)):
        for split in SPLITS:
            rows = _shuffled(clips, labels, split, label, seed)
            # Validation and test follow the training counts: nobody is tested on what it never heard.
            known = counts[label] / counts[label].sum() if counts[label].any() else shares[label]
            owners[rows] = np.repeat(np.arange(sites), counts[label] if split == "train" else _cut(len(rows), known))
    return owners


def _proportions(alpha: float, sites: int, seed: int, label: int) -> NDArray[np.float64]:
    drawn = numpy_generator(seed, "partition", "dirichlet", label).dirichlet(np.full(sites, alpha))
    # Beyond about 1e300 the draw overflows to zeros; its limit is the even share.
    return drawn if drawn.sum() > 0.5 else np.full(sites, 1 / sites)


def _cut(total: int, shares: NDArray[np.float64]) -> IntArray:
    """Whole numbers in proportion to `shares` that add up to `total`; a share of 0 gets none."""
    edges = np.round(np.cumsum(shares) / shares.sum() * total).astype(np.int64)
    counts: IntArray = np.diff(edges, prepend=0)
    return counts


def _feed_the_empty(counts: IntArray) -> None:
    """Give each site without a clip one of the site that has most, from its largest class, in place.

    Raises:
        PartitionError: there are fewer clips than sites.
    """
    if counts.sum() < counts.shape[1]:
        raise PartitionError(
            f"{counts.sum()} training clips for {counts.shape[1]} sites; lower partition.sites to {counts.sum()}"
        )
    for site in np.flatnonzero(counts.sum(axis=0) == 0):
        donor = int(counts.sum(axis=0).argmax())
        label = int(counts[:, donor].argmax())
        counts[label, donor] -= 1
        counts[label, site] += 1


def _iid(clips: EmbeddedClips, labels: IntArray, sites: int, seed: int) -> Owners:
    owners = np.full(len(clips), -1, dtype=np.int64)
    for split in SPLITS:
        rows = np.concatenate([_shuffled(clips, labels, split, label, seed) for label in range(len(clips.classes))])
        owners[rows] = np.arange(len(rows)) % sites
    return owners


def _shuffled(clips: EmbeddedClips, labels: IntArray, split: Split, label: int, seed: int) -> IntArray:
    """The clips of one class and split in a drawn order."""
    rows = clips.rows(split)
    rows = rows[labels[rows] == label]
    return numpy_generator(seed, "partition", split, clips.classes[label]).permutation(rows)
