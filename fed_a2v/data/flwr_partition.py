"""Partitions by flwr-datasets, which `fed_a2v.data.partition` uses for partition=pathological and partition=shards.

flwr-datasets is in the extra `partitions`, and is imported only for these two kinds.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from fed_a2v.core.seeding import seed_for
from fed_a2v.data.clips import IntArray
from fed_a2v.data.errors import PartitionError
from fed_a2v.install import install_hint

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


def pathological(labels: IntArray, sites: int, classes_per_site: int, seed: int) -> IntArray:
    """Sample the classes of every site, and divide the clips of a class among the sites that have it.

    As in Li et al., 2021 ("Federated Learning on Non-IID Data Silos", arXiv:2102.02079), site i always has class i.

    Args:
        labels: (n,) labels of the training clips.
        sites: number of sites.
        classes_per_site: number of classes of each site.
        seed: seed of the draw.

    Returns:
        (n,) the site of each clip; -1: no site has its class.

    Raises:
        PartitionError: there are too few classes or clips, or the extra `partitions` is missing.
    """
    _require_flwr_datasets("pathological")
    from flwr_datasets.partitioner import PathologicalPartitioner

    present = len(np.unique(labels))
    if classes_per_site > present:
        raise PartitionError(
            f"partition.classes_per_site={classes_per_site}, but {present} classes have training clips; "
            f"set it to {present} at most"
        )
    partitioner = PathologicalPartitioner(
        num_partitions=sites,
        partition_by="label",
        num_classes_per_partition=classes_per_site,
        class_assignment_mode="first-deterministic",
        seed=seed_for(seed, "partition", "pathological") % 2**32,
    )
    try:
        return _site_of_clip(partitioner, labels)
    except ValueError as error:
        raise PartitionError(
            f"partition=pathological: {sites} sites with {classes_per_site} classes each need more clips of a class "
            "than the data has; lower partition.sites or partition.classes_per_site"
        ) from error


def shards(labels: IntArray, sites: int, shards_per_site: int, seed: int) -> IntArray:
    """Sort the clips by class, cut them into blocks of equal size, and assign the same number of blocks to every site.

    As in McMahan et al., 2017 (arXiv:1602.05629). The remainder, less than one clip per block, goes to no site.

    Args:
        labels: (n,) labels of the training clips.
        sites: number of sites.
        shards_per_site: number of blocks of each site.
        seed: seed of the draw.

    Returns:
        (n,) the site of each clip; -1: no site.

    Raises:
        PartitionError: there are fewer clips than blocks, or the extra `partitions` is missing.
    """
    _require_flwr_datasets("shards")
    from flwr_datasets.partitioner import ShardPartitioner

    if len(labels) < sites * shards_per_site:
        raise PartitionError(
            f"{len(labels)} training clips for {sites} sites with {shards_per_site} shards each; "
            "lower partition.sites or partition.shards_per_site"
        )
    partitioner = ShardPartitioner(
        num_partitions=sites,
        partition_by="label",
        num_shards_per_partition=shards_per_site,
        seed=seed_for(seed, "partition", "shards") % 2**32,
    )
    return _site_of_clip(partitioner, labels)


def _require_flwr_datasets(kind: str) -> None:
    try:
        import flwr_datasets  # noqa: F401
    except ImportError as error:
        raise PartitionError(f"partition={kind} needs flwr-datasets: {install_hint('partitions')}") from error


def _site_of_clip(partitioner: Partitioner, labels: IntArray) -> IntArray:
    from datasets import Dataset

    site_of_clip = np.full(len(labels), -1, dtype=np.int64)
    partitioner.dataset = Dataset.from_dict({"label": labels, "row": np.arange(len(labels))})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes that no site has: the caller warns of them by name
        for site in range(partitioner.num_partitions):
            site_of_clip[partitioner.load_partition(site)["row"][:]] = site
    return site_of_clip
